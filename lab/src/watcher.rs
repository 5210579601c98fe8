//! The outside clock: how the guest gets on, as a third process sees it.
//!
//! A thread looks at the guest's counters every 50 us and notes them with the time, by the host's
//! CLOCK_MONOTONIC. Everything else is arithmetic on these samples:
//!
//! - A *gap* of a vCPU is the time from the first sample that shows a count to the last sample
//!   that shows the same count. It is a lower bound: the guest stood still at least so long, and
//!   at most two samples longer. Where the watcher itself was not given a CPU it sees nothing, and
//!   says for how long ([`GapSeen::blind_ns`]).
//! - The *rate* in a window is the writes of all vCPUs in it, divided by its length; counts
//!   between two samples are interpolated.
//! - *Guest time lost* in a window is its length less the time that its writes take at a
//!   reference rate, which was measured in an undisturbed window of the same run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{ProgressFile, now_ns};

/// Time between two samples.
pub const PERIOD: Duration = Duration::from_micros(50);

/// A thread that samples; ended by [`Watcher::stop`] or by dropping it.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Record>>,
}

/// What a watcher saw.
#[derive(Clone, Debug, Default)]
pub struct Record {
    vcpus: usize,
    at_ns: Vec<u64>,
    /// For each sample, the count of each vCPU.
    writes: Vec<u64>,
    full: bool,
}

/// A time without progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GapSeen {
    /// How long, at least.
    pub ns: u64,
    /// When it began.
    pub at_ns: u64,
    /// Of which vCPU.
    pub vcpu: usize,
    /// The longest time between two samples in the same window: a gap may be so much longer than
    /// it was seen to be.
    pub blind_ns: u64,
}

impl Watcher {
    /// Begins to sample; what comes later than `at_most` is not noted.
    pub fn start(progress: Arc<ProgressFile>, at_most: Duration) -> io::Result<Self> {
        Self::follow(vec![progress], at_most)
    }

