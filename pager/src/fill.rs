//! The thread of pages that nobody waits for.

use std::time::{Duration, Instant};

use paguro_ram::Located;
use paguro_sys::{Pacer, RateLimit, page_size};

use crate::pager::LOOK;
use crate::patience::Backoff;
use crate::{Pager, Prefetch};

/// Pages fetched at once: 512 KiB.
const STRIDE: usize = 128;

impl Pager {
    /// Fetches all that is left; ends when nothing is.
    pub(crate) fn fill(&self) {
        let mut pace = Pace::new(self.prefetch);
        if self.prefetch != Prefetch::Off {
            // What could not be had stays for another round.
            let mut backoff = Backoff::default();
            while self.fetch_all(&mut pace, &mut backoff)
                && self.trouble.has_missed()
                && self.wanted.sleep(backoff.next())
            {}
        }
        // Without prefetch the pages come as they are wanted, the last one perhaps never.
        while self.left_pages() > 0 {
            if self.faults.strong_count() == 0 {
                self.wanted.close();
            }
            if !self.wanted.sleep(LOOK) {
                return;
            }
        }
        if !self.has_failed() {
            self.finish();
        }
    }

    /// Fetches all that has not arrived yet, but for what cannot be had; whether it came to the end.
    fn fetch_all(&self, pace: &mut Pace, backoff: &mut Backoff) -> bool {
        let (mut bytes, mut missed) = (Vec::new(), false);
        for block in 0..self.arrivals.spans().all().len() {
            let pages = self.source.has(block).pages();
            let stride = STRIDE.max(self.arrivals.spans().all()[block].unit_pages());
            for first in (0..pages).step_by(stride) {
                let Some(faults) = self.faults.upgrade() else {
                    // The others wait for what nobody will want any more.
                    self.wanted.close();
                    return false;
                };
                if self.wanted.is_closed() || self.has_failed() {
                    return false;
                }
                let part = first..(first + stride).min(pages);
                let received = self.arrivals.received(block);
                let before = received.count_in(part.clone());
                let fetched = self.fetch(&faults, block, part.clone(), &mut bytes);
                let got = received.count_in(part) - before;
                let wait = match fetched {
                    Ok(()) if got == 0 => continue,
                    Ok(()) => {
                        *backoff = Backoff::default();
                        self.maybe_over();
                        pace.wait_after((got * page_size()) as u64)
                    }
                    Err(error) if error.may_pass() => {
                        self.trouble.set_missed(true);
                        self.trouble.failed(&error);
                        missed = true;
                        backoff.next()
                    }
                    Err(error) => {
                        self.give_up(&faults, Located { block, page: first }, &error);
                        return false;
                    }
                };
                drop(faults);
                if !self.idle(wait) {
                    return false;
                }
            }
        }
        self.trouble.set_missed(missed);
        if !missed {
            self.maybe_over();
        }
        true
    }

    /// Waits, in small steps: whom it fills may be gone long before a slow page is due.
    fn idle(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            if !self.wanted.sleep(rest.min(LOOK)) || self.faults.strong_count() == 0 {
                return false;
            }
        }
    }

    /// All is here: nothing needs to be registered any more.
    fn finish(&self) {
        let Some(faults) = self.faults.upgrade() else {
            return self.wanted.close();
        };
        self.arrivals.end(&faults);
        self.wanted.close();
        *self.done.lock() = true;
        self.done_changed.notify_all();
        tracing::debug!("all pages have arrived");
    }
}

/// Keeps to a rate, and makes room for those who wait for a core.
struct Pace {
    pacer: Pacer,
    rate: u64,
    limit: RateLimit,
    fetched_bytes: u64,
}

impl Pace {
    fn new(prefetch: Prefetch) -> Self {
        let rate = match prefetch {
            Prefetch::Limited(rate) => rate.max(1),
            _ => 0,
        };
        Self {
            pacer: Pacer::of_this_thread(),
            rate,
            limit: RateLimit::new(0, rate),
            fetched_bytes: 0,
        }
    }

    /// How long to wait after so many bytes more.
    fn wait_after(&mut self, bytes: u64) -> Duration {
        self.fetched_bytes += bytes;
        let room = self.pacer.due();
        let due = self.limit.due(self.fetched_bytes, self.rate);
        due.map_or(room, |due| due.max(room))
    }
}
