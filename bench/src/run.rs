//! One snapshot, and what its guest saw of it.
//!
//! Around every snapshot the guest is watched without one, in the same run: shortly before, and for
//! exactly the same time after. Four phases of a snapshot are told apart by the engine's own stamps
//! of CLOCK_MONOTONIC: *arming* from the command to the order to pause, the *pause* until the
//! machine was told to run on, *saving* until all pages are in the file, *tearing down* until the
//! last protection and registration is gone. A gap that reaches into the pause is the pause's; any
//! other belongs to the phase in which it began. *Whole* is all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use paguro_lab::ruler::{Gaps, Record, Ruler, Window};
use paguro_lab::{Machine, now_ns};
use serde_json::{Value, json};

use super::fill;
use super::setup::warm_host;
use super::variant::Variant;

/// How often a snapshot is asked how far it is. Often enough to see page tables grow, and seldom
/// enough not to be what the guest waits for.
const POLL: Duration = Duration::from_millis(10);

/// What is watched at most: a big machine, and as long again without a snapshot.
pub const MOST: Duration = Duration::from_secs(120);

/// The guest alone, before a snapshot.
const BEFORE: Duration = Duration::from_millis(200);

/// After the last protection is gone the guest may still pay for what KVM forgot: this long it
/// counts as the snapshot's, and only then the idle window begins.
pub const AFTER_NS: u64 = 200_000_000;

/// Something that took time from a guest that was watched before, meanwhile and after.
pub struct Around<'a> {
    /// What was seen.
    pub record: &'a Record,
    /// From its begin to its end.
    pub whole: Window,
}

/// How long a guest is watched before, at least.
pub fn wait_before() {
    std::thread::sleep(BEFORE);
}

/// Waits until the idle window after something that ended is over.
pub fn wait_for_idle(whole: Window) {
    let until = whole.to_ns + AFTER_NS + whole.ns() + AFTER_NS + 5_000_000;
    std::thread::sleep(Duration::from_nanos(until.saturating_sub(now_ns())));
}

impl Around<'_> {
    /// The moment in the idle window for a moment of what is measured.
    fn idle(&self, phase: Window) -> Window {
        phase.moved_by((self.whole.ns() + AFTER_NS) as i64)
    }

    /// All that it may have taken time from.
    fn affected(&self) -> Window {
        Window::new(self.whole.from_ns, self.whole.to_ns + AFTER_NS)
    }

    /// Writes a second of the guest alone.
    pub fn full_rate(&self) -> f64 {
        let begin = self.whole.from_ns;
        let before = Window::new(begin - BEFORE.as_nanos() as u64 * 4 / 5, begin - 1_000_000);
        let after = self.idle(self.affected());
        (self.record.rate_pages_per_s(before) + self.record.rate_pages_per_s(after)) / 2.0
    }

    /// Guest time lost.
    pub fn lost_us(&self) -> f64 {
        self.record.lost_ns(self.affected(), self.full_rate()) / 1e3
    }

    /// Guest time lost in the idle window.
    pub fn idle_lost_us(&self) -> f64 {
        let idle = self.idle(self.affected());
        self.record.lost_ns(idle, self.full_rate()) / 1e3
    }
}

/// One snapshot and its surroundings.
pub struct Run {
    report: Value,
    /// What was seen of the guest.
    pub record: Record,
    /// Of it, what the guest listed.
    pub gaps: Gaps,
    /// From the command until the last protection was gone.
    pub whole: Window,
    /// From the order to pause until the machine was told to run on.
    pub pause: Window,
    /// From the last page in the file until the last protection was gone.
    pub teardown: Window,
    /// Peak of the process's resident memory less resident memory before.
    pub extra_resident_bytes: f64,
    /// Peak of the process's page tables less those before.
    pub extra_page_table_bytes: f64,
}

