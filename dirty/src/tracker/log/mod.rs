//! KVM's log of written pages.
//!
//! With *manual protection*, reading the log changes nothing. The pages that were reported stay in
//! it, and stay writable, until [`Tracker::clear`] names them. So a chunk is protected again just
//! before it is sent, a few pages at a time, and what a guest writes over and over between two
//! syncs costs it nothing. What may be cleared is what was reported, and nothing else: a bit that
//! came after the last sync is known to nobody yet. Hence a second bitmap here, of pages that were
//! reported and not cleared, and one lock a slot: two who clear the same page must not be told
//! "done" before it is done.
//!
//! If pages *begin as written*, switching the log on protects nothing and takes next to no time. The
//! first sync reports all of RAM, and the first clear of each chunk protects it.
//!
//! On older kernels reading the log protects all that was written, at once.

mod owner;

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::Arc;

use paguro_ram::{GuestRam, PageSet};
use paguro_sys::kvm::{DirtySlots, ManualProtect};
use parking_lot::{Mutex, RwLock};

use self::owner::Owner;
use super::place::{self, Place};
use super::report::{check, report, words};
use super::{Tracker, TrackerError};

/// Words cleared in one call at most: 16 MiB of RAM.
const CLEAR_WORDS: usize = 64;

/// Tracks by KVM's log, with the best that it has.
#[derive(Debug)]
pub struct KvmLog {
    ram: GuestRam,
    slots: Arc<DirtySlots>,
    places: Vec<Place>,
    owner: Owner,
    logs: RwLock<Option<Vec<Mutex<SlotLog>>>>,
}

#[derive(Debug)]
struct SlotLog {
    /// What KVM said last, and nobody has taken.
    read: Vec<u64>,
    /// Reported and still in KVM's log.
    reported: Vec<u64>,
}

impl KvmLog {
    /// A tracker over the slots of a VM, which are parts of `ram`. The log is its own: it is off before the
    /// start and after the stop.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Slot`].
    pub fn new(ram: GuestRam, slots: Arc<DirtySlots>) -> Result<Self, TrackerError> {
        Self::owned_by(Owner::Tracker, ram, slots)
    }

    /// A tracker by a log that the VMM has switched on, in all slots, and keeps on: it stays as it is.
    ///
    /// Each bit that leaves the log is handed to `on_dirty`: the number of the slot, a page of the slot (a
    /// multiple of 64), and words from that page on, in which bit *i* of word *w* is page 64 *w* + *i* of
    /// them. The VMM adds it to what it knows as written (the same page may come several times); this and
    /// what is still in the log is then all that was written. Called by the methods of [`Tracker`], in their
    /// threads, several at once maybe. It should take no longer than copying, and must not call the tracker.
    ///
    /// From the start to the stop nobody else may take bits out of the log, by clearing it or, where
    /// the VM does not protect pages manually, by reading it: they would be missing here.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Slot`]. A log that is off is a [`TrackerError::Log`] of the start.
    pub fn shared(
        ram: GuestRam,
        slots: Arc<DirtySlots>,
        on_dirty: impl Fn(u32, usize, &[u64]) + Send + Sync + 'static,
    ) -> Result<Self, TrackerError> {
        Self::owned_by(Owner::Vmm(Box::new(on_dirty)), ram, slots)
    }

    fn owned_by(owner: Owner, ram: GuestRam, slots: Arc<DirtySlots>) -> Result<Self, TrackerError> {
        Ok(Self {
            places: place::of_slots(&ram, &slots)?,
            ram,
            slots,
            owner,
            logs: RwLock::new(None),
        })
    }

    fn manual(&self) -> ManualProtect {
        self.slots.caps().manual
    }

    fn begin(&self) -> Result<(), TrackerError> {
        let words = |index| {
            let mut words = Vec::new();
            words.try_reserve_exact(self.slots.words(index))?;
            words.resize(self.slots.words(index), 0);
            Ok::<Vec<u64>, TryReserveError>(words)
        };
        let log = |index| {
            Ok(Mutex::new(SlotLog {
                read: words(index)?,
                reported: words(index)?,
            }))
        };
        let logs = (0..self.places.len()).map(log);
        let mut logs = logs.collect::<Result<Vec<_>, TryReserveError>>()?;
        self.owner
            .begin(&self.ram, &self.slots, &self.places, &mut logs)?;
        *self.logs.write() = Some(logs);
        Ok(())
    }

