//! The ruler: a thread outside the machine that watches the guest's counters by the host's clock.
//!
//! Every 50 us it notes how many writes each vCPU has posted, and the time (CLOCK_MONOTONIC). All else is
//! arithmetic on these looks:
//!
//! * A **still** of a vCPU is the time from the first to the last look at the same number of writes. The
//!   guest stood still at least so long, and at most two looks longer. Where the ruler itself was not
//!   given a CPU it sees nothing, and says for how long ([`Still::blind_ns`]).
//! * The **rate** in a window is the writes of all vCPUs in it, divided by its length; between two looks
//!   as if they came evenly.
//! * **Time lost** in a window is its length less the time in which the guest, at its full rate, would
//!   have made the writes that it made.
//! * A **gap** is the time between two posts of a vCPU that follow each other, if it reached the
//!   machine's threshold. The guest measures its length and lists it; where it lies in time, and how long
//!   a tick of the guest is, say the looks ([`Record::gaps`]). So nothing depends on which clock the
//!   guest is shown, and a ruler that was kept from looking for a while misses nothing. A still, which
//!   needs no clock of the guest, can only be shorter, by the time between two looks: whoever relies on
//!   either compares both with a sleep of known length first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use paguro_workload::progress::{Gap, LAST_TICKS, LONG_GAPS, gaps};

use crate::{ProgressFile, now_ns};

/// Between two looks.
pub const EVERY: Duration = Duration::from_micros(50);

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

/// A ruler that is laid on a guest; taken off by [`Ruler::read`] or by dropping it.
#[derive(Debug)]
pub struct Ruler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Record>>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Record {
    vcpus: usize,
    at_ns: Vec<u64>,
    /// For each look, the count of each vCPU.
    writes: Vec<u64>,
    list: Option<List>,
    full: bool,
}

/// What the first vCPU lists, by its own clock.
#[derive(Clone, Debug, Default)]
struct List {
    /// For each look, the time of its last post.
    ticks: Vec<u64>,
    gaps: Vec<Gap>,
    read: u64,
    overwritten: u64,
}

/// A time without progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Still {
    /// How long, at least.
    pub ns: u64,
    /// When it began.
    pub at_ns: u64,
    /// Of which vCPU.
    pub vcpu: usize,
    /// The longest time between two looks in the same window: a still may be so much longer than it
    /// was seen to be.
    pub blind_ns: u64,
}

