//! Where KVM's memory slots are in guest RAM.

use std::ops::Range;

use paguro_ram::GuestRam;
use paguro_sys::kvm::DirtySlots;
use paguro_sys::page_size;

use super::TrackerError;

/// A slot's part of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: usize,
    pub(super) pages: Range<usize>,
}

/// The places of all slots, in their order.
pub(super) fn of_slots(ram: &GuestRam, slots: &DirtySlots) -> Result<Vec<Place>, TrackerError> {
    let place = |slot: &paguro_sys::kvm::Slot| {
        let refused = TrackerError::Slot { slot: slot.number };
        let Some(at) = ram.locate(slot.mapping.addr()) else {
            return Err(refused);
        };
        let pages = at.page..at.page + slot.bytes / page_size();
        let inside = pages.end <= ram.blocks()[at.block].max_pages();
        if !inside || !at.page.is_multiple_of(64) {
            return Err(refused);
        }
        Ok(Place {
            block: at.block,
            pages,
        })
    };
    slots.slots().iter().map(place).collect()
}

/// Switches the logs of all slots on, or none.
pub(super) fn switch_on(
    ram: &GuestRam,
    slots: &DirtySlots,
    places: &[Place],
) -> Result<(), TrackerError> {
    for (index, place) in places.iter().enumerate() {
        if let Err(source) = slots.set_logging(index, true) {
            switch_off(slots, index);
            return Err(TrackerError::Log {
                block: ram.blocks()[place.block].id().to_owned(),
                source,
            });
        }
    }
    Ok(())
}

/// Switches the logs of the first `count` slots off.
pub(super) fn switch_off(slots: &DirtySlots, count: usize) {
    for index in 0..count {
        if let Err(error) = slots.set_logging(index, false) {
            tracing::warn!(slot = index, %error, "KVM keeps a log of written pages");
        }
    }
}
