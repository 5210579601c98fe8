//! Slowing a guest down that writes faster than the channel takes it: as QEMU's `auto-converge` all
//! vCPUs alike, or as its `dirty-limit` each by what it writes itself.

use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_sys::page_size;

use super::options::{Convergence, DirtyLimit, Throttle};
use crate::machine::Machine;

/// How long a vCPU that is slowed down runs between two naps, as [`Machine::throttle`] has it.
const SLICE: Duration = Duration::from_millis(10);

/// What slows the guest down, if anything shall.
#[derive(Debug)]
pub(super) enum Brake {
    None,
    All(Throttling),
    Each(Limiting),
}

impl Brake {
    pub(super) fn new(convergence: &Convergence) -> Self {
        match (convergence.dirty_limit, convergence.throttle) {
            (Some(limit), _) => Self::Each(Limiting::new(limit)),
            (None, Some(throttle)) => Self::All(Throttling::new(throttle)),
            (None, None) => Self::None,
        }
    }

    /// A dirty sync: so much was written since the last one, and so much sent. The percentage by
    /// which the slowest vCPU is slowed down from now on, if that changes.
    pub(super) fn sync(
        &mut self,
        machine: &dyn Machine,
        dirtied_bytes: u64,
        sent_bytes: u64,
    ) -> Option<u8> {
        match self {
            Self::None => None,
            Self::All(throttling) => {
                let percent = throttling.sync(dirtied_bytes, sent_bytes)?;
                machine.throttle(percent);
                Some(percent)
            }
            Self::Each(limiting) => {
                limiting.sync(dirtied_bytes, sent_bytes);
                None
            }
        }
    }

    /// Between syncs, as often as one likes: a limit is kept by looking at what each vCPU writes.
    /// What it gives is as of [`Self::sync`].
    pub(super) fn look(&mut self, machine: &dyn Machine, tracker: &dyn Tracker) -> Option<u8> {
        let Self::Each(limiting) = self else {
            return None;
        };
        let since = limiting.since?;
        if since.elapsed() < limiting.period() {
            return None;
        }
        limiting.since = Some(Instant::now());
        let rates = tracker.vcpu_rates();
        let percents = limiting.adjust(&rates)?;
        machine.throttle_each(percents);
        percents.iter().copied().max()
    }
}

/// Whether the guest writes too much, which it must do at two syncs in a row.
#[derive(Debug)]
struct Trigger {
    threshold_percent: u8,
    strikes: u8,
}

impl Trigger {
    fn new(threshold_percent: u8) -> Self {
        Self {
            threshold_percent,
            strikes: 0,
        }
    }

    fn threshold(&self, sent_bytes: u64) -> u64 {
        sent_bytes / 100 * u64::from(self.threshold_percent)
    }

    fn pull(&mut self, dirtied_bytes: u64, sent_bytes: u64) -> bool {
        if dirtied_bytes <= self.threshold(sent_bytes) {
            self.strikes = 0;
            return false;
        }
        self.strikes = (self.strikes + 1) % 2;
        self.strikes == 0
    }
}

/// Keeps each vCPU below a rate of writes. Once it began it goes on until the guest is stopped.
#[derive(Debug)]
pub(super) struct Limiting {
    limit: DirtyLimit,
    trigger: Trigger,
    /// Since when it is kept, or since the last look.
    since: Option<Instant>,
    percents: Vec<u8>,
}

impl Limiting {
    fn new(limit: DirtyLimit) -> Self {
        Self {
            limit,
            trigger: Trigger::new(limit.trigger_threshold),
            since: None,
            percents: Vec::new(),
        }
    }

    /// How long a look takes in, at least. One at a nap only, or at a slice only, would say nothing of
    /// what a vCPU writes with its share of the time.
    fn period(&self) -> Duration {
        let most = self.percents.iter().copied().max().unwrap_or(0);
        let cycle = SLICE * 100 / (100 - u32::from(most.min(99)));
        self.limit.period.max(cycle)
    }

    fn sync(&mut self, dirtied_bytes: u64, sent_bytes: u64) {
        if self.since.is_none() && self.trigger.pull(dirtied_bytes, sent_bytes) {
            tracing::info!(limit = self.limit.bytes_per_s, "vCPUs are limited");
            // The first look is at once: rates are those since the last sync.
            self.since = Instant::now().checked_sub(self.limit.period);
        }
    }

    /// New percentages for what each vCPU wrote in a second, in pages; nothing if they stay.
    ///
    /// What a vCPU wrote while it ran for a share of the time says what it would write in all of it,
    /// and so which share would keep the limit. From that half a step is made: a guest's rate is no
    /// constant, and pages that are written again soon count less the longer one looks.
    fn adjust(&mut self, pages_per_s: &[u64]) -> Option<&[u8]> {
        if pages_per_s.is_empty() {
            return None;
        }
        let before = self.percents.clone();
        self.percents.resize(pages_per_s.len(), 0);
        for (percent, rate) in self.percents.iter_mut().zip(pages_per_s) {
            let share = 1.0 - f64::from(*percent) / 100.0;
            let written = (*rate * page_size() as u64) as f64;
            let wanted = self.limit.bytes_per_s as f64 * share / written.max(1.0);
            let next = (share + wanted.min(1.0)) / 2.0;
            // A share that is all but whole is whole.
            let next = if next > 0.98 { 1.0 } else { next };
            *percent = (100.0 * (1.0 - next)).round().clamp(0.0, 99.0) as u8;
        }
        (self.percents != before).then_some(self.percents.as_slice())
    }
}

