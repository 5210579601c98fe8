//! The ruler: a thread outside the machine that watches the guest's counters by the host's clock.
//!
//! Every 50 us it notes the time (CLOCK_MONOTONIC), the number of writes that the guest has posted,
//! and the guest's own time of the last post; and it takes over the gaps that the guest lists.
//!
//! * A **gap** is the time between two posts of the guest that follow each other, if it reached the
//!   machine's threshold. The guest measures its length; where it lies in time, and how long a tick
//!   of the guest is, say the notes of the outside clock. So nothing depends on which clock the
//!   guest is shown, and a thread that was kept from looking for a while misses nothing.
//! * A **still** needs no clock of the guest at all: the longest time from the first to the last
//!   look at the same number of writes. It can only be shorter than the gap, by the time between
//!   two looks. A ruler test compares both with a sleep of known length.
//! * **Time lost** in a window is its length less the time in which the guest, at its full rate,
//!   would have made the writes that it made.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_sys::Mapping;
use paguro_workload::progress::{LAST_TICKS, LONG_GAPS, PROGRESS_BYTES, WRITES, gaps};

use crate::now_ns;

/// Between two looks.
const EVERY: Duration = Duration::from_micros(50);

/// Looks for which there is room from the start: ten seconds.
const ROOM: usize = 200_000;

/// A time in between, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Begins here.
    pub from_ns: u64,
    /// Ends here.
    pub to_ns: u64,
}

impl Window {
    /// From here to there.
    pub fn new(from_ns: u64, to_ns: u64) -> Self {
        Self {
            from_ns,
            to_ns: to_ns.max(from_ns),
        }
    }

    /// How long.
    pub fn ns(&self) -> u64 {
        self.to_ns - self.from_ns
    }

    /// Of the same length, beginning elsewhere.
    pub fn moved_by(&self, ns: i64) -> Self {
        Self {
            from_ns: self.from_ns.saturating_add_signed(ns),
            to_ns: self.to_ns.saturating_add_signed(ns),
        }
    }

    /// Whether both have a moment in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.from_ns < other.to_ns && other.from_ns < self.to_ns
    }
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Look {
    ns: u64,
    writes: u64,
    ticks: u64,
}

/// A ruler that is laid on a machine.
pub struct Ruler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Raw>,
}

/// As it was noted, before the two clocks are brought together.
struct Raw {
    looks: Vec<Look>,
    gaps: Vec<paguro_workload::progress::Gap>,
    overwritten: u64,
}

impl Ruler {
    /// Begins to watch the machine that posts its progress to this file.
    pub fn lay(progress: &Path) -> Result<Self> {
        // For writing too, because all mappings are; nothing is written.
        let file = File::options().read(true).write(true).open(progress);
        let file = file.with_context(|| format!("cannot open {}", progress.display()))?;
        let memory = Mapping::shared(file.as_fd(), PROGRESS_BYTES, false)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = std::thread::Builder::new()
            .name("ruler".to_owned())
            .spawn(move || watch(&memory, &ended))?;
        Ok(Self { stop, thread })
    }

    /// Takes it off.
    pub fn read(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(raw) = self.thread.join() else {
            bail!("the ruler's thread panicked");
        };
        Record::new(raw)
    }
}

fn watch(memory: &Mapping, ended: &AtomicBool) -> Raw {
    paguro_sys::boost_timer();
    paguro_sys::raise_priority();
    let load = |offset| {
        let mut word = [0; 8];
        memory.copy_out(offset, &mut word);
        u64::from_ne_bytes(word)
    };
    let mut raw = Raw {
        looks: Vec::with_capacity(ROOM),
        gaps: Vec::with_capacity(ROOM),
        overwritten: 0,
    };
    let mut listed = load(LONG_GAPS);
    while !ended.load(Ordering::Relaxed) {
        let (writes, ticks) = (load(WRITES), load(LAST_TICKS));
        // After the loads: a post seen here happened before.
        raw.looks.push(Look {
            ns: now_ns(),
            writes,
            ticks,
        });
        let now = load(LONG_GAPS);
        raw.overwritten += gaps(listed, now, load, |gap| raw.gaps.push(gap));
        listed = now;
        std::thread::sleep(EVERY);
    }
    raw
}

