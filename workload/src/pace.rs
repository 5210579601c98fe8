//! Keeping to a rate by looking at the clock once a millisecond.

use crate::params::Params;

/// Behind by more than this, a vCPU takes the loss instead of catching up: it was paused, or
/// moved to a host whose clock reads otherwise.
const MAX_BEHIND_MS: u64 = 10;

/// Longest wait that is asked for at once.
const MAX_WAIT_MS: u64 = 10;

/// What a vCPU does before its next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Writes.
    Go,
    /// Writes, after it was found to be out of step with the clock.
    GoRebased,
    /// Waits, then asks again.
    Wait {
        /// For so long.
        us: u32,
    },
}

/// The rate of one vCPU: write `n` may begin in the millisecond in which it is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacer {
    ticks_per_ms: u64,
    /// A write takes `ms_numerator / rate` milliseconds of a vCPU's time.
    ms_numerator: u64,
    rate: u64,
    base_ticks: u64,
    base_write: u64,
    /// Writes below this number are due; the clock need not be read for them.
    due_until: u64,
}

impl Pacer {
    /// `None` if there is no limit.
    pub(crate) fn new(params: &Params, now_ticks: u64, n: u64) -> Option<Self> {
        (params.rate_pages_per_s > 0).then_some(Self {
            ticks_per_ms: (params.ticks_per_s / 1000).max(1),
            ms_numerator: 1000 * params.vcpus,
            rate: params.rate_pages_per_s,
            base_ticks: now_ticks,
            base_write: n,
            due_until: n,
        })
    }

    /// Whether write `n` may begin without looking at the clock.
    #[inline(always)]
    pub(crate) fn is_due(&self, n: u64) -> bool {
        n < self.due_until
    }

    /// What to do before write `n`, at `now_ticks`.
    pub(crate) fn ask(&mut self, n: u64, now_ticks: u64) -> Pace {
        // Whole periods in which a whole number of writes is due keep the numbers small.
        while n - self.base_write > self.rate {
            self.base_write += self.rate;
            self.base_ticks = self
                .base_ticks
                .wrapping_add(self.ms_numerator * self.ticks_per_ms);
        }
        let elapsed_ticks = now_ticks.wrapping_sub(self.base_ticks) as i64;
        let due_ms = (n - self.base_write) * self.ms_numerator / self.rate;
        let due_ticks = (due_ms * self.ticks_per_ms) as i64;
        let ahead_ticks = due_ticks.wrapping_sub(elapsed_ticks);
        // Nobody is further ahead than the time from the write before to this one.
        let furthest_ms = self.ms_numerator / self.rate + 2;
        if ahead_ticks > (furthest_ms * self.ticks_per_ms) as i64
            || ahead_ticks < -((MAX_BEHIND_MS * self.ticks_per_ms) as i64)
        {
            self.base_ticks = now_ticks;
            self.base_write = n;
            self.due_until = self.due_before(0);
            return Pace::GoRebased;
        }
        if ahead_ticks <= 0 {
            self.due_until = self.due_before(elapsed_ticks as u64 / self.ticks_per_ms);
            return Pace::Go;
        }
        let ticks = (ahead_ticks as u64).min(MAX_WAIT_MS * self.ticks_per_ms);
        Pace::Wait {
            us: (ticks * 1000).div_ceil(self.ticks_per_ms) as u32,
        }
    }

    /// The ticks of so many microseconds.
    pub(crate) fn ticks_of(&self, us: u32) -> u64 {
        u64::from(us) * self.ticks_per_ms / 1000
    }

    /// The first write that is not due in millisecond `ms`.
    fn due_before(&self, ms: u64) -> u64 {
        self.base_write + ((ms + 1) * self.rate).div_ceil(self.ms_numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Setup;
    use crate::spec::Spec;
    use proptest::prelude::*;

    const MS: u64 = 2_600_000;

    fn pacer(rate: u64, vcpus: u64, now: u64, n: u64) -> Pacer {
        let spec = Spec {
            rate_pages_per_s: rate,
            ..Spec::default()
        };
        let params = Params::new(&Setup {
            spec,
            vcpus,
            ram: &[(0, 64 << 20)],
            ticks_per_s: 1000 * MS,
            gap_threshold_us: 1,
            threads: false,
            dma: false,
            dma_direct: false,
        });
        Pacer::new(&params.unwrap(), now, n).unwrap()
    }

    /// Writes made until the clock reads `until`, each taking no time; and rebases.
    fn drive(pacer: &mut Pacer, n: &mut u64, now: &mut u64, until: u64) -> u64 {
        let mut rebases = 0;
        while now.wrapping_sub(until) as i64 <= 0 {
            if !pacer.is_due(*n) {
                match pacer.ask(*n, *now) {
                    Pace::Go => {}
                    Pace::GoRebased => rebases += 1,
                    Pace::Wait { us } => {
                        *now = now.wrapping_add((u64::from(us) * MS).div_ceil(1000));
                        continue;
                    }
                }
            }
            *n += 1;
        }
        rebases
    }

    proptest! {
        #[test]
        fn the_rate_is_kept(rate in 1u64..2_000_000, vcpus in 1u64..5, start: u64, first in 0u64..1 << 40) {
            let mut pacer = pacer(rate, vcpus, start, first);
            let (mut n, mut now) = (first, start);
            let seconds = 3;
            let rebases = drive(&mut pacer, &mut n, &mut now, start.wrapping_add(seconds * 1000 * MS));
            let wanted = rate * seconds / vcpus;
            // A millisecond's worth more at the end, and the one at the start.
            let slack = 2 * (rate / vcpus / 1000 + 2);
            prop_assert_eq!(rebases, 0);
            prop_assert!(n - first >= wanted.saturating_sub(1), "{} of {wanted}", n - first);
            prop_assert!(n - first <= wanted + slack, "{} of {wanted}", n - first);
        }

        #[test]
        fn a_jump_of_the_clock_is_not_caught_up(
            rate in 1000u64..2_000_000, jump in -(1i64 << 50)..1 << 50,
        ) {
            prop_assume!(jump.unsigned_abs() > 20 * MS);
            let start = 1 << 60;
            let mut pacer = pacer(rate, 1, start, 0);
            let (mut n, mut now) = (0, start);
            drive(&mut pacer, &mut n, &mut now, start + 500 * MS);
            let before = n;
            now = now.wrapping_add_signed(jump);
            let (from, mut rebases) = (now, 0);
            rebases += drive(&mut pacer, &mut n, &mut now, from + 1000 * MS);
            prop_assert_eq!(rebases, 1);
            prop_assert!(n - before >= rate - 1 && n - before <= rate + 3 * (rate / 1000 + 2));
        }
    }
}
