//! A limit of so much a second, kept by waiting.

use std::time::{Duration, Instant};

/// Whoever is behind by more than this begins anew, and does not catch up.
const BEHIND: Duration = Duration::from_millis(100);

/// Keeps to a rate, of bytes or of pages, which may change at any time: what was done before a change
/// is not held against the new one, or everything would stand still until it were.
#[derive(Debug)]
pub struct RateLimit {
    began: Instant,
    from: u64,
    rate: u64,
    behind: Duration,
}

impl RateLimit {
    /// So much a second from now on, when so much is `done`; 0: no limit.
    pub fn new(done: u64, rate: u64) -> Self {
        Self {
            began: Instant::now(),
            from: done,
            rate,
            behind: BEHIND,
        }
    }

    /// Who is behind by more than `time` does not catch up; 100 ms if nobody says.
    #[must_use]
    pub fn catches_up_within(mut self, time: Duration) -> Self {
        self.behind = time;
        self
    }

    /// How much may be done in such a time; without a limit anything.
    pub fn in_time(&self, time: Duration) -> Option<u64> {
        (self.rate > 0).then_some((self.rate as f64 * time.as_secs_f64()) as u64)
    }

    /// How long to wait until so much may be `done` at this rate, if at all.
    pub fn due(&mut self, done: u64, rate: u64) -> Option<Duration> {
        if rate != self.rate {
            self.begin(done, rate);
        }
        if rate == 0 {
            return None;
        }
        let since = done.saturating_sub(self.from);
        let due = Duration::try_from_secs_f64(since as f64 / rate as f64).unwrap_or(Duration::MAX);
        let past = self.began.elapsed();
        if past > due.saturating_add(self.behind) {
            self.begin(done, rate);
            return None;
        }
        due.checked_sub(past).filter(|rest| !rest.is_zero())
    }

    fn begin(&mut self, done: u64, rate: u64) {
        *self = Self::new(done, rate).catches_up_within(self.behind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_under_another_limit_is_not_waited_for() {
        const MIB: u64 = 1 << 20;
        let mut limit = RateLimit::new(0, 0);
        assert_eq!(limit.due(1 << 40, 0), None);
        // A limit comes: what follows counts, and nothing before.
        assert_eq!(limit.due(1 << 40, MIB), None);
        let rest = limit.due((1 << 40) + 60 * MIB, MIB).unwrap();
        assert!(rest <= Duration::from_secs(60), "{rest:?}");
        // Another one comes while one is waited for.
        assert_eq!(limit.due((1 << 40) + 60 * MIB, 1), None);
        // It goes, and comes again.
        assert_eq!(limit.due((1 << 40) + 60 * MIB, 0), None);
        assert_eq!(limit.due((1 << 40) + 999 * MIB, 0), None);
        assert_eq!(limit.due((1 << 40) + 999 * MIB, 1), None);
    }

    #[test]
    fn whoever_is_late_does_not_catch_up() {
        let mut limit = RateLimit::new(0, 1000).catches_up_within(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(5));
        // Due long ago; from here on it counts.
        assert_eq!(limit.due(1, 1000), None);
        let rest = limit.due(10_001, 1000).unwrap();
        assert!(rest > Duration::from_secs(5), "{rest:?}");
        // Others have done more than this one knows of.
        assert_eq!(limit.due(0, 1000), None);
        assert!(limit.due(u64::MAX, 1).is_none(), "another rate");
        assert!(limit.due(u64::MAX, 1).is_none());
    }
}