/// What was seen.
#[derive(Debug)]
pub struct Record {
    looks: Vec<Look>,
    gaps: Vec<Window>,
}

impl Record {
    fn new(raw: Raw) -> Result<Self> {
        if raw.overwritten > 0 {
            bail!(
                "the guest listed gaps faster than they could be read: {} are lost",
                raw.overwritten
            );
        }
        let clock = Clock::fit(&raw.looks)?;
        let gaps = raw
            .gaps
            .iter()
            .map(|gap| {
                let from = clock.ns(gap.end_ticks.wrapping_sub(gap.length_ticks));
                Window::new(from, clock.ns(gap.end_ticks))
            })
            .collect();
        Ok(Self {
            looks: raw.looks,
            gaps,
        })
    }

    /// The gaps that reached into a window, whole, oldest first.
    pub fn gaps_in(&self, window: Window) -> impl Iterator<Item = Window> {
        self.gaps
            .iter()
            .copied()
            .filter(move |gap| gap.meets(&window))
    }

    /// The longest of them, in nanoseconds; 0 if none reached the threshold.
    pub fn longest_gap_ns(&self, window: Window) -> u64 {
        self.gaps_in(window).map(|gap| gap.ns()).max().unwrap_or(0)
    }

    /// The longest still that reached into a window, in nanoseconds.
    pub fn longest_still_ns(&self, window: Window) -> u64 {
        self.looks
            .chunk_by(|one, next| one.writes == next.writes)
            .map(|same| Window::new(same[0].ns, same[same.len() - 1].ns))
            .filter(|still| still.meets(&window))
            .map(|still| still.ns())
            .max()
            .unwrap_or(0)
    }

    /// Writes a second in a window.
    pub fn rate(&self, window: Window) -> f64 {
        let writes = self.writes_at(window.to_ns) - self.writes_at(window.from_ns);
        writes / (window.ns().max(1) as f64 / 1e9)
    }

    /// Guest time lost in a window, in nanoseconds, `rate` taken as full rate. Less than zero for
    /// a guest that was faster.
    pub fn lost_ns(&self, window: Window, rate: f64) -> f64 {
        let writes = self.writes_at(window.to_ns) - self.writes_at(window.from_ns);
        window.ns() as f64 - writes / rate.max(1e-9) * 1e9
    }

    /// Writes until a moment; between two looks as if they came evenly.
    fn writes_at(&self, ns: u64) -> f64 {
        let after = self.looks.partition_point(|look| look.ns <= ns);
        let before = &self.looks[after.saturating_sub(1)];
        let Some(after) = self.looks.get(after).filter(|after| after.ns > before.ns) else {
            return before.writes as f64;
        };
        let share = ns.saturating_sub(before.ns) as f64 / (after.ns - before.ns) as f64;
        before.writes as f64 + share * after.writes.saturating_sub(before.writes) as f64
    }
}

/// The guest's ticks in the host's time: a line through two posts that were seen at once.
struct Clock {
    from_ticks: u64,
    from_ns: f64,
    ns_per_tick: f64,
}

