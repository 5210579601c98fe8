//! KVM's rings of written pages.
//!
//! A VM that has rings has them for life, so what reads them is apart from the tracker:
//! [`KvmRings`] belongs to the machine, whose vCPUs come to it when their ring is full, whether or
//! not anybody tracks. A tracker borrows it.
//!
//! All that is done to the rings is done under one lock, from the first entry read to the end of
//! the reset. An entry that was read is a page that *may still be written without another entry*,
//! until the reset has protected it. Were it handed on before that, its reader could miss a write.
//!
//! A reset may stop half-way for a signal that waits for its thread, and then says how far it came
//! instead of failing (Linux 6.16). What is worse, it may have left pages unprotected that it counts
//! ([`reset_rings`]). vCPUs are stopped by signals, and reset rings: so signals are held off, entries
//! read and entries reset are counted, and if one reset was not enough, whoever tracks is told that
//! writes may have been missed.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use paguro_ram::{GuestRam, PageSet};
use paguro_sys::kvm::{DirtyRing, DirtySlots, ManualProtect, reset_rings};
use parking_lot::Mutex;

use super::place::{self, Place};
use super::report::{check, report, sets};
use super::{Tracker, TrackerError};

/// Resets in a row that reset nothing although there is something: signals come one by one.
const MAX_IDLE_RESETS: usize = 1000;

/// The rings of a VM's vCPUs, and what was read from them.
#[derive(Debug)]
pub struct KvmRings {
    slots: Arc<DirtySlots>,
    places: Vec<Place>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    rings: Vec<DirtyRing>,
    /// Entries read of each ring.
    read: Vec<u64>,
    /// Read and not reset.
    unreset: usize,
    /// Written pages of each block, while somebody tracks.
    written: Vec<PageSet>,
    full: u64,
    /// A reset was cut short since somebody tracks: pages may be written unseen.
    torn: bool,
}

impl KvmRings {
    /// Over the slots of a VM, which are parts of `ram`. It has no rings yet.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Slot`].
    pub fn new(ram: &GuestRam, slots: Arc<DirtySlots>) -> Result<Self, TrackerError> {
        Ok(Self {
            places: place::of_slots(ram, &slots)?,
            slots,
            inner: Mutex::default(),
        })
    }

    /// Adds the ring of the next vCPU.
    pub fn add(&self, ring: DirtyRing) {
        let mut inner = self.inner.lock();
        inner.rings.push(ring);
        inner.read.push(0);
    }

    /// For a vCPU that cannot go on because its ring is full: empties all rings. What was in them
    /// is kept for the next sync.
    ///
    /// # Errors
    ///
    /// KVM's. The vCPU cannot go on.
    pub fn make_room(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.full += 1;
        self.drain(&mut inner)
    }

    /// How often a vCPU had to wait for room.
    pub fn full_exits(&self) -> u64 {
        self.inner.lock().full
    }

    /// Reads all rings, keeps what was written, and has all of it protected again.
    fn drain(&self, inner: &mut Inner) -> io::Result<()> {
        let Inner { rings, written, .. } = inner;
        for (ring, read) in rings.iter_mut().zip(&mut inner.read) {
            let count = ring.collect(|slot, page| self.keep(slot, page, written));
            *read += count as u64;
            inner.unreset += count;
        }
        let mut idle = 0;
        while inner.unreset > 0 {
            let reset = match reset_rings(self.slots.vm()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                done => done?,
            };
            inner.unreset = inner.unreset.saturating_sub(reset);
            inner.torn |= inner.unreset > 0;
            idle = if reset == 0 { idle + 1 } else { 0 };
            if idle > MAX_IDLE_RESETS {
                return Err(io::Error::other("dirty rings are not reset"));
            }
        }
        Ok(())
    }

    fn keep(&self, slot: u32, page: u64, written: &[PageSet]) {
        let index = |known: &paguro_sys::kvm::Slot| known.number == slot;
        let place = self.slots.slots().iter().position(index);
        let Some(place) = place.map(|index| &self.places[index]) else {
            return;
        };
        // The numbers are the kernel's, but a wrong one shall not end the machine.
        if let Some(written) = written.get(place.block)
            && page < place.pages.len() as u64
        {
            written.insert(place.pages.start + page as usize);
        }
    }
}

