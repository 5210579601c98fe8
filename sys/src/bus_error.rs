//! SIGBUS in guest RAM: a page of a mapped snapshot file could not be read.
//!
//! The process must not die for it. The handler puts a page of zeros where the unreadable one
//! is, so that the thread that touched it gets on, and rings a bell; whoever hears it stops the
//! VM, whose memory is no more what it should be. A SIGBUS anywhere else ends the process as
//! it always did.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use crate::{Mapping, page_size};

/// RAM blocks watched at once, over the whole process.
const SLOTS: usize = 64;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    bell: AtomicI32,
    count: AtomicU64,
}

static WATCHED: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        bell: AtomicI32::new(-1),
        count: AtomicU64::new(0),
    }
}; SLOTS];

static INSTALL: Once = Once::new();

/// While this lives, a bus error in the mapping rings [`BusErrors::bell`].
#[derive(Debug)]
pub struct BusErrors {
    slot: usize,
    bell: OwnedFd,
    _mapping: Arc<Mapping>,
}

impl BusErrors {
    /// An eventfd that becomes readable at a bus error.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Pages that could not be read so far.
    pub fn count(&self) -> u64 {
        WATCHED[self.slot].count.load(Ordering::Acquire)
    }
}

impl Drop for BusErrors {
    fn drop(&mut self) {
        let slot = &WATCHED[self.slot];
        slot.end.store(0, Ordering::Release);
        slot.bell.store(-1, Ordering::Release);
        slot.start.store(0, Ordering::Release);
    }
}

/// Watches a mapping whose pages come from a file.
///
/// # Errors
///
/// No eventfd to be had, or too many mappings watched at once.
pub fn catch_bus_errors(mapping: &Arc<Mapping>) -> io::Result<BusErrors> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let bell = rustix::event::eventfd(0, flags)?;
    INSTALL.call_once(install);
    let range = mapping.range(0, mapping.len());
    for (index, slot) in WATCHED.iter().enumerate() {
        let free = slot
            .start
            .compare_exchange(0, range.start, Ordering::AcqRel, Ordering::Relaxed);
        if free.is_ok() {
            slot.count.store(0, Ordering::Release);
            slot.bell.store(bell.as_raw_fd(), Ordering::Release);
            slot.end.store(range.end, Ordering::Release);
            return Ok(BusErrors {
                slot: index,
                bell,
                _mapping: mapping.clone(),
            });
        }
    }
    Err(io::Error::other("too many mapped snapshot files at once"))
}

fn install() {
    // SAFETY: an all-zero `sigaction` is valid; the handler below only does what is allowed in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Runs in whatever thread touched the page: system calls and atomics only.
extern "C" fn on_bus_error(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let at = unsafe { (*info).si_addr() } as usize;
    let inside = |slot: &&Slot| {
        slot.start.load(Ordering::Acquire) <= at && at < slot.end.load(Ordering::Acquire)
    };
    let Some(slot) = WATCHED.iter().find(inside) else {
        // Not guest RAM: the default action follows when the access is tried again.
        // SAFETY: sigaction with SIG_DFL is allowed in a handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    };
    let page = page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: replaces one page inside a watched mapping, which this process owns and reaches by
    // raw copies only; mmap, write and the errno location are safe in a handler in practice.
    unsafe {
        let errno = *libc::__errno_location();
        let at = (at & !(page - 1)) as *mut libc::c_void;
        libc::mmap(at, page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        slot.count.fetch_add(1, Ordering::AcqRel);
        let one = 1u64;
        libc::write(
            slot.bell.load(Ordering::Acquire),
            (&raw const one).cast(),
            8,
        );
        *libc::__errno_location() = errno;
    }
}
