//! Steps that a guest hardly feels.

use std::time::{Duration, Instant};

use crate::sizes::GRANULE;

/// A call that takes longer is made smaller.
const LONG: Duration = Duration::from_micros(400);
/// A call that takes less may be made larger: half of what the guest may wait is a round trip to
/// all vCPUs, whatever the size.
const SHORT: Duration = Duration::from_micros(150);
/// Pages in the largest call.
const MOST_PAGES: usize = 64 * GRANULE;
/// Work after which there is a breath.
const BREATH_AFTER: Duration = Duration::from_micros(60);

/// How large a step of arming is, and what a step costs.
#[derive(Debug)]
pub(super) struct Pace {
    step: usize,
    calls: u64,
    pages: u64,
    spent_ns: u64,
    since_breath: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            step: GRANULE,
            calls: 0,
            pages: 0,
            spent_ns: 0,
            since_breath: Duration::ZERO,
        }
    }
}

impl Pace {
    /// Pages in the next step.
    pub(super) fn step(&self) -> usize {
        self.step
    }

    /// Counts a call; whether it is time for a breath.
    pub(super) fn count(&mut self, pages: usize, took: Duration) -> bool {
        self.calls += 1;
        self.pages += pages as u64;
        self.spent_ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if took > LONG {
            self.step = (self.step / 2).max(GRANULE);
        } else if took < SHORT && pages >= self.step {
            self.step = (self.step * 2).min(MOST_PAGES);
        }
        self.since_breath += took;
        let due = self.since_breath > BREATH_AFTER;
        if due {
            self.since_breath = Duration::ZERO;
        }
        due
    }

    /// What arming that many pages in that many calls will cost.
    pub(super) fn forecast_ns(&self, calls: usize, pages: usize) -> u64 {
        let per_page = self.spent_ns / self.pages.max(1);
        calls as u64 * 5_000 + pages as u64 * per_page
    }
}

/// Lets vCPUs that wait for the address space have it.
pub(super) fn breathe() {
    std::thread::sleep(Duration::from_micros(30));
}

/// How long something took.
pub(super) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = what();
    (done, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(40);

    #[test]
    fn steps_grow_while_they_are_short_and_shrink_when_they_are_long() {
        let mut pace = Pace::default();
        assert_eq!(pace.step(), GRANULE);
        pace.count(GRANULE, FAST);
        assert_eq!(pace.step(), 2 * GRANULE);
        pace.count(GRANULE, FAST);
        assert_eq!(pace.step(), 2 * GRANULE, "less than a step says nothing");
        for _ in 0..10 {
            pace.count(pace.step(), FAST);
        }
        assert_eq!(pace.step(), MOST_PAGES);
        for _ in 0..10 {
            pace.count(pace.step(), 2 * LONG);
        }
        assert_eq!(pace.step(), GRANULE, "no huge page is cut");
    }

    #[test]
    fn there_is_a_breath_after_some_work() {
        let mut pace = Pace::default();
        let breaths: Vec<bool> = (0..4).map(|_| pace.count(1, FAST)).collect();
        assert_eq!(breaths, [false, true, false, true]);
    }

    #[test]
    fn what_is_left_costs_what_it_cost_before() {
        let mut pace = Pace::default();
        assert_eq!(pace.forecast_ns(2, 100), 10_000, "nothing is known yet");
        pace.count(100, Duration::from_micros(50));
        assert_eq!(pace.forecast_ns(2, 100), 60_000);
    }
}
