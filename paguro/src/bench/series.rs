//! Several snapshots of one machine, and what its guest saw of each.
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
use serde::Serialize;
use serde_json::{Value, json};

use super::fill;
use super::ruler::{Record, Ruler, Window};
use super::stats::{Spread, quantile};
use crate::lab::machine::Parameters;
use crate::lab::{Machine, now_ns};

/// How often a snapshot is asked how far it is. Often enough to see page tables grow, and seldom
/// enough not to be what the guest waits for.
const POLL: Duration = Duration::from_millis(10);

/// The guest alone, before a snapshot.
const BEFORE: Duration = Duration::from_millis(200);

/// After the last protection is gone the guest may still pay for what KVM forgot: this long it
/// counts as the snapshot's, and only then the idle window begins.
pub const AFTER_NS: u64 = 200_000_000;

/// A way to take snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As it is meant.
    Default,
    /// All memory is armed inside the pause.
    ArmInPause,
    /// A fault copies and releases one page.
    PageChunks,
    /// 20 ms are slept in the pause.
    Sleep,
}

/// What [`Variant::Sleep`] sleeps.
pub const SLEEP_US: u64 = 20_000;

impl Variant {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ArmInPause => "arm in pause",
            Self::PageChunks => "4k chunks",
            Self::Sleep => "20 ms sleep",
        }
    }

    /// The parameters that make it.
    fn parameters(self) -> Parameters {
        let (name, value) = match self {
            Self::Default => ("x-paguro-pause-sleep-us", json!(0)),
            Self::ArmInPause => ("x-paguro-arm-in-pause", json!(true)),
            Self::PageChunks => ("x-paguro-chunk-size", json!(4096)),
            Self::Sleep => ("x-paguro-pause-sleep-us", json!(SLEEP_US)),
        };
        // A huge page that is kept whole is a chunk of 2 MiB whatever is asked for.
        let huge = if self == Self::PageChunks { "split" } else { "keep" };
        let all = [
            (name, value),
            ("x-paguro-huge-pages", json!(huge)),
            ("x-paguro-sync", json!(false)),
        ];
        Parameters::from_iter(all.map(|(name, value)| (name.to_owned(), value)))
    }
}

/// Which machine.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct What {
    /// RAM.
    pub memory_bytes: u64,
    /// RAM that the guest goes over; 0 if it is idle.
    pub set_bytes: u64,
    /// `4k` or `thp`.
    pub pages: &'static str,
    /// What the guest does: `idle` (it counts, and leaves its memory alone), `write` or `read`
    /// (pages of the set in random order, as fast as it goes).
    pub load: &'static str,
    /// What the page buffer is configured to hold.
    pub page_buffer_bytes: u64,
    /// RAM in huge pages when the first snapshot began.
    pub huge_bytes: u64,
}

/// The longest gap, and the longest in an idle window of the same length in the same run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Gaps {
    /// In the snapshot, microseconds; 0 is one below the threshold of 20 us.
    pub seen_us: Spread,
    /// In the idle window.
    pub idle_us: Spread,
}

/// Stalls: of each snapshot as many of the longest gaps, from the end of the pause until all
/// protection is gone, as the engine answered faults; of all runs together. (All gaps would be mostly
/// the host's timer, which takes 50 us from a guest time and again.)
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stalls {
    /// In one run, on average.
    pub count: f64,
    /// Half of them are no longer.
    pub p50_us: f64,
    /// 99 of 100 are no longer.
    pub p99_us: f64,
    /// The same of as many of the longest gaps of the idle window.
    pub idle_p50_us: f64,
    /// The same of as many of the longest gaps of the idle window.
    pub idle_p99_us: f64,
}