    fn sync_slot(
        &self,
        index: usize,
        log: &mut SlotLog,
        dirty: &PageSet,
    ) -> Result<usize, TrackerError> {
        let place = &self.places[index];
        self.slots
            .read(index, &mut log.read)
            .map_err(|source| TrackerError::Kvm {
                doing: "tell which pages were written",
                source,
            })?;
        self.owner.hand_over(&self.slots, index, 0, &log.read);
        let first_word = place.pages.start / 64;
        let SlotLog { read, reported } = log;
        let new = report(
            &self.ram,
            place.block,
            place.pages.clone(),
            dirty,
            |word, mask| {
                let word = word - first_word;
                let bits = read[word] & mask;
                read[word] &= !mask;
                reported[word] |= bits;
                bits
            },
        );
        // What is left has no content: out of the kernel's log too.
        if self.manual() != ManualProtect::No {
            self.clear_words(index, 0, read)?;
        }
        Ok(new)
    }

    /// Clears these bits, of which the first word is `first` of the slot, in the kernel's log; its owner
    /// has them before.
    fn clear_words(&self, index: usize, first: usize, bits: &[u64]) -> Result<(), TrackerError> {
        let mut at = 0;
        while let Some(skip) = bits[at..].iter().position(|&word| word != 0) {
            at += skip;
            let most = &bits[at..bits.len().min(at + CLEAR_WORDS)];
            let count = most
                .iter()
                .rposition(|&word| word != 0)
                .map_or(0, |i| i + 1);
            let (page, gone) = ((first + at) * 64, &most[..count]);
            self.owner.hand_over(&self.slots, index, page, gone);
            self.slots
                .clear(index, page, gone)
                .map_err(|source| TrackerError::Kvm {
                    doing: "protect pages again",
                    source,
                })?;
            at += count;
        }
        Ok(())
    }

    fn clear_slot(&self, index: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        let logs = self.logs.read();
        let logs = logs.as_ref().ok_or(TrackerError::NotStarted)?;
        let mut log = logs[index].lock();
        let mut bits = [0; CLEAR_WORDS];
        let mut left = words(pages).peekable();
        while let Some(&(first, _)) = left.peek() {
            let mut count = 0;
            for (word, mask) in left.by_ref().take(CLEAR_WORDS) {
                bits[count] = log.reported[word] & mask;
                count += 1;
            }
            self.clear_words(index, first, &bits[..count])?;
            for (reported, cleared) in log.reported[first..].iter_mut().zip(&bits[..count]) {
                *reported &= !cleared;
            }
        }
        Ok(())
    }
}

impl Tracker for KvmLog {
    fn start(&self) -> Result<(), TrackerError> {
        if !self.slots.take() {
            return Err(TrackerError::Busy);
        }
        let begun = self.begin();
        if begun.is_err() {
            self.slots.give_back();
        }
        begun
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        check(&self.ram, dirty)?;
        let logs = self.logs.read();
        let logs = logs.as_ref().ok_or(TrackerError::NotStarted)?;
        let mut new = 0;
        for (index, log) in logs.iter().enumerate() {
            let block = self.places[index].block;
            new += self.sync_slot(index, &mut log.lock(), &dirty[block])?;
        }
        Ok(new)
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        if self.logs.read().is_none() {
            return Err(TrackerError::NotStarted);
        }
        if self.manual() == ManualProtect::No {
            return Ok(());
        }
        for (index, place) in self.places.iter().enumerate() {
            let start = pages.start.max(place.pages.start);
            let end = pages.end.min(place.pages.end);
            if place.block == block && start < end {
                let first = place.pages.start;
                self.clear_slot(index, start - first..end - first)?;
            }
        }
        Ok(())
    }

    fn stop(&self) {
        let mut logs = self.logs.write();
        if logs.take().is_some() {
            self.owner.end(&self.slots, self.places.len());
            self.slots.give_back();
        }
    }
}

impl Drop for KvmLog {
    fn drop(&mut self) {
        self.stop();
    }
}
