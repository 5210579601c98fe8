//! KVM's ring of written pages, one a vCPU.
//!
//! Entries are marked by KVM as *dirty*, by who read them as *collected*; only a reset, of all
//! rings of the VM at once, protects their pages again and gives the entries back. An entry that
//! was collected is therefore worth nothing before the reset: the page may be written meanwhile
//! without another entry.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{answer, check_extension, enable_cap};
use crate::thread::without_signals;
use crate::{Fallbacks, page_size};

/// Order of the entries' flags is x86-64's, or is kept by whoever uses acquire and release.
const CAPS: [u32; 2] = [223, 192];
const RESET_DIRTY_RINGS: libc::Ioctl = 0xAEC7;
/// Where in a vCPU's descriptor the ring is mapped from, in pages.
const OFFSET_PAGES: usize = 64;

const DIRTY: u32 = 1;
const COLLECTED: u32 = 2;

/// `kvm_dirty_gfn`: flags, slot, page in the slot.
#[repr(C)]
struct Entry {
    flags: u32,
    slot: u32,
    page: u64,
}

const _: () = assert!(size_of::<Entry>() == 16);

/// That a VM can have rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingCap {
    cap: u32,
    /// Entries that a ring may have at most.
    pub max_entries: u32,
}

impl RingCap {
    /// Asks KVM; `None` if it has none, or `forced` denies it.
    pub fn of(vm: BorrowedFd<'_>, forced: &Fallbacks) -> Option<Self> {
        let found = CAPS
            .into_iter()
            .map(|cap| (cap, check_extension(vm, cap) as usize / size_of::<Entry>()))
            .find(|(_, entries)| *entries > 0);
        tracing::debug!(?found, "KVM's dirty ring");
        let (cap, entries) = found.filter(|_| !forced.no_dirty_ring)?;
        Some(Self {
            cap,
            max_entries: entries as u32,
        })
    }

    /// Gives the VM, which has no vCPU yet, rings of so many entries instead of a log.
    ///
    /// # Errors
    ///
    /// KVM's: EINVAL if there are vCPUs already, or for a number of entries that is no power of
    /// two, more than the most, or less than KVM's own reserve (some hundred).
    pub fn enable(self, vm: BorrowedFd<'_>, entries: u32) -> io::Result<()> {
        let bytes = u64::from(entries) * size_of::<Entry>() as u64;
        enable_cap(vm, self.cap, bytes)
    }
}

/// Protects all pages of collected entries again, in all rings of the VM; how many they were.
/// Nobody may read a ring meanwhile.
///
/// **A reset that ends early has lost something.** KVM (from Linux 6.16 on) looks for signals between
/// entries, and leaves at once if there is one; the last few entries, up to 64 pages that lie close to
/// each other, are given back and counted by then, and their pages never protected. So signals wait
/// meanwhile. Those that cannot (a debugger's, SIGSTOP) are told by a number that is too small.
///
/// # Errors
///
/// KVM's.
pub fn reset_rings(vm: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: takes no argument, and returns a number.
    let reset = || answer(unsafe { libc::ioctl(vm.as_raw_fd(), RESET_DIRTY_RINGS, 0) });
    let reset = without_signals(reset)?;
    Ok(reset as usize)
}

/// The ring of one vCPU.
#[derive(Debug)]
pub struct DirtyRing {
    entries: NonNull<Entry>,
    count: u32,
    next: u32,
}

// SAFETY: the ring is shared memory that this value alone unmaps; it is read through `&mut`.
unsafe impl Send for DirtyRing {}
// SAFETY: a shared reference gives access to nothing but a number.
unsafe impl Sync for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of a vCPU of a VM whose rings have so many entries.
    ///
    /// # Errors
    ///
    /// The kernel's: the VM has no rings, or others.
    pub fn map(vcpu: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping at a place of the kernel's choice, which nobody else knows.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                entries as usize * size_of::<Entry>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                (OFFSET_PAGES * page_size()) as u64,
            )?
        };
        Ok(Self {
            entries: NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?,
            count: entries,
            next: 0,
        })
    }

    /// Collects what is there: calls `found` with slot and page (in the slot) of each entry, and
    /// returns how many there were. The numbers are the kernel's, and not checked.
    ///
    /// It ends after one round: a guest that writes faster than this reads cannot hold it up.
    pub fn collect(&mut self, mut found: impl FnMut(u32, u64)) -> usize {
        let mut collected = 0;
        while collected < self.count as usize {
            let index = (self.next & (self.count - 1)) as usize;
            // SAFETY: the index is below the number of entries (a power of two) of the mapping.
            let entry = unsafe { self.entries.as_ptr().add(index) };
            // SAFETY: a live, aligned word of the mapping, which the kernel accesses as a word.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                break;
            }
            // SAFETY: as above; the kernel wrote both before the flag, and leaves them alone until
            // the entry is reset.
            let (slot, page) = unsafe {
                (
                    (&raw const (*entry).slot).read_volatile(),
                    (&raw const (*entry).page).read_volatile(),
                )
            };
            found(slot, page);
            flags.store(COLLECTED, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            collected += 1;
        }
        collected
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        let bytes = self.count as usize * size_of::<Entry>();
        // SAFETY: the mapping made in `map`, whose end this is.
        let _ = unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
