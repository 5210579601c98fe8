//! RAM that fills while the machine runs.

use std::sync::Arc;
use std::time::Duration;

use paguro_faults::Supply;
pub use paguro_pager::Failure;
use paguro_pager::{PageSource, Pager, PagerOptions, SourceError, Waiters};
use paguro_sys::Userfault;

use super::ear::Ear;
use super::{RestoreError, RestoreFile, RestoreOptions};
use crate::Memory;
use crate::memory::{Filling, Origin};

/// Fills RAM in the background and on demand.
///
/// It may be dropped: the [`Memory`] that it fills keeps it for as long as pages are missing, and
/// threads of the engine do the work. It ends when all has come, when the last reference to that
/// memory goes (what has not arrived is then gone with the RAM), or with [`Filler::stop`].
#[derive(Debug)]
pub struct Filler {
    pager: Arc<Pager>,
    file: Arc<RestoreFile>,
    ear: Arc<Ear>,
}

impl Filler {
    /// Has `on_failure` hear, in a thread of the engine, of pages that cannot be had: it must stop the
    /// machine before it returns. For good if the error stays
    /// ([`SourceError::may_pass`]); otherwise it may answer [`Waiters::Keep`], and let the machine go on
    /// later, with [`Filler::renew`].
    ///
    /// To be called when there is a machine, before it runs. Whoever waits for a page before is whoever
    /// makes the machine, and must not wait for ever: if the page cannot be had, zeros are given him in
    /// its place, [`Filler::has_failed`] says so, and that is told here, at once and in the caller's
    /// thread, as an error that stays ([`SourceError::Lost`] if it could have passed). What is built on
    /// such zeros is not to run.
    ///
    /// The machine keeps the memory, and the memory keeps `on_failure`: give it a
    /// [`Weak`](std::sync::Weak) of the machine, or neither ever goes.
    pub fn on_failure(&self, on_failure: Failure) {
        self.ear.listen(on_failure);
    }

    /// Pages that have not arrived.
    pub fn left_pages(&self) -> usize {
        self.pager.left_pages()
    }

    /// Pages in the file, all in all.
    pub fn total_pages(&self) -> usize {
        (0..self.file.blocks().len())
            .map(|block| self.file.present(block).count())
            .sum()
    }

    /// Faults that were answered.
    pub fn faults_served(&self) -> u64 {
        self.pager.faults_served()
    }

    /// Whether all has arrived and nothing is registered for it any more.
    pub fn is_done(&self) -> bool {
        self.pager.is_done()
    }

    /// Whether a page could not be had, for good.
    pub fn has_failed(&self) -> bool {
        self.pager.has_failed()
    }

    /// Why pages cannot be had at the moment, as long as they are tried again.
    pub fn trouble(&self) -> Option<String> {
        self.pager.trouble()
    }

    /// Reads that failed and were, or will be, tried again.
    pub fn failed_reads(&self) -> u64 {
        self.pager.failed_reads()
    }

    /// All that could not be had is tried again at once, for as long as at first: the machine goes
    /// on.
    pub fn renew(&self) {
        self.pager.renew();
    }

    /// Has all of RAM come that the file has something for, in the caller's thread.
    ///
    /// # Errors
    ///
    /// The file's, after it was tried again for a while.
    pub fn bring_all(&self) -> Result<(), SourceError> {
        const STRIDE: usize = 512;
        for block in 0..self.file.blocks().len() {
            let pages = self.file.present(block).pages();
            for first in (0..pages).step_by(STRIDE) {
                let part = first..(first + STRIDE).min(pages);
                self.pager.bring(block, part, &mut || true)?;
            }
        }
        Ok(())
    }

    /// Waits until all has arrived; false if that took longer.
    pub fn wait_done(&self, time: Duration) -> bool {
        self.pager.wait_done(time)
    }

    /// Ends it: the machine is ending.
    pub fn stop(&self) {
        self.pager.stop();
    }
}

pub(super) fn start(
    file: &Arc<RestoreFile>,
    memory: &Arc<Memory>,
    options: &RestoreOptions,
) -> Result<Arc<Filler>, RestoreError> {
    let faults = memory.faults().map_err(RestoreError::Faults)?;
    if memory.host().userfault != Userfault::Full && options.faults_in_kernel {
        return Err(RestoreError::NoKernelFaults);
    }
    let source: Arc<dyn PageSource> = file.clone();
    let pager_options = PagerOptions {
        urgent_threads: options.threads.max(1),
        prefetch: options.prefetch,
        retry: options.retry,
    };
    let ear = Ear::new(Waiters::LetGo, file.path().display().to_string());
    let hears = ear.clone();
    let on_failure = Box::new(move |error: &SourceError| hears.hear(error));
    let pager =
        Pager::start(&faults, source, pager_options, on_failure).map_err(RestoreError::Faults)?;
    let filler = Arc::new(Filler {
        pager,
        file: file.clone(),
        ear,
    });
    memory.set_filler(filler.clone());
    Ok(filler)
}

impl Origin for Filler {
    fn has_failed(&self) -> bool {
        self.pager.has_failed()
    }
}

impl Filling for Filler {
    fn supply(&self) -> Arc<dyn Supply> {
        self.pager.clone()
    }

    fn is_done(&self) -> bool {
        self.pager.is_done()
    }
}