/// Decides, at each dirty sync, how much the vCPUs are slowed down.
#[derive(Debug)]
pub(super) struct Throttling {
    options: Throttle,
    trigger: Trigger,
    percent: u8,
}

impl Throttling {
    fn new(options: Throttle) -> Self {
        Self {
            options,
            trigger: Trigger::new(options.trigger_threshold),
            percent: 0,
        }
    }

    /// Between two syncs so much was written by the guest, and so much sent. The new percentage, if
    /// it changes.
    fn sync(&mut self, dirtied_bytes: u64, sent_bytes: u64) -> Option<u8> {
        if !self.trigger.pull(dirtied_bytes, sent_bytes) {
            return None;
        }
        let options = &self.options;
        let more = match self.percent {
            0 => options.initial,
            now => {
                let threshold = self.trigger.threshold(sent_bytes);
                let step = if options.tailslow {
                    ideal_step(now, dirtied_bytes, threshold).min(options.increment)
                } else {
                    options.increment
                };
                now.saturating_add(step)
            }
        };
        let percent = more.min(options.max);
        (percent != std::mem::replace(&mut self.percent, percent)).then_some(percent)
    }
}

/// So much more would bring what is dirtied down to the threshold, if writes are slowed down as
/// vCPUs are.
fn ideal_step(percent: u8, dirtied_bytes: u64, threshold: u64) -> u8 {
    let left = f64::from(100 - percent.min(99));
    let ideal = 100.0 - left * threshold as f64 / dirtied_bytes.max(1) as f64;
    (ideal - f64::from(percent)).ceil().clamp(1.0, 99.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_writes_too_much_twice_is_slowed_down_more_and_more() {
        let mut throttling = Throttling::new(Throttle::default());
        let steps: Vec<_> = (0..22).map(|_| throttling.sync(80, 100)).collect();
        let mut expected = Vec::new();
        for percent in [20, 30, 40, 50, 60, 70, 80, 90, 99] {
            expected.extend([None, Some(percent)]);
        }
        expected.extend([None; 4]);
        assert_eq!(steps, expected);
    }

    #[test]
    fn one_that_writes_little_is_left_alone() {
        let mut throttling = Throttling::new(Throttle::default());
        for _ in 0..10 {
            assert_eq!(throttling.sync(800, 1000), None);
            assert_eq!(throttling.sync(500, 1000), None);
        }
    }

    #[test]
    fn near_the_end_steps_are_as_small_as_they_may_be() {
        let options = Throttle {
            tailslow: true,
            ..Throttle::default()
        };
        let mut throttling = Throttling::new(options);
        let mut sync = |dirtied| {
            (
                throttling.sync(dirtied, 1000),
                throttling.sync(dirtied, 1000),
            )
                .1
        };
        assert_eq!(sync(1000), Some(20));
        assert_eq!(sync(1000), Some(30));
        // 70 left for 520: 67 for 500.
        assert_eq!(sync(520), Some(33));
    }

    fn limiting(mib_per_s: u64) -> Limiting {
        Limiting::new(DirtyLimit {
            bytes_per_s: mib_per_s << 20,
            ..DirtyLimit::default()
        })
    }

    #[test]
    fn each_vcpu_gets_what_keeps_its_limit() {
        // 1 MiB/s are 256 pages a second. One vCPU writes 100 times that in all its time, one half.
        let mut limiting = limiting(1);
        let mut percents = vec![0, 0];
        for _ in 0..10 {
            let runs = |vcpu: usize| 1.0 - f64::from(percents[vcpu]) / 100.0;
            let rates = [(25_600.0 * runs(0)) as u64, (128.0 * runs(1)) as u64];
            if let Some(new) = limiting.adjust(&rates) {
                percents = new.to_vec();
            }
        }
        assert_eq!(percents, [99, 0]);
        // It writes less: it may run again.
        for _ in 0..10 {
            let runs = 1.0 - f64::from(percents[0]) / 100.0;
            limiting.adjust(&[(200.0 * runs) as u64, 0]);
            percents.clone_from(&limiting.percents);
        }
        assert_eq!(percents, [0, 0]);
    }

    #[test]
    fn a_look_takes_in_a_nap_and_a_slice() {
        let mut limiting = Limiting::new(DirtyLimit {
            period: Duration::from_millis(25),
            ..DirtyLimit::default()
        });
        for (percents, ms) in [(vec![], 25), (vec![50, 0], 25), (vec![0, 99], 1000)] {
            limiting.percents = percents;
            assert_eq!(limiting.period(), Duration::from_millis(ms));
        }
    }

    #[test]
    fn a_limit_is_kept_once_the_guest_wrote_too_much_twice() {
        let mut limiting = limiting(1);
        for (dirtied, begun) in [(80, false), (10, false), (80, false), (80, true), (0, true)] {
            limiting.sync(dirtied, 100);
            assert_eq!(limiting.since.is_some(), begun, "{dirtied}");
        }
        assert_eq!(limiting.adjust(&[]), None);
    }
}
