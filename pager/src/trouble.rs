//! Pages that cannot be had for now: what is told of it, and when it is over.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::SourceError;
use crate::patience::chain;

/// What stands in the way of pages at the moment. One is told of once, until it is over.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// The last error that may pass, until it has.
    text: Mutex<Option<String>>,
    /// Whether there is one.
    is_on: AtomicBool,
    /// Whether there are pages that the background could not get.
    missed: AtomicBool,
    failed_reads: AtomicU64,
    /// Reads that have not returned.
    reading: Mutex<Vec<Reading>>,
}

/// A read that has not returned.
#[derive(Debug)]
struct Reading {
    block: usize,
    pages: Range<usize>,
    since: Instant,
    /// Whether that was told, as trouble.
    told: bool,
}

/// Of one read, until it returns.
pub(crate) struct Underway<'a> {
    trouble: &'a Trouble,
    block: usize,
    pages: Range<usize>,
    since: Instant,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let its =
            |it: &Reading| (it.block, &it.pages, it.since) == (self.block, &self.pages, self.since);
        let mut reading = self.trouble.reading.lock();
        if let Some(at) = reading.iter().position(its) {
            reading.swap_remove(at);
        }
    }
}

impl Trouble {
    /// A read begins; it ends with what is given back.
    pub(crate) fn reads(&self, block: usize, pages: Range<usize>) -> Underway<'_> {
        let since = Instant::now();
        self.reading.lock().push(Reading {
            block,
            pages: pages.clone(),
            since,
            told: false,
        });
        Underway {
            trouble: self,
            block,
            pages,
            since,
        }
    }

    /// Reads that have not returned for that long, each once.
    pub(crate) fn newly_silent(&self, patience: Duration) -> Vec<(usize, Range<usize>, Duration)> {
        let mut reading = self.reading.lock();
        let late = |it: &&mut Reading| !it.told && it.since.elapsed() >= patience;
        let late = reading.iter_mut().filter(late).map(|it| {
            it.told = true;
            (it.block, it.pages.clone(), it.since.elapsed())
        });
        late.collect()
    }

    /// A read failed.
    pub(crate) fn failed(&self, error: &SourceError) {
        self.failed_reads.fetch_add(1, Ordering::Relaxed);
        self.is(error);
    }

    /// There is trouble.
    pub(crate) fn is(&self, error: &SourceError) {
        let text = chain(error);
        self.is_on.store(true, Ordering::Release);
        if self.text.lock().replace(text.clone()).is_none() {
            tracing::warn!(error = text, "pages cannot be had; they are tried again");
        }
    }

    /// Whether the background went without pages that it wanted.
    pub(crate) fn set_missed(&self, missed: bool) {
        self.missed.store(missed, Ordering::Release);
    }

    pub(crate) fn has_missed(&self) -> bool {
        self.missed.load(Ordering::Acquire)
    }

    /// It is over if nothing is left that could not be had: `waits` says whether somebody waits for
    /// such a page.
    pub(crate) fn maybe_over(&self, waits: impl FnOnce() -> bool) {
        let is_silent = || self.reading.lock().iter().any(|it| it.told);
        if !self.is_on.load(Ordering::Acquire) || self.has_missed() || waits() || is_silent() {
            return;
        }
        self.is_on.store(false, Ordering::Release);
        if self.text.lock().take().is_some() {
            tracing::warn!("pages that could not be had are here");
        }
    }

    pub(crate) fn text(&self) -> Option<String> {
        self.text.lock().clone()
    }

    pub(crate) fn failed_reads(&self) -> u64 {
        self.failed_reads.load(Ordering::Relaxed)
    }
}