/// Tracks by KVM's rings.
#[derive(Debug)]
pub struct KvmRing {
    ram: GuestRam,
    rings: Arc<KvmRings>,
    /// Entries of each ring at that time; `None` while it does not track.
    asked: Mutex<Option<(Instant, Vec<u64>)>>,
}

impl KvmRing {
    /// A tracker by the rings of a VM, whose RAM is `ram`.
    pub fn new(ram: GuestRam, rings: Arc<KvmRings>) -> Self {
        Self {
            ram,
            rings,
            asked: Mutex::new(None),
        }
    }

    fn begin(&self) -> Result<Vec<u64>, TrackerError> {
        let slots = &self.rings.slots;
        // With pages that begin as written, KVM would protect none of them, and tell of none.
        slots
            .set_manual(ManualProtect::No)
            .map_err(|source| TrackerError::Kvm {
                doing: "protect pages by itself",
                source,
            })?;
        let mut inner = self.rings.inner.lock();
        self.rings.drain(&mut inner).map_err(drained)?;
        inner.written = sets(&self.ram);
        inner.torn = false;
        let read = inner.read.clone();
        drop(inner);
        // Not under the lock: it takes time, and vCPUs may want room meanwhile.
        if let Err(error) = place::switch_on(&self.ram, slots, &self.rings.places) {
            self.forget();
            return Err(error);
        }
        Ok(read)
    }

    fn forget(&self) {
        let mut inner = self.rings.inner.lock();
        if let Err(error) = self.rings.drain(&mut inner) {
            tracing::warn!(%error, "dirty rings stay full");
        }
        inner.written = Vec::new();
    }
}

impl Tracker for KvmRing {
    fn start(&self) -> Result<(), TrackerError> {
        let mut asked = self.asked.lock();
        if !self.rings.slots.take() {
            return Err(TrackerError::Busy);
        }
        match self.begin() {
            Ok(read) => *asked = Some((Instant::now(), read)),
            Err(error) => {
                self.rings.slots.give_back();
                return Err(error);
            }
        }
        Ok(())
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        check(&self.ram, dirty)?;
        if self.asked.lock().is_none() {
            return Err(TrackerError::NotStarted);
        }
        let mut inner = self.rings.inner.lock();
        self.rings.drain(&mut inner).map_err(drained)?;
        if inner.torn {
            return Err(drained(io::Error::other(
                "it was interrupted, and pages may have been written unseen",
            )));
        }
        let mut new = 0;
        for (block, (written, dirty)) in inner.written.iter().zip(dirty).enumerate() {
            let all = 0..written.pages();
            let take = |word, mask| written.take_word(word, mask);
            new += report(&self.ram, block, all.clone(), dirty, take);
            // What is left has no content.
            written.remove_range(all);
        }
        Ok(new)
    }

    /// Nothing is left to be done: the sync has protected what it reported.
    fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
        match *self.asked.lock() {
            Some(_) => Ok(()),
            None => Err(TrackerError::NotStarted),
        }
    }

    fn stop(&self) {
        let mut asked = self.asked.lock();
        if asked.take().is_some() {
            place::switch_off(&self.rings.slots, self.rings.places.len());
            self.forget();
            self.rings.slots.give_back();
        }
    }

    fn vcpu_rates(&self) -> Vec<u64> {
        let mut asked = self.asked.lock();
        let Some((since, before)) = &mut *asked else {
            return Vec::new();
        };
        let (now, read) = {
            let mut inner = self.rings.inner.lock();
            // What lies in them unread was written, too; the next sync reports it all the same.
            if let Err(error) = self.rings.drain(&mut inner) {
                tracing::debug!(%error, "rates of vCPUs are not known");
                return Vec::new();
            }
            (Instant::now(), inner.read.clone())
        };
        let us = (now - *since).as_micros().max(1);
        let rates = read.iter().zip(&*before);
        let rates = rates
            .map(|(read, before)| (u128::from(read - before) * 1_000_000 / us) as u64)
            .collect();
        (*since, *before) = (now, read);
        rates
    }
}

impl Drop for KvmRing {
    fn drop(&mut self) {
        self.stop();
    }
}

fn drained(source: io::Error) -> TrackerError {
    TrackerError::Kvm {
        doing: "empty its rings of written pages",
        source,
    }
}
