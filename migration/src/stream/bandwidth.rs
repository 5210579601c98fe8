//! How fast the channels take what is written to them.
//!
//! What counts is the time that was spent in writing, and nothing else: not looking for pages and reading
//! them, which is labour of its own, and not sleeping for a limit, which does not apply to a guest that
//! stands still. So it does not matter how little of RAM there is to send, whether
//! it is zero, or sent as differences.
//!
//! A call takes its time whatever it carries, so a few bytes are gathered until they say something. And
//! where next to nothing was ever sent [`ASSUMED`] counts, for as much as a millisecond of it: a
//! bandwidth is never 0, and soon what was measured.

use std::time::Duration;

/// Bytes a second before any were sent: 1 Gbit/s.
const ASSUMED: f64 = 125e6;
/// That much of what is assumed counts, in seconds.
const ASSUMED_S: f64 = 1e-3;
/// Fewer bytes say nothing for themselves.
const FEW_BYTES: u64 = 16 << 10;
/// A call with few of them takes about so long even if nothing holds it up.
const CALL: Duration = Duration::from_micros(50);
/// Nothing takes more bytes a second: a time that is too short to be measured is none.
const FASTEST: f64 = 64e9;
/// What was sent before so much time of sending, or so many bytes, counts for a third.
const WINDOW_S: f64 = 0.1;
const WINDOW_BYTES: f64 = (64 << 20) as f64;
/// So much is remembered from pass to pass, however little each sends.
const ENOUGH_BYTES: f64 = (1 << 20) as f64;

/// Gathers what is too little to say anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gathered {
    bytes: u64,
    time: Duration,
}

impl Gathered {
    /// So many bytes took so long, of which `call` would be due to any call. All that was gathered, when
    /// it is enough.
    pub fn add(&mut self, bytes: u64, time: Duration, call: Duration) -> Option<(u64, Duration)> {
        self.bytes += bytes;
        self.time += if bytes < FEW_BYTES {
            time.saturating_sub(call)
        } else {
            time
        };
        (self.bytes >= FEW_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> (u64, Duration) {
        let Self { bytes, time } = std::mem::take(self);
        (
            bytes,
            time.max(Duration::from_secs_f64(bytes as f64 / FASTEST)),
        )
    }
}

/// Measures what the channels take.
#[derive(Debug)]
pub struct Bandwidth {
    gathered: Gathered,
    bytes: f64,
    seconds: f64,
    /// All the time that was spent in writing.
    spent: Duration,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self {
            gathered: Gathered::default(),
            bytes: ASSUMED * ASSUMED_S,
            seconds: ASSUMED_S,
            spent: Duration::ZERO,
        }
    }
}

impl Bandwidth {
    /// So many bytes were written, which took so long.
    pub fn count(&mut self, bytes: u64, time: Duration) {
        self.spent += time;
        let mut enough = self.gathered.add(bytes, time, CALL);
        if enough.is_none() && self.gathered.time.as_secs_f64() >= WINDOW_S {
            // The channel takes nothing.
            enough = Some(self.gathered.take());
        }
        if let Some((bytes, time)) = enough {
            let (bytes, seconds) = (bytes as f64, time.as_secs_f64());
            let keep = (-(seconds / WINDOW_S).max(bytes / WINDOW_BYTES)).exp();
            self.bytes = self.bytes * keep + bytes;
            self.seconds = self.seconds * keep + seconds;
        }
    }

    /// A pass is over: what a bad moment made of it is forgotten, even if hardly anything is sent.
    pub fn fade(&mut self) {
        const KEEP: f64 = 0.9;
        if self.bytes > ENOUGH_BYTES {
            self.bytes *= KEEP;
            self.seconds *= KEEP;
        }
    }

    /// Bytes a second, of late.
    pub fn bytes_per_s(&self) -> u64 {
        (self.bytes / self.seconds).clamp(1.0, FASTEST) as u64
    }

    /// All the time that was spent in writing.
    pub fn spent(&self) -> Duration {
        self.spent
    }
}

/// How much smaller compression makes pages, of late.
#[derive(Debug, Default)]
pub struct Packing {
    wire_bytes: f64,
    page_bytes: f64,
}

impl Packing {
    /// So many bytes of pages were sent as so many.
    pub fn count(&mut self, wire_bytes: u64, page_bytes: u64) {
        let keep = (-(page_bytes as f64) / WINDOW_BYTES).exp();
        self.wire_bytes = self.wire_bytes * keep + wire_bytes as f64;
        self.page_bytes = self.page_bytes * keep + page_bytes as f64;
    }