/// What a few snapshots of one machine read.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Of which machine.
    #[serde(flatten)]
    pub what: What,
    /// How the snapshots were taken.
    pub variant: Variant,
    /// How many.
    pub runs: usize,
    /// See the module.
    pub arming: Gaps,
    /// See the module.
    pub pause: Gaps,
    /// See the module.
    pub saving: Gaps,
    /// See the module.
    pub teardown: Gaps,
    /// See the module.
    pub whole: Gaps,
    /// Longest gap of the whole less longest gap of the idle window, run by run.
    pub excess_us: Spread,
    /// Longest still of the outside clock alone that reached into the pause.
    pub pause_still_us: Spread,
    /// By how much the outside clock alone disagrees: longest gap less longest still in it.
    pub clock_difference_us: Spread,
    /// Stalls while saving and tearing down.
    pub stalls: Stalls,
    /// Guest time lost, from the command until 200 ms after the last protection was gone. Full rate
    /// is that of the guest just before and in the idle window, on average.
    pub lost_us: Spread,
    /// The same in an idle window of the same length: what the host takes anyway.
    pub idle_lost_us: Spread,
    /// Pages a second that the guest writes (or reads) at full rate.
    pub full_rate_pages_per_s: f64,
    /// The engine's own numbers.
    pub engine: Engine,
    /// Peak of the process's resident memory less resident memory before.
    pub extra_resident_bytes: Spread,
    /// Peak of the process's page tables less those before.
    pub extra_page_table_bytes: Spread,
}

/// Of the engine's report.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Engine {
    pub setup_us: Spread,
    pub pause_us: Spread,
    pub save_us: Spread,
    pub teardown_us: Spread,
    pub total_us: Spread,
    pub faults: Spread,
    pub fault_pages: Spread,
    pub arm_rounds: Spread,
    pub rearmed_pages: Spread,
    pub normal_pages: Spread,
    pub peak_buffer_bytes: Spread,
    pub set_bytes: Spread,
}

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
        (self.record.rate(before) + self.record.rate(after)) / 2.0
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
struct Run {
    report: Value,
    record: Record,
    whole: Window,
    pause: Window,
    teardown: Window,
    extra_resident_bytes: f64,
    extra_page_table_bytes: f64,
}

/// Takes `runs` snapshots of a machine whose memory is warm. `next` is called after each.
pub fn measure(
    machine: &mut Machine,
    what: What,
    variant: Variant,
    runs: usize,
    dir: &Path,
    next: &mut dyn FnMut() -> Result<()>,
) -> Result<Series> {
    let mut all = Vec::with_capacity(runs);
    for _ in 0..runs {
        all.push(Run::take(machine, variant, dir)?);
        next()?;
    }
    Ok(Series::of(what, variant, &all))
}