    /// The same for a guest that moves between machines: it is wherever it has done most.
    pub fn follow(progress: Vec<Arc<ProgressFile>>, at_most: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = (at_most.as_micros() / PERIOD.as_micros()) as usize + 1;
        let mut record = Record {
            vcpus: progress.iter().map(|one| one.vcpus()).min().unwrap_or(0),
            at_ns: Vec::with_capacity(samples),
            writes: Vec::new(),
            full: false,
        };
        record.writes.reserve(samples * record.vcpus);
        // Before anything may have happened.
        record.take(&progress);
        let ended = stop.clone();
        let watch = move || {
            paguro_sys::boost_timer();
            paguro_sys::raise_priority();
            while !ended.load(Ordering::Acquire) && record.at_ns.len() < samples {
                record.take(&progress);
                std::thread::sleep(PERIOD);
            }
            record.full = record.at_ns.len() == samples;
            record.take(&progress);
            record
        };
        let thread = std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(watch)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it and gives what it saw.
    pub fn stop(mut self) -> Record {
        self.end().unwrap_or_default()
    }

    fn end(&mut self) -> Option<Record> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

impl Record {
    fn take(&mut self, progress: &[Arc<ProgressFile>]) {
        self.at_ns.push(now_ns());
        for vcpu in 0..self.vcpus {
            let most = progress.iter().map(|one| one.writes(vcpu)).max();
            self.writes.push(most.unwrap_or(0));
        }
    }

    /// Whether it ran out of room before it was stopped.
    pub fn is_cut_short(&self) -> bool {
        self.full
    }

    /// The longest gap of any vCPU within a window: of a gap that reaches beyond it, the part
    /// inside counts.
    pub fn longest_gap(&self, from_ns: u64, to_ns: u64) -> GapSeen {
        self.gap(from_ns, to_ns, true)
    }

    /// The longest gap of any vCPU that overlaps a window, with its whole length: what the guest
    /// saw of something that happened then.
    pub fn gap_across(&self, from_ns: u64, to_ns: u64) -> GapSeen {
        self.gap(from_ns, to_ns, false)
    }

    /// Writes of all vCPUs a second.
    pub fn rate_pages_per_s(&self, from_ns: u64, to_ns: u64) -> f64 {
        let length = to_ns.saturating_sub(from_ns);
        if length == 0 {
            return 0.0;
        }
        (self.total_at(to_ns) - self.total_at(from_ns)) * 1e9 / length as f64
    }

    /// Guest time lost in a window, in nanoseconds, the guest doing `reference` writes a second
    /// where nothing disturbs it. Negative if it was faster.
    pub fn time_lost_ns(&self, from_ns: u64, to_ns: u64, reference_pages_per_s: f64) -> f64 {
        if reference_pages_per_s <= 0.0 {
            return 0.0;
        }
        let done = self.total_at(to_ns) - self.total_at(from_ns);
        to_ns.saturating_sub(from_ns) as f64 - done * 1e9 / reference_pages_per_s
    }

    /// When the count of any vCPU was first seen to differ from its first sample: of a machine
    /// that is just being started, its first instruction.
    pub fn first_change_ns(&self) -> Option<u64> {
        let first = self.writes.get(..self.vcpus.max(1))?;
        let mut samples = self.writes.chunks_exact(self.vcpus).zip(&self.at_ns);
        let changed = samples.find(|(writes, _)| *writes != first);
        changed.map(|(_, at_ns)| *at_ns)
    }

    fn gap(&self, from_ns: u64, to_ns: u64, clip: bool) -> GapSeen {
        // One sample on either side belongs to the window.
        let first = self.at_ns.partition_point(|&at| at < from_ns);
        let first = first.saturating_sub(1);
        let end = self.at_ns.partition_point(|&at| at <= to_ns) + 1;
        let end = end.min(self.at_ns.len());
        let mut longest = GapSeen::default();
        if first >= end {
            return longest;
        }
        let at_ns = &self.at_ns[first..end];
        let blind_ns = at_ns.windows(2).map(|two| two[1] - two[0]).max();
        for vcpu in 0..self.vcpus {
            let writes = |sample: usize| self.writes[sample * self.vcpus + vcpu];
            let mut sample = first;
            while sample < end {
                let count = writes(sample);
                let (mut begin, mut last) = (sample, sample);
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
                    longest = GapSeen {
                        ns,
                        at_ns: begin_ns,
                        vcpu,
                        blind_ns: 0,
                    };
                }
                sample = last + 1;
            }
        }
        longest.blind_ns = blind_ns.unwrap_or(0);
        longest
    }

    /// Writes of all vCPUs at a moment.
    fn total_at(&self, at_ns: u64) -> f64 {
        let after = self.at_ns.partition_point(|&at| at <= at_ns);
        let total = |sample: usize| {
            let counts = &self.writes[sample * self.vcpus..(sample + 1) * self.vcpus];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples at 0, 10, 20 ... with these counts of one vCPU.
    fn record(writes: &[u64]) -> Record {
        Record {
            vcpus: 1,
            at_ns: (0..writes.len() as u64).map(|sample| sample * 10).collect(),
            writes: writes.to_vec(),
            full: false,
        }
    }

    #[test]
    fn a_gap_is_the_time_between_samples_with_one_count() {
        let record = record(&[1, 2, 2, 2, 3, 4, 4, 5]);
        let gap = record.longest_gap(0, 70);
        assert_eq!((gap.ns, gap.at_ns, gap.blind_ns), (20, 10, 10));
        assert_eq!(record.longest_gap(40, 70).ns, 10);
    }

    #[test]
    fn of_a_gap_that_reaches_beyond_the_window_the_part_inside_counts() {
        let record = record(&[1, 1, 1, 1, 1, 2]);
        assert_eq!(record.longest_gap(15, 33).ns, 18);
        assert_eq!(record.gap_across(15, 33).ns, 40);
    }

    #[test]
    fn the_gap_of_any_vcpu_counts() {
        let record = Record {
            vcpus: 2,
            at_ns: vec![0, 10, 20],
            writes: vec![1, 7, 2, 7, 3, 7],
            full: false,
        };
        let gap = record.longest_gap(0, 20);
        assert_eq!((gap.ns, gap.vcpu), (20, 1));
    }

    #[test]
    fn rates_and_losses_are_those_of_the_window() {
        // A write a nanosecond, then nothing for 20 ns, then again.
        let record = record(&[0, 10, 20, 20, 20, 30, 40]);
        assert_eq!(record.rate_pages_per_s(0, 20), 1e9);
        assert_eq!(record.rate_pages_per_s(20, 40), 0.0);
        assert_eq!(record.time_lost_ns(0, 60, 1e9), 20.0);
        assert_eq!(record.time_lost_ns(0, 25, 1e9), 5.0);
        assert_eq!(record.first_change_ns(), Some(10));
    }

    #[test]
    fn nothing_is_seen_where_nothing_was_sampled() {
        let nothing = Record::default();
        assert_eq!(nothing.longest_gap(0, 100), GapSeen::default());
        assert_eq!(nothing.rate_pages_per_s(0, 100), 0.0);
        assert_eq!(nothing.first_change_ns(), None);
    }
}
