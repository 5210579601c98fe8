//! An allocator for a program that must not end because memory is short.
//!
//! Rust ends a program that cannot have a few bytes, and with it the guest. What takes much memory is
//! asked for in ways that can be refused (buffers, threads, mappings); what is left are small things,
//! everywhere. They get what they want as long as this lasts:
//!
//! * **One arena for all threads.** The C library gives each new thread an arena of its own, out of
//!   64 MiB of address space. Where `RLIMIT_AS` refuses them, it makes a mapping of each
//!   small thing that such a thread wants, which is refused soon as well.
//! * **A reserve of address space**, which is given up when something is refused for the first time,
//!   and taken again when there is room ([`Reserving::refill`]).
//!
//! What asks for much at that moment is refused a moment later, and ends: its memory comes back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Address space kept back, in bytes.
const RESERVE_BYTES: usize = 32 << 20;
/// What is larger does not get the reserve: it is a buffer or a table, asked for so that it can be refused.
/// A set of pages (a bit each) is as large for a block of 256 GiB.
const LARGE_BYTES: usize = 8 << 20;

/// There is one for all of the process.
static RESERVE: AtomicPtr<libc::c_void> = AtomicPtr::new(null_mut());
static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a reserve: to be the program's `#[global_allocator]`.
#[derive(Debug)]
pub struct Reserving;

impl Reserving {
    /// Has all threads share one arena, and takes the reserve. To be called once, before there are
    /// other threads.
    pub fn start() {
        #[cfg(target_env = "gnu")]
        // SAFETY: sets a number of the C library's allocator.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        Self::refill();
    }

    /// Takes the reserve again, if it was given up and can be had. How often it was given up.
    pub fn refill() -> usize {
        if RESERVE.load(Ordering::Acquire).is_null()
            && let Some(taken) = map(RESERVE_BYTES)
        {
            let (old, new) = (Ordering::AcqRel, Ordering::Acquire);
            if (RESERVE.compare_exchange(null_mut(), taken, old, new)).is_err() {
                unmap(taken, RESERVE_BYTES);
            }
        }
        GIVEN_UP.load(Ordering::Acquire)
    }
}

/// Whether so much address space is free, if need be by giving up the reserve of a program that has one.
pub(crate) fn has_room(bytes: usize) -> bool {
    let room = || map(bytes).map(|at| unmap(at, bytes)).is_some();
    room() || {
        give_up();
        room()
    }
}

fn give_up() {
    let reserve = RESERVE.swap(null_mut(), Ordering::AcqRel);
    if !reserve.is_null() {
        unmap(reserve, RESERVE_BYTES);
        GIVEN_UP.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether it is worth trying again to get so much.
#[cold]
fn try_again(bytes: usize) -> bool {
    let small = bytes <= LARGE_BYTES;
    if small {
        // Somebody else may just have done so.
        give_up();
    }
    small
}

/// Address space that nobody is to touch.
fn map(bytes: usize) -> Option<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let at = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at)
}

fn unmap(at: *mut libc::c_void, bytes: usize) {
    // SAFETY: all callers have it from `map`, once, and nothing is ever put there.
    unsafe { libc::munmap(at, bytes) };
}

// SAFETY: all memory is the system allocator's, which is asked twice at most.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to what the trait demands, and so does this call.
        let got = unsafe { System.alloc(layout) };
        if got.is_null() && try_again(layout.size()) {
            // SAFETY: as above.
            return unsafe { System.alloc(layout) };
        }
        got
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let got = unsafe { System.alloc_zeroed(layout) };
        if got.is_null() && try_again(layout.size()) {
            // SAFETY: as in `alloc`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        got
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it came from the system's allocator, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; what could not be grown is as it was.
        let got = unsafe { System.realloc(at, layout, bytes) };
        if got.is_null() && try_again(bytes) {
            // SAFETY: as above.
            return unsafe { System.realloc(at, layout, bytes) };
        }
        got
    }
}
