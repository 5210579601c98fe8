//! RAM that fills while the machine runs.

use std::sync::Arc;
use std::time::Duration;

use paguro_faults::Supply;
pub use paguro_pager::Failure;
use paguro_pager::{PageSource, Pager, PagerOptions, SourceError};
use paguro_sys::Userfault;

use super::{RestoreError, RestoreFile, RestoreOptions};
use crate::Memory;
use crate::memory::{Filling, Origin};

/// Fills RAM in the background and on demand.
#[derive(Debug)]
pub struct Filler {
    pager: Arc<Pager>,
    file: Arc<RestoreFile>,
}

impl Filler {
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
    on_failure: Failure,
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
    let pager =
        Pager::start(&faults, source, pager_options, on_failure).map_err(RestoreError::Faults)?;
    let filler = Arc::new(Filler {
        pager,
        file: file.clone(),
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
