//! KVM's log of written pages.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{answer, check_extension, enable_cap};
use crate::{Fallbacks, Mapping, page_size};

const CAP_MANUAL_PROTECT: u32 = 168;
const LOG_DIRTY_PAGES: u32 = 1;

const SET_USER_MEMORY_REGION: libc::Ioctl = 0x4020_AE46;
const GET_DIRTY_LOG: libc::Ioctl = 0x4010_AE42;
const CLEAR_DIRTY_LOG: libc::Ioctl = 0xC018_AEC0;

#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    host_address: u64,
}

#[repr(C)]
struct DirtyLog {
    slot: u32,
    pad: u32,
    bitmap: u64,
}

#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    pages: u32,
    first_page: u64,
    bitmap: u64,
}

const _: () = assert!(size_of::<Region>() == 0x20);
const _: () = assert!(size_of::<DirtyLog>() == 0x10);
const _: () = assert!(size_of::<ClearDirtyLog>() == 0x18);

/// A memory slot of a VM that is guest RAM.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its number, as given to KVM.
    pub number: u32,
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// The memory, from its first byte on.
    pub mapping: Arc<Mapping>,
    /// Bytes of it.
    pub bytes: usize,
}

/// Who protects pages again after they were reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ManualProtect {
    /// Reading the log clears it and protects everything again (before Linux 5.1).
    No,
    /// The log is cleared apart, page by page.
    Yes,
    /// The same, and pages begin as written and unprotected (Linux 5.6). With a ring instead of a
    /// log every write would be lost.
    AllSet,
}

/// What of the log a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCaps {
    /// The best it can.
    pub manual: ManualProtect,
}

/// The slots of a VM that are guest RAM, for switching their logs on, reading and clearing them.
#[derive(Debug)]
pub struct DirtySlots {
    vm: OwnedFd,
    slots: Vec<Slot>,
    caps: LogCaps,
    taken: AtomicBool,
}

impl DirtySlots {
    /// Over the slots of a VM. Asks KVM once what it can do, then forgets what `forced` denies.
    ///
    /// # Errors
    ///
    /// The host's: no more descriptors.
    ///
    /// # Safety
    ///
    /// `vm` is a VM of KVM's, and each slot exists in it, with just this memory, for as long as
    /// vCPUs run in it. (Otherwise switching a log on would make a new slot, or move one, and the
    /// guest could reach memory that nobody keeps mapped.)
    pub unsafe fn new(
        vm: BorrowedFd<'_>,
        slots: Vec<Slot>,
        forced: &Fallbacks,
    ) -> io::Result<Self> {
        let bits = check_extension(vm, CAP_MANUAL_PROTECT);
        let manual = match bits {
            _ if forced.no_manual_protect => ManualProtect::No,
            bits if bits & 2 != 0 && !forced.no_initially_all_set => ManualProtect::AllSet,
            bits if bits & 1 != 0 => ManualProtect::Yes,
            _ => ManualProtect::No,
        };
        let caps = LogCaps { manual };
        tracing::debug!(bits, ?caps, "KVM's dirty log");
        Ok(Self {
            vm: vm.try_clone_to_owned()?,
            slots,
            caps,
            taken: AtomicBool::new(false),
        })
    }

    /// The slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What the VM has.
    pub fn caps(&self) -> LogCaps {
        self.caps
    }

    /// The VM.
    pub fn vm(&self) -> BorrowedFd<'_> {
        self.vm.as_fd()
    }

    /// Takes the right to switch logs on, of which there is one; false if somebody has it.
    pub fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    /// Gives the right back.
    pub fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Says who shall protect pages again, in logs that are switched on from now on.
    ///
    /// # Errors
    ///
    /// KVM's.
    pub fn set_manual(&self, manual: ManualProtect) -> io::Result<()> {
        if manual == ManualProtect::No && check_extension(self.vm(), CAP_MANUAL_PROTECT) == 0 {
            return Ok(());
        }
        let bits = match manual {
            ManualProtect::No => 0,
            ManualProtect::Yes => 1,
            ManualProtect::AllSet => 3,
        };
        enable_cap(self.vm(), CAP_MANUAL_PROTECT, bits)
    }

    /// Switches the log of a slot (or, with a ring, reports of writes to it) on or off. On: its
    /// pages are protected before this returns, unless they begin as written. Off: they may be
    /// joined into huge ones again.
    ///
    /// # Errors
    ///
    /// KVM's.
    pub fn set_logging(&self, index: usize, on: bool) -> io::Result<()> {
        let slot = &self.slots[index];
        let region = Region {
            slot: slot.number,
            flags: if on { LOG_DIRTY_PAGES } else { 0 },
            guest_address: slot.guest_address,
            bytes: slot.bytes as u64,
            host_address: slot.mapping.addr() as u64,
        };
        // SAFETY: the kernel reads one `Region`. The slot exists with this very memory (the
        // promise of `new`), so that only its flag changes.
        answer(unsafe {
            libc::ioctl(
                self.vm.as_raw_fd(),
                SET_USER_MEMORY_REGION,
                &raw const region,
            )
        })
        .map(drop)
    }

    /// Words of a slot's bitmap.
    pub fn words(&self, index: usize) -> usize {
        (self.slots[index].bytes / page_size()).div_ceil(64)
    }

    /// Reads the log of a slot: bit *i* of word *w* is page 64 *w* + *i*.
    ///
    /// # Errors
    ///
    /// KVM's: ENOENT if the log is not on, ENXIO if the VM has a ring.
    ///
    /// # Panics
    ///
    /// If there are fewer than [`DirtySlots::words`] words.
    pub fn read(&self, index: usize, words: &mut [u64]) -> io::Result<()> {
        assert!(words.len() >= self.words(index));
        let log = DirtyLog {
            slot: self.slots[index].number,
            pad: 0,
            bitmap: words.as_mut_ptr() as u64,
        };
        // SAFETY: the kernel reads one `DirtyLog` and writes a bit for each page of the slot,
        // rounded up to whole words: checked above.
        answer(unsafe { libc::ioctl(self.vm.as_raw_fd(), GET_DIRTY_LOG, &raw const log) }).map(drop)
    }

    /// Clears the bits that are set in `words`, and protects their pages again. `words[0]` begins
    /// with page `first_page`, a multiple of 64; they may end beyond the slot's end.
    ///
    /// # Errors
    ///
    /// KVM's: EINVAL for pages beyond the slot.
    pub fn clear(&self, index: usize, first_page: usize, words: &[u64]) -> io::Result<()> {
        let slot = &self.slots[index];
        let left = (slot.bytes / page_size()).saturating_sub(first_page);
        let clear = ClearDirtyLog {
            slot: slot.number,
            pages: (words.len() * 64).min(left) as u32,
            first_page: first_page as u64,
            bitmap: words.as_ptr() as u64,
        };
        // SAFETY: the kernel reads one `ClearDirtyLog`, and a bit for each of its pages, which
        // are no more than there are bits in `words`.
        answer(unsafe { libc::ioctl(self.vm.as_raw_fd(), CLEAR_DIRTY_LOG, &raw const clear) })
            .map(drop)
    }
}
