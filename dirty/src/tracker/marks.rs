//! What the VMM and its devices say that they wrote.
//!
//! A device holds a handle and marks pages *after* it has written them. Marked before, a page could
//! be reported, read and sent while the write is still under way.
//!
//! While nobody tracks, a mark is one look at a flag. A device that finds the flag down has written
//! its page already, and whoever raised the flag after that look reads the page later than it was
//! written: the fences on both sides make it so.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use paguro_ram::{GuestRam, PageSet};
use parking_lot::RwLock;

use super::report::{check, report, sets};
use super::{Tracker, TrackerError};

/// The handle of a device. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    active: AtomicBool,
    /// Of each block, while somebody tracks.
    written: RwLock<Option<Vec<PageSet>>>,
}

impl Marks {
    /// Says that pages of a block were written. Pages that are not there are passed over. Any
    /// thread, also while RAM is protected: it touches none of it.
    #[inline]
    pub fn mark(&self, block: usize, pages: Range<usize>) {
        fence(Ordering::SeqCst);
        if self.shared.active.load(Ordering::Relaxed) {
            self.insert(block, pages);
        }
    }

    #[cold]
    fn insert(&self, block: usize, pages: Range<usize>) {
        let written = self.shared.written.read();
        if let Some(set) = written.as_ref().and_then(|sets| sets.get(block)) {
            let end = pages.end.min(set.pages());
            if pages.start < end {
                set.insert_range(pages.start..end);
            }
        }
    }
}

/// Tracks by what was marked.
#[derive(Debug)]
pub struct MarkTracker {
    ram: GuestRam,
    marks: Marks,
    started: AtomicBool,
}

impl MarkTracker {
    /// A tracker of those who hold `marks`.
    pub fn new(ram: GuestRam, marks: Marks) -> Self {
        Self {
            ram,
            marks,
            started: AtomicBool::new(false),
        }
    }

    fn is_started(&self) -> Result<(), TrackerError> {
        if self.started.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(TrackerError::NotStarted)
        }
    }
}

impl Tracker for MarkTracker {
    fn start(&self) -> Result<(), TrackerError> {
        let shared = &self.marks.shared;
        let mut written = shared.written.write();
        if written.is_some() {
            return Err(TrackerError::Busy);
        }
        *written = Some(sets(&self.ram));
        shared.active.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.started.store(true, Ordering::Release);
        Ok(())
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        check(&self.ram, dirty)?;
        self.is_started()?;
        let written = self.marks.shared.written.read();
        let written = written.as_ref().ok_or(TrackerError::NotStarted)?;
        let blocks = written.iter().zip(dirty).enumerate();
        // Marks of pages without content stay: a device may be marking at this moment.
        Ok(blocks
            .map(|(block, (written, dirty))| {
                let take = |word, mask| written.take_word(word, mask);
                report(&self.ram, block, 0..written.pages(), dirty, take)
            })
            .sum())
    }

    /// Nothing is left to be done: the sync has taken the marks.
    fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
        self.is_started()
    }

    fn stop(&self) {
        let shared = &self.marks.shared;
        let mut written = shared.written.write();
        if self.started.swap(false, Ordering::AcqRel) {
            shared.active.store(false, Ordering::Relaxed);
            *written = None;
        }
    }
}

impl Drop for MarkTracker {
    fn drop(&mut self) {
        self.stop();
    }
}
