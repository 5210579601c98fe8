//! Logged regions: which pages have a bitmap, and what state their logging is in.

use crate::bitmap::DirtyBitmap;
use crate::layout::PAGE_SIZE;
use crate::sync::AtomicU64;
use core::ops::{Deref, Range};

/// Regions that a VM may have (its memory slots, say).
pub const MAX_REGIONS: usize = 32;

/// Names a region.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegionId(pub(crate) usize);

/// Who notes a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogMode {
    /// The first write to a page faults.
    Fault,
    /// The hardware sets write permission again (FEAT_HAFDBS); collecting scans for it. The first
    /// write to a block that was not split in advance still faults.
    Hardware,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Off,
    /// Tables are being split. New mappings are pages already, nothing is protected.
    Preparing,
    Logging(LogMode),
    /// Permissions are being given back.
    Stopping,
}

pub(crate) struct Region<B> {
    pub(crate) range: Range<u64>,
    pub(crate) bitmap: DirtyBitmap<B>,
    pub(crate) state: State,
}

impl<B> Region<B> {
    pub(crate) fn page(&self, ipa: u64) -> u64 {
        (ipa - self.range.start) / PAGE_SIZE
    }

    pub(crate) fn pages(&self) -> u64 {
        (self.range.end - self.range.start) / PAGE_SIZE
    }
}

/// What the table lock guards, besides the tables.
pub(crate) struct Regions<B> {
    slots: [Option<Region<B>>; MAX_REGIONS],
    /// No region stands at this place or after it: most VMs have a few, and faults look through them.
    end: usize,
}

impl<B> Regions<B> {
    pub(crate) fn new() -> Self {
        Self {
            slots: [const { None }; MAX_REGIONS],
            end: 0,
        }
    }

    pub(crate) fn at(&self, ipa: u64) -> Option<&Region<B>> {
        self.slots[..self.end]
            .iter()
            .flatten()
            .find(|region| region.range.contains(&ipa))
    }

    pub(crate) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Region<B>> {
        let range = range.clone();
        self.slots[..self.end]
            .iter()
            .flatten()
            .filter(move |region| region.range.start < range.end && range.start < region.range.end)
    }

    /// Whether a part of the range must not be mapped by blocks.
    pub(crate) fn wants_pages(&self, range: &Range<u64>) -> bool {
        self.overlapping(range)
            .any(|region| region.state != State::Off)
    }

    pub(crate) fn get(&self, id: RegionId) -> Option<&Region<B>> {
        self.slots.get(id.0)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: RegionId) -> Option<&mut Region<B>> {
        self.slots.get_mut(id.0)?.as_mut()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = RegionId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_some())
            .map(|(id, _)| RegionId(id))
    }

    pub(crate) fn insert(&mut self, region: Region<B>) -> Option<RegionId> {
        let id = self.slots.iter().position(Option::is_none)?;
        self.slots[id] = Some(region);
        self.end = self.end.max(id + 1);
        Some(RegionId(id))
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Option<Region<B>> {
        self.slots.get_mut(id.0)?.take()
    }
}

impl<B: Deref<Target = [AtomicU64]>> Regions<B> {
    /// Notes pages as dirty wherever a log is on, being switched on, or being switched off.
    pub(crate) fn mark(&self, ipa: u64, bytes: u64) {
        let marked = ipa..ipa + bytes;
        for region in self
            .overlapping(&marked)
            .filter(|region| region.state != State::Off)
        {
            let start = marked.start.max(region.range.start);
            let end = marked.end.min(region.range.end);
            region
                .bitmap
                .set_all(region.page(start), (end - start) / PAGE_SIZE);
        }
    }
}