impl Ruler {
    /// Begins to watch; what comes later than `at_most` is not noted.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub fn lay(progress: Arc<ProgressFile>, at_most: Duration) -> io::Result<Self> {
        Self::start(vec![progress], at_most, None)
    }

    /// The same, and reads the gaps that the first vCPU lists, of a machine that is there already.
    ///
    /// # Errors
    ///
    /// As [`Self::lay`].
    pub fn lay_on_list(progress: Arc<ProgressFile>, at_most: Duration) -> io::Result<Self> {
        let list = List {
            read: progress.word(0, LONG_GAPS),
            ..List::default()
        };
        Self::start(vec![progress], at_most, Some(list))
    }

    /// As [`Self::lay`], for a guest that moves between machines: it is wherever it has done most.
    ///
    /// # Errors
    ///
    /// As [`Self::lay`].
    pub fn follow(progress: Vec<Arc<ProgressFile>>, at_most: Duration) -> io::Result<Self> {
        Self::start(progress, at_most, None)
    }

    fn start(
        progress: Vec<Arc<ProgressFile>>,
        at_most: Duration,
        mut list: Option<List>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = (at_most.as_micros() / EVERY.as_micros()) as usize + 1;
        let vcpus = progress.iter().map(|one| one.vcpus()).min().unwrap_or(0);
        // Room that is made while it looks would keep it from looking.
        if let Some(list) = &mut list {
            list.ticks.reserve(looks);
            list.gaps.reserve(looks);
        }
        let mut record = Record {
            vcpus,
            at_ns: Vec::with_capacity(looks),
            writes: Vec::with_capacity(looks * vcpus),
            list,
            full: false,
        };
        // Before anything may have happened.
        record.look(&progress);
        let ended = stop.clone();
        let watch = move || {
            paguro_sys::boost_timer();
            paguro_sys::raise_priority();
            while !ended.load(Ordering::Acquire) && record.at_ns.len() < looks {
                record.look(&progress);
                std::thread::sleep(EVERY);
            }
            record.full = record.at_ns.len() == looks;
            record.look(&progress);
            record
        };
        let thread = std::thread::Builder::new()
            .name("ruler".to_owned())
            .spawn(watch)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Takes it off and gives what it saw.
    pub fn read(mut self) -> Record {
        self.end().unwrap_or_default()
    }

    fn end(&mut self) -> Option<Record> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Ruler {
    fn drop(&mut self) {
        self.end();
    }
}

impl Record {
    fn look(&mut self, progress: &[Arc<ProgressFile>]) {
        for vcpu in 0..self.vcpus {
            let most = progress.iter().map(|one| one.writes(vcpu)).max();
            self.writes.push(most.unwrap_or(0));
        }
        let listed = self.list.as_mut().zip(progress.first());
        if let Some((list, progress)) = listed {
            list.ticks.push(progress.word(0, LAST_TICKS));
        }
        // After the counters: a post seen here happened before.
        self.at_ns.push(now_ns());
        let listed = self.list.as_mut().zip(progress.first());
        if let Some((list, progress)) = listed {
            let now = progress.word(0, LONG_GAPS);
            let load = |offset| progress.word(0, offset);
            let note = |gap| list.gaps.push(gap);
            list.overwritten += gaps(list.read, now, load, note);
            list.read = now;
        }
    }

    /// Whether it ran out of room before it was taken off.
    pub fn is_cut_short(&self) -> bool {
        self.full
    }

    /// The gaps that the first vCPU listed.
    ///
    /// # Errors
    ///
    /// They were not read, or not all; or the guest made no progress by which its clock could be read.
    pub fn gaps(&self) -> Result<Gaps> {
        let Some(list) = &self.list else {
            bail!("the guest's list of gaps was not read");
        };
        if list.overwritten > 0 {
            bail!(
                "the guest listed gaps faster than they could be read: {} are lost",
                list.overwritten
            );
        }
        if self.full {
            bail!("it took longer than the ruler could watch");
        }
        let clock = Clock::fit(&self.at_ns, &list.ticks)?;
        let gaps = list.gaps.iter().map(|gap| {
            let from = clock.ns(gap.end_ticks.wrapping_sub(gap.length_ticks));
            Window::new(from, clock.ns(gap.end_ticks))
        });
        Ok(Gaps(gaps.collect()))
    }

    /// The longest still of any vCPU within a window: of one that reaches beyond it, the part inside
    /// counts.
    pub fn longest_still(&self, window: Window) -> Still {
        self.still(window, true)
    }

    /// The longest still of any vCPU that overlaps a window, with its whole length: what the guest saw
    /// of something that happened then.
    pub fn still_across(&self, window: Window) -> Still {
        self.still(window, false)
    }

    /// Writes of all vCPUs a second.
    pub fn rate_pages_per_s(&self, window: Window) -> f64 {
        self.writes_in(window) / (window.ns().max(1) as f64 / 1e9)
    }

    /// Guest time lost in a window, in nanoseconds, the guest doing `full_pages_per_s` where nothing
    /// disturbs it; 0 if it does nothing. Less than 0 for a guest that was faster.
    pub fn lost_ns(&self, window: Window, full_pages_per_s: f64) -> f64 {
        if full_pages_per_s <= 0.0 {
            return 0.0;
        }
        window.ns() as f64 - self.writes_in(window) * 1e9 / full_pages_per_s
    }

    fn writes_in(&self, window: Window) -> f64 {
        self.total_at(window.to_ns) - self.total_at(window.from_ns)
    }

    /// When the count of any vCPU was first seen to differ from its first look: of a machine
    /// that is just being started, its first instruction.
    pub fn first_change_ns(&self) -> Option<u64> {
        let first = self.writes.get(..self.vcpus.max(1))?;
        let mut looks = self.writes.chunks_exact(self.vcpus).zip(&self.at_ns);
        let changed = looks.find(|(writes, _)| *writes != first);
        changed.map(|(_, at_ns)| *at_ns)
    }

    fn still(&self, window: Window, clip: bool) -> Still {
        let Window { from_ns, to_ns } = window;
        // One look on either side belongs to the window.
        let first = self.at_ns.partition_point(|&at| at < from_ns);
        let first = first.saturating_sub(1);
        let end = self.at_ns.partition_point(|&at| at <= to_ns) + 1;
        let end = end.min(self.at_ns.len());
        let mut longest = Still::default();
        if first >= end {
            return longest;
        }
        let at_ns = &self.at_ns[first..end];
        let blind_ns = at_ns.windows(2).map(|two| two[1] - two[0]).max();
        for vcpu in 0..self.vcpus {
            let writes = |look: usize| self.writes[look * self.vcpus + vcpu];
            let mut look = first;
            while look < end {
                let count = writes(look);
                let (mut begin, mut last) = (look, look);
                while !clip && begin > 0 && writes(begin - 1) == count {
                    begin -= 1;
                }
                while last + 1 < if clip { end } else { self.at_ns.len() }
                    && writes(last + 1) == count
                {
                    last += 1;
                }
                let (mut begin_ns, mut last_ns) = (self.at_ns[begin], self.at_ns[last]);
                if clip {
                    begin_ns = begin_ns.max(from_ns);
                    last_ns = last_ns.min(to_ns);
                }
                let ns = last_ns.saturating_sub(begin_ns);
                if ns > longest.ns {
                    longest = Still {
                        ns,
                        at_ns: begin_ns,
                        vcpu,
                        blind_ns: 0,
                    };
                }
                look = last + 1;
            }
        }
        longest.blind_ns = blind_ns.unwrap_or(0);
        longest
    }

    /// Writes of all vCPUs at a moment.
    fn total_at(&self, at_ns: u64) -> f64 {
        let after = self.at_ns.partition_point(|&at| at <= at_ns);
        let total = |look: usize| {
            let counts = &self.writes[look * self.vcpus..(look + 1) * self.vcpus];
            counts.iter().sum::<u64>() as f64
        };
        match (after.checked_sub(1), after < self.at_ns.len()) {
            (None, false) => 0.0,
            (None, true) => total(0),
            (Some(before), false) => total(before),
            (Some(before), true) => {
                let (t0, t1) = (self.at_ns[before], self.at_ns[after]);
                let part = (at_ns - t0) as f64 / (t1 - t0).max(1) as f64;
                total(before) + (total(after) - total(before)) * part
            }
        }
    }
}

/// The gaps that a guest listed, oldest first.
#[derive(Clone, Debug)]
pub struct Gaps(Vec<Window>);

impl Gaps {
    /// Those that reached into a window, whole.
    pub fn within(&self, window: Window) -> impl Iterator<Item = Window> {
        let all = self.0.iter().copied();
        all.filter(move |gap| gap.meets(&window))
    }

    /// The longest of them, in nanoseconds; 0 if none reached the threshold.
    pub fn longest_ns(&self, window: Window) -> u64 {
        self.within(window).map(|gap| gap.ns()).max().unwrap_or(0)
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
    fn fit(at_ns: &[u64], ticks: &[u64]) -> Result<Self> {
        let looks: Vec<(u64, u64)> = at_ns.iter().copied().zip(ticks.iter().copied()).collect();
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            bail!("the ruler saw nothing");
        };
        let passed = last.1.wrapping_sub(first.1) as i64;
        if passed <= 0 {
            bail!("the guest made no progress while it was watched");
        }
        let rough = (last.0 - first.0) as f64 / passed as f64;
        let fifth = (looks.len() / 5).max(1);
        let late = |(ns, ticks): &(u64, u64)| {
            let at = ticks.wrapping_sub(first.1) as i64 as f64 * rough;
            (ns - first.0) as f64 - at
        };
        let soonest = |part: &[(u64, u64)]| {
            let found = part.iter().min_by(|a, b| late(a).total_cmp(&late(b)));
            found.copied().unwrap_or(*first)
        };
        let (early, later) = (
            soonest(&looks[..fifth]),
            soonest(&looks[looks.len() - fifth..]),
        );
        let between = later.1.wrapping_sub(early.1) as i64;
        let ns_per_tick = if between > 0 {
            (later.0 - early.0) as f64 / between as f64
        } else {
            rough
        };
        Ok(Self {
            from_ticks: early.1,
            from_ns: early.0 as f64,
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

    const MS: u64 = 1_000_000;

    /// Looks at 0, 10, 20 ... with these counts of one vCPU.
    fn record(writes: &[u64]) -> Record {
        Record {
            vcpus: 1,
            at_ns: (0..writes.len() as u64).map(|look| look * 10).collect(),
            writes: writes.to_vec(),
            ..Record::default()
        }
    }

    #[test]
    fn a_still_is_the_time_between_looks_at_one_count() {
        let record = record(&[1, 2, 2, 2, 3, 4, 4, 5]);
        let still = record.longest_still(Window::new(0, 70));
        assert_eq!((still.ns, still.at_ns, still.blind_ns), (20, 10, 10));
        assert_eq!(record.longest_still(Window::new(40, 70)).ns, 10);
    }

    #[test]
    fn of_a_still_that_reaches_beyond_the_window_the_part_inside_counts() {
        let record = record(&[1, 1, 1, 1, 1, 2]);
        assert_eq!(record.longest_still(Window::new(15, 33)).ns, 18);
        assert_eq!(record.still_across(Window::new(15, 33)).ns, 40);
    }

    #[test]
    fn the_still_of_any_vcpu_counts() {
        let record = Record {
            vcpus: 2,
            at_ns: vec![0, 10, 20],
            writes: vec![1, 7, 2, 7, 3, 7],
            ..Record::default()
        };
        let still = record.longest_still(Window::new(0, 20));
        assert_eq!((still.ns, still.vcpu), (20, 1));
    }

    #[test]
    fn rates_and_losses_are_those_of_the_window() {
        // A write a nanosecond, then nothing for 20 ns, then again.
        let record = record(&[0, 10, 20, 20, 20, 30, 40]);
        assert_eq!(record.rate_pages_per_s(Window::new(0, 20)), 1e9);
        assert_eq!(record.rate_pages_per_s(Window::new(20, 40)), 0.0);
        assert_eq!(record.lost_ns(Window::new(0, 60), 1e9), 20.0);
        assert_eq!(record.lost_ns(Window::new(0, 25), 1e9), 5.0);
        assert_eq!(record.first_change_ns(), Some(10));
    }

    #[test]
    fn nothing_is_seen_where_nothing_was_looked_at() {
        let nothing = Record::default();
        assert_eq!(nothing.longest_still(Window::new(0, 100)), Still::default());
        assert_eq!(nothing.rate_pages_per_s(Window::new(0, 100)), 0.0);
        assert_eq!(nothing.first_change_ns(), None);
        assert!(nothing.gaps().is_err());
    }

    /// A guest whose clock runs at 2.5 GHz from 7, seen every 50 us with a delay that varies; it
    /// writes once a microsecond but for 20 ms from 100 ms on, and lists that.
    fn listed() -> Record {
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
        let looks = || (0..6000u64).map(|look| look * 50_000);
        let delays = (0..6000u64).map(|look| 300 + look * 7919 % 20_000);
        Record {
            vcpus: 1,
            at_ns: looks().zip(delays).map(|(at, late)| at + late).collect(),
            writes: looks().map(writes).collect(),
            list: Some(List {
                ticks: looks().map(|at| ticks(last_post(at))).collect(),
                gaps: vec![Gap {
                    end_ticks: ticks(120 * MS),
                    length_ticks: 20 * MS * 5 / 2,
                }],
                ..List::default()
            }),
            full: false,
        }
    }

    #[test]
    fn a_gap_reads_what_it_was_by_both_clocks() {
        let record = listed();
        let all = Window::new(0, 300 * MS);
        let gap = record.gaps().unwrap().within(all).next().unwrap();
        assert!(gap.ns().abs_diff(20 * MS) < MS / 100, "{gap:?}");
        assert!(gap.from_ns.abs_diff(100 * MS) < MS / 10, "{gap:?}");
        let still = record.still_across(all).ns;
        assert!(still <= 20 * MS + MS / 10 && still > 19 * MS, "{still}");
    }

    #[test]
    fn a_gap_counts_where_it_reaches_and_nowhere_else() {
        let gaps = listed().gaps().unwrap();
        assert_eq!(gaps.longest_ns(Window::new(0, 90 * MS)), 0);
        assert_eq!(gaps.longest_ns(Window::new(130 * MS, 300 * MS)), 0);
        assert!(gaps.longest_ns(Window::new(110 * MS, 111 * MS)) > 19 * MS);
    }

    #[test]
    fn time_lost_is_the_time_without_progress() {
        let record = listed();
        let full = record.rate_pages_per_s(Window::new(10 * MS, 90 * MS));
        assert!((full - 1e6).abs() < 1e3, "{full}");
        let lost = |from, to| record.lost_ns(Window::new(from, to), full) / MS as f64;
        assert!((lost(90 * MS, 200 * MS) - 20.0).abs() < 0.2);
        assert!(lost(150 * MS, 250 * MS).abs() < 0.2);
    }

    #[test]
    fn the_clock_of_a_guest_that_stands_still_cannot_be_read() {
        let record = Record {
            list: Some(List {
                ticks: vec![9; 10],
                ..List::default()
            }),
            ..record(&[5; 10])
        };
        assert!(record.gaps().is_err());
    }
}