impl Run {
    fn take(machine: &mut Machine, variant: Variant, dir: &Path) -> Result<Self> {
        let path = dir.join("snapshot");
        fill::reset_peak(machine)?;
        let before = machine.process_memory()?;
        let ruler = Ruler::lay(machine.progress().path())?;
        wait_before();
        let mut page_tables = before.page_table_bytes;
        machine.begin_snapshot(&path, &variant.parameters(), true)?;
        loop {
            std::thread::sleep(POLL);
            page_tables = page_tables.max(machine.process_memory()?.page_table_bytes);
            let now = machine.execute("query-migrate", json!({}))?;
            if matches!(now["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
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
        let record = ruler.read()?;
        std::fs::remove_file(&path).context("cannot remove a snapshot")?;
        Ok(Self {
            record,
            whole,
            pause,
            teardown,
            extra_resident_bytes: peak.saturating_sub(before.resident_bytes) as f64,
            extra_page_table_bytes: page_tables.saturating_sub(before.page_table_bytes) as f64,
            report,
        })
    }

    fn saving(&self) -> Window {
        Window::new(self.pause.to_ns, self.teardown.from_ns)
    }

    fn arming(&self) -> Window {
        Window::new(self.whole.from_ns, self.pause.from_ns)
    }

    fn idle(&self, phase: Window) -> Window {
        self.around().idle(phase)
    }

    fn around(&self) -> Around<'_> {
        Around {
            record: &self.record,
            whole: self.whole,
        }
    }

    /// The longest gap that began in `phase` and does not reach into the pause.
    fn longest_us(&self, phase: Window) -> f64 {
        let own = self.record.gaps_in(phase).filter(|gap| {
            let begins_here = gap.from_ns >= phase.from_ns || phase.from_ns == self.whole.from_ns;
            begins_here && !gap.meets(&self.pause)
        });
        own.map(|gap| gap.ns()).max().unwrap_or(0) as f64 / 1e3
    }

    fn idle_longest_us(&self, phase: Window) -> f64 {
        self.record.longest_gap_ns(self.idle(phase)) as f64 / 1e3
    }

    fn stalls_us(&self) -> Vec<f64> {
        let window = Window::new(self.pause.to_ns, self.whole.to_ns);
        let own = self.record.gaps_in(window);
        self.as_many_as_faults(own.filter(|gap| !gap.meets(&self.pause)))
    }

    fn idle_stalls_us(&self) -> Vec<f64> {
        let window = self.idle(Window::new(self.pause.to_ns, self.whole.to_ns));
        self.as_many_as_faults(self.record.gaps_in(window))
    }

    fn as_many_as_faults(&self, gaps: impl Iterator<Item = Window>) -> Vec<f64> {
        let mut all: Vec<f64> = gaps.map(|gap| gap.ns() as f64 / 1e3).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all.truncate(self.number("faults") as usize);
        all
    }

    fn number(&self, field: &str) -> f64 {
        self.report[field].as_f64().unwrap_or(0.0)
    }
}

impl Series {
    fn of(what: What, variant: Variant, all: &[Run]) -> Self {
        let spread = |value: &dyn Fn(&Run) -> f64| Spread::of(all.iter().map(value));
        let phase = |window: &dyn Fn(&Run) -> Window| Gaps {
            seen_us: spread(&|run| run.longest_us(window(run))),
            idle_us: spread(&|run| run.idle_longest_us(window(run))),
        };
        let whole_us = |run: &Run| run.record.longest_gap_ns(run.whole) as f64 / 1e3;
        let still_us = |run: &Run| run.record.longest_still_ns(run.whole) as f64 / 1e3;
        let stalls: Vec<f64> = all.iter().flat_map(Run::stalls_us).collect();
        let idle_stalls: Vec<f64> = all.iter().flat_map(Run::idle_stalls_us).collect();
        let runs = all.len().max(1) as f64;
        let field = |name: &'static str| spread(&|run| run.number(name));
        Self {
            what,
            variant,
            runs: all.len(),
            arming: phase(&Run::arming),
            pause: Gaps {
                seen_us: spread(&|run| run.record.longest_gap_ns(run.pause) as f64 / 1e3),
                idle_us: spread(&|run| run.idle_longest_us(run.pause)),
            },
            saving: phase(&Run::saving),
            teardown: phase(&|run| run.teardown),
            whole: Gaps {
                seen_us: spread(&whole_us),
                idle_us: spread(&|run| run.idle_longest_us(run.whole)),
            },
            excess_us: spread(&|run| whole_us(run) - run.idle_longest_us(run.whole)),
            pause_still_us: spread(&|run| run.record.longest_still_ns(run.pause) as f64 / 1e3),
            clock_difference_us: spread(&|run| whole_us(run) - still_us(run)),
            stalls: Stalls {
                count: stalls.len() as f64 / runs,
                p50_us: quantile(&stalls, 0.5).unwrap_or(0.0),
                p99_us: quantile(&stalls, 0.99).unwrap_or(0.0),
                idle_p50_us: quantile(&idle_stalls, 0.5).unwrap_or(0.0),
                idle_p99_us: quantile(&idle_stalls, 0.99).unwrap_or(0.0),
            },
            lost_us: spread(&|run| run.around().lost_us()),
            idle_lost_us: spread(&|run| run.around().idle_lost_us()),
            full_rate_pages_per_s: spread(&|run| run.around().full_rate()).median,
            engine: Engine {
                setup_us: field("setup_us"),
                pause_us: field("pause_us"),
                save_us: field("save_us"),
                teardown_us: field("teardown_us"),
                total_us: field("total_us"),
                faults: field("faults"),
                fault_pages: field("fault_pages"),
                arm_rounds: field("arm_rounds"),
                rearmed_pages: field("rearmed_pages"),
                normal_pages: field("normal_pages"),
                peak_buffer_bytes: field("peak_buffer_bytes"),
                set_bytes: field("set_bytes"),
            },
            extra_resident_bytes: spread(&|run| run.extra_resident_bytes),
            extra_page_table_bytes: spread(&|run| run.extra_page_table_bytes),
        }
    }
}