    /// Bytes that are sent for each byte of a page. What the guest writes next may be packed less well
    /// than what was sent: less than a quarter is not believed, and of little nothing.
    pub fn share(&self) -> f64 {
        if self.page_bytes < ENOUGH_BYTES {
            1.0
        } else {
            (self.wire_bytes / self.page_bytes).clamp(0.25, 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[track_caller]
    fn assert_within(bandwidth: &Bandwidth, bytes_per_s: f64, factor: f64) {
        let now = bandwidth.bytes_per_s() as f64;
        let range = bytes_per_s / factor..bytes_per_s * factor;
        assert!(range.contains(&now), "{now} of {bytes_per_s}");
    }

    #[test]
    fn before_anything_was_sent_something_is_assumed() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.bytes_per_s(), ASSUMED as u64);
        // Passes with nothing in them change nothing.
        for _ in 0..100_000 {
            bandwidth.fade();
        }
        assert_eq!(bandwidth.bytes_per_s(), ASSUMED as u64);
    }

    #[test]
    fn a_slow_channel_is_known_after_a_moment() {
        let mut bandwidth = Bandwidth::default();
        // 10 Mbit/s, 64 KiB at once.
        for _ in 0..5 {
            bandwidth.count(64 << 10, us(52_000));
        }
        assert_within(&bandwidth, 1.25e6, 1.5);
        // A channel that takes next to nothing, a few bytes at a time.
        for _ in 0..20 {
            bandwidth.count(100, us(100_000));
        }
        assert_within(&bandwidth, 1000.0, 1.5);
    }

    #[test]
    fn little_in_each_pass_is_enough() {
        let mut bandwidth = Bandwidth::default();
        // 25 pages, and a PING behind them.
        for _ in 0..1000 {
            bandwidth.count(25 << 12, us(50));
            bandwidth.count(13, us(10));
            bandwidth.fade();
        }
        assert_within(&bandwidth, 2.0 * GB, 1.2);
    }

    #[test]
    fn a_few_bytes_do_not_make_a_channel_slow() {
        // Differences, pages of zeros, orders: a flush of some bytes, again and again.
        for bytes in [13, 200, 3000] {
            let mut bandwidth = Bandwidth::default();
            for _ in 0..16 {
                bandwidth.count(512 << 10, us(500));
            }
            for _ in 0..10_000 {
                bandwidth.count(bytes, us(10));
                bandwidth.fade();
            }
            assert!(bandwidth.bytes_per_s() as f64 >= 0.9 * GB, "{bytes} bytes");
            assert!(bandwidth.bytes_per_s() as f64 <= FASTEST);
        }
    }

    #[test]
    fn a_limit_that_comes_and_goes_does_not_change_it() {
        let mut bandwidth = Bandwidth::default();
        for _ in 0..200 {
            bandwidth.count(512 << 10, us(500));
        }
        // 64 KiB a second: little in each PART, and the sleep between them is nobody's.
        for _ in 0..200 {
            bandwidth.count(3277, us(60));
        }
        assert_within(&bandwidth, GB, 1.2);
        for _ in 0..200 {
            bandwidth.count(512 << 10, us(500));
        }
        assert_within(&bandwidth, GB, 1.1);
    }

    #[test]
    fn a_change_is_followed_within_a_few_windows() {
        let mut bandwidth = Bandwidth::default();
        for _ in 0..1000 {
            bandwidth.count(1 << 20, us(1000));
        }
        for _ in 0..40 {
            bandwidth.count(1 << 20, us(10_000));
        }
        assert_within(&bandwidth, f64::from(100 << 20), 1.2);
        for _ in 0..300 {
            bandwidth.count(1 << 20, us(1000));
        }
        assert_within(&bandwidth, f64::from(1000 << 20), 1.2);
    }

    #[test]
    fn a_bad_moment_is_forgotten_in_a_few_passes() {
        let mut bandwidth = Bandwidth::default();
        for _ in 0..100 {
            bandwidth.count(25 << 12, us(50));
            bandwidth.fade();
        }
        bandwidth.count(25 << 12, us(40_000));
        assert!(bandwidth.bytes_per_s() < 50_000_000);
        for _ in 0..100 {
            bandwidth.count(25 << 12, us(50));
            bandwidth.fade();
        }
        assert_within(&bandwidth, 2.0 * GB, 1.2);
    }

    #[test]
    fn what_compression_saves_is_believed_when_there_was_enough_of_it() {
        let mut packing = Packing::default();
        packing.count(10 << 10, 100 << 10);
        assert!((packing.share() - 1.0).abs() < f64::EPSILON);
        packing.count(4 << 20, 8 << 20);
        assert!((0.45..0.55).contains(&packing.share()));
        for _ in 0..100 {
            packing.count(100, 8 << 20);
        }
        assert!((packing.share() - 0.25).abs() < f64::EPSILON);
        for _ in 0..50 {
            packing.count(8 << 20, 8 << 20);
        }
        assert!(packing.share() > 0.98);
    }
}
