//! What the engine asks of the log.
//!
//! Reading the log (`sync`) takes nothing from it: what was reported stays there, and stays writable,
//! until `clear` names it. What may be cleared is what was reported, and nothing else: a bit that came
//! after the last sync is known to nobody yet. Hence a second bitmap here, and one lock a block: two
//! who clear the same page must not be told "done" before it is done.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use paguro_dirty::tracker::{Tracker, TrackerError, report};
use paguro_ram::PageSet;
use paguro_stage2::{Cpu, LogError, LogOptions, Scope, TableError, TableMemory};
use parking_lot::{Mutex, RwLock};

use crate::log::{RamLog, range};

/// Words that are read or cleared together: 16 MiB of RAM. Whoever waits for the table lock, waits for
/// no more.
const WORDS: usize = 64;

/// Tracks by the log of stage-2 tables.
pub struct Stage2Tracker<M: TableMemory, C: Cpu> {
    log: Arc<RamLog<M, C>>,
    options: LogOptions,
    /// Of each block, while it tracks: reported, and still in the log.
    reported: RwLock<Option<Vec<Mutex<Vec<u64>>>>>,
}

impl<M: TableMemory, C: Cpu> std::fmt::Debug for Stage2Tracker<M, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stage2Tracker({:?})", self.options)
    }
}

impl<M: TableMemory, C: Cpu> Stage2Tracker<M, C> {
    /// A tracker that logs as `options` say. One can be started at a time.
    pub fn new(log: Arc<RamLog<M, C>>, options: LogOptions) -> Self {
        Self {
            log,
            options,
            reported: RwLock::new(None),
        }
    }

    fn begin(&self) -> Result<(), TrackerError> {
        let tables = self.log.tables();
        let started = alone(|| tables.start_logging(Scope::All, self.options));
        let Err(error) = started else {
            return Ok(());
        };
        if error == LogError::AlreadyLogging {
            return Err(TrackerError::Busy);
        }
        // Nothing is protected; what was split before tables ran out is put together again.
        for block in self.log.ram.blocks() {
            let merged = alone(|| tables.merge(range(block)));
            if let Err(error) = merged {
                tracing::debug!(%error, block = block.id(), "pages are left where a block was");
            }
        }
        Err(failed("begin to log writes", error))
    }

    fn sync_block(
        &self,
        index: usize,
        reported: &mut [u64],
        dirty: &PageSet,
    ) -> Result<usize, TrackerError> {
        let block = &self.log.ram.blocks()[index];
        let mut new = 0;
        let end = block.pages().div_ceil(64);
        for first in (0..end).step_by(WORDS) {
            let mut written = [0; WORDS];
            let count = WORDS.min(end - first);
            self.log
                .tables()
                .peek(self.log.regions[index], first, &mut written[..count])
                .map_err(|error| failed("tell which pages were written", error))?;
            let pages = first * 64..(first + count) * 64;
            new += report::report(&self.log.ram, index, pages, dirty, |word, mask| {
                let bits = written[word - first] & mask;
                reported[word] |= bits;
                bits
            });
        }
        Ok(new)
    }

    fn clear_block(
        &self,
        index: usize,
        reported: &mut [u64],
        pages: Range<usize>,
    ) -> Result<(), TrackerError> {
        let end = pages.end.div_ceil(64).min(reported.len());
        for first in (pages.start / 64..end).step_by(WORDS) {
            let mut mask = [0; WORDS];
            let words = first..end.min(first + WORDS);
            for (mask, word) in mask.iter_mut().zip(words.clone()) {
                *mask = reported[word] & bits_of(&pages, word);
            }
            let mask = &mask[..words.len()];
            if mask.iter().all(|&word| word == 0) {
                continue;
            }
            let mut taken = [0; WORDS];
            let taken = &mut taken[..words.len()];
            let region = self.log.regions[index];
            alone(|| self.log.tables().collect(region, first, Some(mask), taken))
                .map_err(|error| failed("protect pages again", error))?;
            for (word, mask) in words.zip(mask) {
                reported[word] &= !mask;
            }
        }
        Ok(())
    }

    fn end(&self) {
        let mut reported = self.reported.write();
        if reported.take().is_none() {
            return;
        }
        let stopped = alone(|| self.log.tables().stop_logging(Scope::All, true));
        if let Err(error) = stopped {
            tracing::debug!(%error, "the log was stopped by somebody else");
        }
        self.log.taken.store(false, Ordering::Release);
    }
}

impl<M, C> Tracker for Stage2Tracker<M, C>
where
    M: TableMemory + Send + Sync,
    C: Cpu + Send + Sync,
{
    fn start(&self) -> Result<(), TrackerError> {
        let mut reported = self.reported.write();
        if self.log.taken.swap(true, Ordering::AcqRel) {
            return Err(TrackerError::Busy);
        }
        if let Err(error) = self.begin() {
            self.log.taken.store(false, Ordering::Release);
            return Err(error);
        }
        let words = |block: &Arc<paguro_ram::RamBlock>| vec![0; block.max_pages().div_ceil(64)];
        let blocks = self.log.ram.blocks().iter();
        *reported = Some(blocks.map(|block| Mutex::new(words(block))).collect());
        Ok(())
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        report::check(&self.log.ram, dirty)?;
        let reported = self.reported.read();
        let reported = reported.as_ref().ok_or(TrackerError::NotStarted)?;
        let blocks = reported.iter().zip(dirty).enumerate();
        blocks
            .map(|(index, (reported, dirty))| self.sync_block(index, &mut reported.lock(), dirty))
            .sum()
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        let reported = self.reported.read();
        let reported = reported.as_ref().ok_or(TrackerError::NotStarted)?;
        match reported.get(block) {
            Some(reported) => self.clear_block(block, &mut reported.lock(), pages),
            None => Ok(()),
        }
    }

    fn stop(&self) {
        self.end();
    }
}

impl<M: TableMemory, C: Cpu> Drop for Stage2Tracker<M, C> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Errors that say that another pass over the tables is under way.
trait IsBusy {
    fn is_busy(&self) -> bool;
}

impl IsBusy for LogError {
    fn is_busy(&self) -> bool {
        *self == Self::Busy
    }
}

impl IsBusy for TableError {
    fn is_busy(&self) -> bool {
        *self == Self::Busy
    }
}

/// Makes a pass, after the one that is under way, if any: passes are finite, and none waits for us.
fn alone<T, E: IsBusy>(mut pass: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match pass() {
            Err(error) if error.is_busy() => std::thread::yield_now(),
            done => return done,
        }
    }
}

fn failed(doing: &'static str, error: LogError) -> TrackerError {
    TrackerError::Other {
        tracker: "the log of stage-2 tables",
        doing,
        source: Box::new(error),
    }
}

/// The bits of a word of 64 pages that lie in a range.
fn bits_of(pages: &Range<usize>, word: usize) -> u64 {
    let first = pages.start.clamp(word * 64, word * 64 + 64) - word * 64;
    let end = pages.end.clamp(word * 64, word * 64 + 64) - word * 64;
    match end.saturating_sub(first) {
        0 => 0,
        count => (u64::MAX >> (64 - count)) << first,
    }
}
