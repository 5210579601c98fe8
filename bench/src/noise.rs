//! What the host takes from whoever is busy.
//!
//! A thread on each core reads the clock and does nothing else. What one of them misses is none of
//! its own doing: other programs, interrupts, and on a host that is itself a guest whoever else uses
//! the machine below. A snapshot or a migration keeps all cores of a small host busy, so that its guest
//! loses that, too, whatever the engine does. It is looked at before and after all else.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::text::time;

/// Shorter times are not counted.
const FROM: Duration = Duration::from_millis(1);

/// From here on it is worth a word: it is more than any aim for a gap.
const MUCH_US: f64 = 5e3;

/// For so long.
const WATCH: Duration = Duration::from_millis(1500);

/// What threads missed that were busy on all cores.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Noise {
    /// The longest time that one of them stood still.
    pub longest_us: f64,
    /// How often any of them did so for over 1 ms, in a second.
    pub over_1ms_per_s: f64,
}

impl Noise {
    /// Keeps all cores busy for a while.
    pub fn measure() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let seen = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(watch)).collect();
            let seen = threads.into_iter().flat_map(|thread| thread.join());
            seen.fold((Duration::ZERO, 0), |all, one| {
                (all.0.max(one.0), all.1 + one.1)
            })
        });
        Self {
            longest_us: seen.0.as_secs_f64() * 1e6,
            over_1ms_per_s: f64::from(seen.1) / WATCH.as_secs_f64(),
        }
    }

    /// Of two times when it was measured.
    pub fn and(self, other: Self) -> Self {
        Self {
            longest_us: self.longest_us.max(other.longest_us),
            over_1ms_per_s: (self.over_1ms_per_s + other.over_1ms_per_s) / 2.0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let seen = format!(
            "Noise: of threads on all cores that only read the clock, before and after, one stood still for {}\n\
             at most, and any for over 1 ms {:.1} times a second. No engine was running then.\n",
            time(self.longest_us),
            self.over_1ms_per_s
        );
        if self.longest_us > MUCH_US {
            format!(
                "{seen}*** Gaps of that length below are the host's. Measure again when it is left alone.\n"
            )
        } else {
            seen
        }
    }
}

/// The longest gap between two looks at the clock, and how many were long.
fn watch() -> (Duration, u32) {
    let begin = Instant::now();
    let (mut last, mut longest, mut count) = (begin, Duration::ZERO, 0);
    while last - begin < WATCH {
        let now = Instant::now();
        let gap = now - last;
        longest = longest.max(gap);
        count += u32::from(gap > FROM);
        last = now;
    }
    (longest, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_takes_more_than_any_aim_is_pointed_out() {
        let noise = |longest_us| Noise {
            longest_us,
            over_1ms_per_s: 2.0,
        };
        assert!(!noise(4e3).text().contains("***"));
        assert!(noise(40e3).text().contains("***"));
        let both = noise(4e3).and(Noise {
            over_1ms_per_s: 0.0,
            ..noise(40e3)
        });
        assert_eq!((both.longest_us, both.over_1ms_per_s), (40e3, 1.0));
    }

    #[test]
    fn what_is_measured_is_a_time_within_the_watch() {
        let noise = Noise::measure();
        assert!(noise.longest_us > 0.0, "{noise:?}");
    }
}
