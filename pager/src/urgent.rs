//! The threads of pages that somebody waits for.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paguro_faults::Faults;
use paguro_ram::Located;

use crate::pager::LOOK;
use crate::pool::Want;
use crate::{Pager, SourceError, Waiters};

/// Pages fetched around one that somebody waits for: 64 KiB.
const AROUND: usize = 16;
/// A read that takes no longer is not said to hang, however little patience was asked for.
const SILENCE: Duration = Duration::from_secs(1);

impl Pager {
    /// Fetches what is wanted, until it is closed.
    pub(crate) fn serve(&self) {
        paguro_sys::raise_priority();
        let mut bytes = Vec::new();
        while let Some(want) = self.wanted.wait() {
            let at = want.at;
            let Some(faults) = self.faults.upgrade() else {
                return;
            };
            match self.fetch_around(&faults, at, &mut bytes) {
                Ok(()) => {
                    self.faults_served.fetch_add(1, Ordering::Relaxed);
                    // Also for what was there before we looked, and for whoever asked meanwhile: he is
                    // not queued as long as it is in hand.
                    faults.wake(at.block, faults.unit_of(at));
                    self.wanted.done(&want);
                    self.maybe_over();
                }
                Err(error) if error.may_pass() => self.try_later(&faults, want, &error),
                Err(error) => {
                    self.wanted.done(&want);
                    self.give_up(&faults, at, &error);
                }
            }
        }
    }

    /// A page with its neighbours. They may be unreadable or gone; it is tried alone then.
    fn fetch_around(
        &self,
        faults: &Faults,
        at: Located,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let alone = faults.unit_of(at);
        let end = faults.block(at.block).max_pages();
        let size = AROUND.max(alone.len());
        let first = at.page / size * size;
        let around = first..(first + size).min(end);
        let fetched = self.fetch(faults, at.block, around, bytes);
        fetched.or_else(|_| self.fetch(faults, at.block, alone, bytes))
    }

    /// Nobody is let go, and no thread waits: others want pages that may be had.
    fn try_later(&self, faults: &Faults, mut want: Want, error: &SourceError) {
        self.trouble.failed(error);
        let since = *want.failing.get_or_insert_with(Instant::now);
        let late = since.elapsed() >= self.retry || self.source.is_given_up();
        if late && !want.told {
            match (self.failure)(error) {
                Waiters::Keep => want.told = true,
                Waiters::LetGo => {
                    self.wanted.done(&want);
                    return self.let_go(faults, want.at);
                }
            }
        }
        if !self.wanted.put_off(want) {
            // It ends.
            faults.answer_with_zeros(want.at);
        }
    }

    /// The thread that reads nothing. A source may neither answer nor refuse, and whoever asks it is held
    /// until it does: a server that is away, a disk whose driver goes on trying. Those who read cannot
    /// tell of that.
    pub(crate) fn look(&self) {
        while self.wanted.sleep(LOOK) {
            let Some(faults) = self.faults.upgrade() else {
                return;
            };
            let patience = self.retry.max(SILENCE);
            for (block, pages, time) in self.trouble.newly_silent(patience) {
                self.trouble.is(&silent(&faults, block, pages, time));
            }
            while let Some((at, time)) = self.wanted.overdue(patience) {
                let error = silent(&faults, at.block, faults.unit_of(at), time);
                self.trouble.is(&error);
                if (self.failure)(&error) == Waiters::LetGo {
                    self.let_go(&faults, at);
                }
            }
        }
    }

    /// The trouble is over when nothing is left that could not be had.
    pub(crate) fn maybe_over(&self) {
        self.trouble.maybe_over(|| self.wanted.is_failing());
    }

    pub(crate) fn give_up(&self, faults: &Faults, at: Located, error: &SourceError) {
        self.failed.store(true, Ordering::Release);
        {
            // Whoever fails while the first is being told waits too, before he lets anybody go.
            let mut told = self.told.lock();
            if !std::mem::replace(&mut *told, true) {
                tracing::error!(%error, "a page cannot be had");
                (self.failure)(error);
            }
        }
        faults.answer_with_zeros(at);
    }

    /// What was told was answered by that nothing runs any more.
    fn let_go(&self, faults: &Faults, at: Located) {
        self.failed.store(true, Ordering::Release);
        faults.answer_with_zeros(at);
    }
}

fn silent(
    faults: &Faults,
    block: usize,
    pages: std::ops::Range<usize>,
    time: Duration,
) -> SourceError {
    let id = faults.block(block).id();
    SourceError::Silent {
        what: format!(
            "where pages {}..{} of RAM block {id} are",
            pages.start, pages.end
        ),
        seconds: time.as_secs(),
    }
}
