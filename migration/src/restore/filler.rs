//! RAM that fills while the machine runs.

use std::sync::Arc;
use std::time::Duration;

use paguro_dirty::Unarrived;
use paguro_pager::{PageSource, Pager, PagerOptions, SourceError};
use paguro_ram::PageSet;
use paguro_sys::Userfault;

use super::{RestoreError, RestoreFile, RestoreOptions};
use crate::Memory;

/// Called once, in a thread of the pager, when a page cannot be had. It must stop the machine.
pub type Failure = Box<dyn Fn(&SourceError) + Send + Sync>;

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

    /// Whether a page could not be had.
    pub fn has_failed(&self) -> bool {
        self.pager.has_failed()
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

/// A snapshot that is taken before all has arrived finds the rest in the file.
impl Unarrived for Filler {
    fn has(&self, block: usize) -> &PageSet {
        self.file.present(block)
    }

    fn arrived(&self, block: usize) -> &PageSet {
        self.pager.arrived(block)
    }

    fn read(&self, block: usize, page: usize, to: &mut [u8]) -> std::io::Result<()> {
        PageSource::read(&*self.file, block, page..page + 1, to).map_err(std::io::Error::other)
    }

    fn settle(&self) {
        self.pager.settle();
    }
}