impl Clock {
    /// Finds, in the first and in the last fifth of the looks, the post that was seen soonest.
    fn fit(looks: &[Look]) -> Result<Self> {
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            bail!("the ruler saw nothing");
        };
        let ticks = last.ticks.wrapping_sub(first.ticks) as i64;
        if ticks <= 0 {
            bail!("the guest made no progress while it was watched");
        }
        let rough = (last.ns - first.ns) as f64 / ticks as f64;
        let fifth = (looks.len() / 5).max(1);
        let late = |look: &&Look| {
            let at = look.ticks.wrapping_sub(first.ticks) as i64 as f64 * rough;
            (look.ns - first.ns) as f64 - at
        };
        let soonest = |part: &'_ [Look]| {
            let found = part.iter().min_by(|a, b| late(a).total_cmp(&late(b)));
            found.copied().unwrap_or(*first)
        };
        let (early, later) = (
            soonest(&looks[..fifth]),
            soonest(&looks[looks.len() - fifth..]),
        );
        let between = later.ticks.wrapping_sub(early.ticks) as i64;
        let ns_per_tick = if between > 0 {
            (later.ns - early.ns) as f64 / between as f64
        } else {
            rough
        };
        Ok(Self {
            from_ticks: early.ticks,
            from_ns: early.ns as f64,
            ns_per_tick,
        })
    }

    fn ns(&self, ticks: u64) -> u64 {
        let ticks = ticks.wrapping_sub(self.from_ticks) as i64;
        (self.from_ns + ticks as f64 * self.ns_per_tick).max(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paguro_workload::progress::Gap;

    const MS: u64 = 1_000_000;

    /// A guest whose clock runs at 2.5 GHz from 7, seen every 50 us with a delay that varies; it
    /// writes once a microsecond but for 20 ms from 100 ms on.
    fn record() -> Record {
        let ticks = |ns: u64| 7 + ns * 5 / 2;
        let writes = |ns: u64| match ns {
            0..100_000_000 => ns / 1000,
            100_000_000..120_000_000 => 100_000,
            _ => (ns - 20 * MS) / 1000,
        };
        let last_post = |ns: u64| {
            if (100 * MS..120 * MS).contains(&ns) {
                100 * MS
            } else {
                ns
            }
        };
        let looks = (0..6000u64)
            .map(|look| {
                let at = look * 50_000;
                Look {
                    ns: at + 300 + look * 7919 % 20_000,
                    writes: writes(at),
                    ticks: ticks(last_post(at)),
                }
            })
            .collect();
        let gap = Gap {
            end_ticks: ticks(120 * MS),
            length_ticks: 20 * MS * 5 / 2,
        };
        Record::new(Raw {
            looks,
            gaps: vec![gap],
            overwritten: 0,
        })
        .unwrap()
    }

    #[test]
    fn a_gap_reads_what_it_was_by_both_clocks() {
        let record = record();
        let all = Window::new(0, 300 * MS);
        let gap = record.gaps_in(all).next().unwrap();
        assert!(gap.ns().abs_diff(20 * MS) < MS / 100, "{gap:?}");
        assert!(gap.from_ns.abs_diff(100 * MS) < MS / 10, "{gap:?}");
        let still = record.longest_still_ns(all);
        assert!(still <= 20 * MS + MS / 10 && still > 19 * MS, "{still}");
    }

    #[test]
    fn a_gap_counts_where_it_reaches_and_nowhere_else() {
        let record = record();
        assert_eq!(record.longest_gap_ns(Window::new(0, 90 * MS)), 0);
        assert_eq!(record.longest_gap_ns(Window::new(130 * MS, 300 * MS)), 0);
        assert!(record.longest_gap_ns(Window::new(110 * MS, 111 * MS)) > 19 * MS);
    }

    #[test]
    fn time_lost_is_the_time_without_progress() {
        let record = record();
        let full = record.rate(Window::new(10 * MS, 90 * MS));
        assert!((full - 1e6).abs() < 1e3, "{full}");
        let lost = record.lost_ns(Window::new(90 * MS, 200 * MS), full) / MS as f64;
        assert!((lost - 20.0).abs() < 0.2, "{lost}");
        let none = record.lost_ns(Window::new(150 * MS, 250 * MS), full) / MS as f64;
        assert!(none.abs() < 0.2, "{none}");
    }

    #[test]
    fn a_guest_that_stands_still_cannot_be_measured() {
        let look = Look {
            ns: 1,
            writes: 5,
            ticks: 9,
        };
        let raw = Raw {
            looks: vec![look; 10],
            gaps: Vec::new(),
            overwritten: 0,
        };
        assert!(Record::new(raw).is_err());
    }
}
