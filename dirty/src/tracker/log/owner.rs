//! Whose log it is: who switches it on and off, and who else needs to know what was in it.
//!
//! A VMM that saves only what changed since its last snapshot has the log on all the time, and each bit
//! that is cleared is one that it never sees. So bits are handed over: all that are read, because where
//! nobody asked for manual protection reading takes them out of the log; and those that are cleared, before
//! they are, because they may stand for writes that came after they were read. Nothing is switched on or
//! off, and who protects pages again stays as it is, which KVM would not even tell: it clears bits that are
//! named in either mode, if it can do so at all.

use paguro_ram::GuestRam;
use paguro_sys::kvm::{DirtySlots, ManualProtect};
use parking_lot::Mutex;

use super::SlotLog;
use crate::tracker::TrackerError;
use crate::tracker::place::{self, Place};

/// Is told of the slot of this number: from this page of it on, these words.
type OnDirty = Box<dyn Fn(u32, usize, &[u64]) + Send + Sync>;

pub(super) enum Owner {
    /// It is on while the tracker tracks.
    Tracker,
    /// It is on all the time.
    Vmm(OnDirty),
}

impl Owner {
    /// All logs are on afterwards, or none is that was not on before.
    pub(super) fn begin(
        &self,
        ram: &GuestRam,
        slots: &DirtySlots,
        places: &[Place],
        logs: &mut [Mutex<SlotLog>],
    ) -> Result<(), TrackerError> {
        match self {
            Self::Tracker => {
                let begun =
                    protect_manually(slots).and_then(|()| place::switch_on(ram, slots, places));
                begun.inspect_err(|_| let_kvm_protect(slots))
            }
            Self::Vmm(_) => self.look(ram, slots, places, logs),
        }
    }

    /// The first `count` slots are not asked any more.
    pub(super) fn end(&self, slots: &DirtySlots, count: usize) {
        if let Self::Tracker = self {
            place::switch_off(slots, count);
            let_kvm_protect(slots);
        }
    }

    /// Tells the VMM of bits of a slot that leave its log, or may have left it.
    pub(super) fn hand_over(
        &self,
        slots: &DirtySlots,
        index: usize,
        first_page: usize,
        words: &[u64],
    ) {
        if let Self::Vmm(on_dirty) = self {
            on_dirty(slots.slots()[index].number, first_page, words);
        }
    }

    /// Whether the logs are on, which only reading them tells. What was written before is the VMM's.
    fn look(
        &self,
        ram: &GuestRam,
        slots: &DirtySlots,
        places: &[Place],
        logs: &mut [Mutex<SlotLog>],
    ) -> Result<(), TrackerError> {
        for (index, log) in logs.iter_mut().enumerate() {
            let log = log.get_mut();
            let off = |source| TrackerError::Log {
                block: ram.blocks()[places[index].block].id().to_owned(),
                source,
            };
            slots.read(index, &mut log.read).map_err(off)?;
            self.hand_over(slots, index, 0, &log.read);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tracker => "Tracker",
            Self::Vmm(_) => "Vmm",
        })
    }
}

fn protect_manually(slots: &DirtySlots) -> Result<(), TrackerError> {
    slots
        .set_manual(slots.caps().manual)
        .map_err(|source| TrackerError::Kvm {
            doing: "let go of protecting pages by itself",
            source,
        })
}

fn let_kvm_protect(slots: &DirtySlots) {
    if let Err(error) = slots.set_manual(ManualProtect::No) {
        tracing::debug!(%error, "KVM keeps to manual protection");
    }
}