impl Run {
    pub fn take(machine: &mut Machine, variant: Variant, dir: &Path) -> Result<Self> {
        let path = dir.join("snapshot");
        // For the file, and for copies of pages, which are kept in no more than half as much.
        let bytes = machine.options().memory_bytes;
        warm_host(bytes + bytes / 2);
        fill::reset_peak(machine)?;
        let before = machine.process_memory()?;
        let ruler = Ruler::lay_on_list(machine.progress().clone(), MOST)?;
        wait_before();
        let mut page_tables = before.page_table_bytes;
        machine.begin_snapshot(&path, &variant.parameters(), true)?;
        loop {
            std::thread::sleep(POLL);
            page_tables = page_tables.max(machine.process_memory()?.page_table_bytes);
            let now = machine.execute("query-migrate", json!({}))?;
            if matches!(
                now["status"].as_str(),
                Some("completed" | "failed" | "cancelled")
            ) {
                break;
            }
        }
        let report = machine.wait_snapshot()?;
        let peak = machine.process_memory()?.peak_bytes;
        let number = |field: &str| {
            let value = report[field].as_u64();
            value.with_context(|| format!("a report without {field}"))
        };
        let (begin, free) = (number("begin_at_ns")?, number("free_at_ns")?);
        let pause = number("pause_at_ns")?;
        let whole = Window::new(begin, free);
        let pause = Window::new(pause, pause + number("pause_us")? * 1000);
        let teardown = Window::new(free - number("teardown_us")? * 1000, free);
        wait_for_idle(whole);
        let record = ruler.read();
        let gaps = record.gaps()?;
        std::fs::remove_file(&path).context("cannot remove a snapshot")?;
        Ok(Self {
            record,
            gaps,
            whole,
            pause,
            teardown,
            extra_resident_bytes: peak.saturating_sub(before.resident_bytes) as f64,
            extra_page_table_bytes: page_tables.saturating_sub(before.page_table_bytes) as f64,
            report,
        })
    }

    pub fn saving(&self) -> Window {
        Window::new(self.pause.to_ns, self.teardown.from_ns)
    }

    pub fn arming(&self) -> Window {
        Window::new(self.whole.from_ns, self.pause.from_ns)
    }

    pub fn idle(&self, phase: Window) -> Window {
        self.around().idle(phase)
    }

    pub fn around(&self) -> Around<'_> {
        Around {
            record: &self.record,
            whole: self.whole,
        }
    }

    /// The longest gap that began in `phase` and does not reach into the pause.
    pub fn longest_us(&self, phase: Window) -> f64 {
        let own = self.gaps.within(phase).filter(|gap| {
            let begins_here = gap.from_ns >= phase.from_ns || phase.from_ns == self.whole.from_ns;
            begins_here && !gap.meets(&self.pause)
        });
        own.map(|gap| gap.ns()).max().unwrap_or(0) as f64 / 1e3
    }

    pub fn idle_longest_us(&self, phase: Window) -> f64 {
        self.gaps.longest_ns(self.idle(phase)) as f64 / 1e3
    }

    pub fn stalls_us(&self) -> Vec<f64> {
        let window = Window::new(self.pause.to_ns, self.whole.to_ns);
        let own = self.gaps.within(window);
        self.as_many_as_faults(own.filter(|gap| !gap.meets(&self.pause)))
    }

    pub fn idle_stalls_us(&self) -> Vec<f64> {
        let window = self.idle(Window::new(self.pause.to_ns, self.whole.to_ns));
        self.as_many_as_faults(self.gaps.within(window))
    }

    fn as_many_as_faults(&self, gaps: impl Iterator<Item = Window>) -> Vec<f64> {
        let mut all: Vec<f64> = gaps.map(|gap| gap.ns() as f64 / 1e3).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all.truncate(self.number("faults") as usize);
        all
    }

    pub fn number(&self, field: &str) -> f64 {
        self.report[field].as_f64().unwrap_or(0.0)
    }
}
