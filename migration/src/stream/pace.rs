//! A limit of bandwidth, kept by waiting.

use std::time::{Duration, Instant};

/// Keeps to a limit of bandwidth, which may change at any time: what was sent before a change is
/// not held against the new one, or a migration would stand still until it were.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    from_bytes: u64,
    limit: u64,
}

impl Pace {
    pub(crate) fn new(from_bytes: u64, limit: u64) -> Self {
        Self {
            began: Instant::now(),
            from_bytes,
            limit,
        }
    }

    /// What may be sent in such a time; without a limit anything.
    pub(crate) fn bytes_in(&self, time: Duration) -> Option<u64> {
        (self.limit > 0).then_some((self.limit as f64 * time.as_secs_f64()) as u64)
    }

    /// How long to wait until so many bytes are due; a pace that is behind by more than a tenth of
    /// a second does not catch up later.
    pub(crate) fn due(&mut self, written_bytes: u64, limit: u64) -> Option<Duration> {
        if limit != self.limit {
            *self = Self::new(written_bytes, limit);
        }
        if limit == 0 {
            return None;
        }
        let bytes = written_bytes - self.from_bytes;
        let due = Duration::from_secs_f64(bytes as f64 / limit as f64);
        let past = self.began.elapsed();
        if past > due + Duration::from_millis(100) {
            *self = Self::new(written_bytes, limit);
            return None;
        }
        due.checked_sub(past).filter(|rest| !rest.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_under_another_limit_is_not_waited_for() {
        const MIB: u64 = 1 << 20;
        let mut pace = Pace::new(0, 0);
        assert_eq!(pace.due(1 << 40, 0), None);
        // A limit comes: what follows counts, and nothing before.
        assert_eq!(pace.due(1 << 40, MIB), None);
        let rest = pace.due((1 << 40) + 60 * MIB, MIB).unwrap();
        assert!(rest <= Duration::from_secs(60), "{rest:?}");
        // Another one comes while one is waited for.
        assert_eq!(pace.due((1 << 40) + 60 * MIB, 1), None);
        // It goes, and comes again.
        assert_eq!(pace.due((1 << 40) + 60 * MIB, 0), None);
        assert_eq!(pace.due((1 << 40) + 999 * MIB, 0), None);
        assert_eq!(pace.due((1 << 40) + 999 * MIB, 1), None);
    }
}
