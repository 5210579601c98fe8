//! Slowing a guest down that writes faster than the channel takes it, as QEMU's `auto-converge`.

use super::options::Throttle;

/// Decides, at each dirty sync, how much the vCPUs are slowed down.
#[derive(Debug)]
pub(super) struct Throttling {
    options: Throttle,
    percent: u8,
    /// Syncs in a row at which too much was dirty.
    strikes: u8,
}

impl Throttling {
    pub(super) fn new(options: Throttle) -> Self {
        Self {
            options,
            percent: 0,
            strikes: 0,
        }
    }

    /// Between two syncs so much was written by the guest, and so much sent. The new percentage, if
    /// it changes.
    pub(super) fn sync(&mut self, dirtied_bytes: u64, sent_bytes: u64) -> Option<u8> {
        let options = &self.options;
        let threshold = sent_bytes / 100 * u64::from(options.trigger_threshold);
        if dirtied_bytes <= threshold {
            self.strikes = 0;
            return None;
        }
        self.strikes += 1;
        if self.strikes < 2 {
            return None;
        }
        self.strikes = 0;
        let more = match self.percent {
            0 => options.initial,
            now => {
                let step = match options.tailslow {
                    true => ideal_step(now, dirtied_bytes, threshold).min(options.increment),
                    false => options.increment,
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
}
