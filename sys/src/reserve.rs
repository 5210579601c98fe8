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
const LARGE_BYTES: usize = 8 << 20;

/// The system's allocator with a reserve: to be the program's `#[global_allocator]`.
#[derive(Debug)]
pub struct Reserving {
    reserve: AtomicPtr<libc::c_void>,
    given_up: AtomicUsize,
}

impl Default for Reserving {
    fn default() -> Self {
        Self::new()
    }
}

impl Reserving {
    /// Without a reserve: [`Reserving::start`] takes it.
    pub const fn new() -> Self {
        Self {
            reserve: AtomicPtr::new(null_mut()),
            given_up: AtomicUsize::new(0),
        }
    }

    /// Has all threads share one arena, and takes the reserve. To be called once, before there are
    /// other threads.
    pub fn start(&self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: sets a number of the C library's allocator.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        self.refill();
    }

    /// Takes the reserve again, if it was given up and can be had. How often it was given up.
    pub fn refill(&self) -> usize {
        if self.reserve.load(Ordering::Acquire).is_null() {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping at a place that the kernel chooses; nobody ever touches it.
            let taken =
                unsafe { libc::mmap(null_mut(), RESERVE_BYTES, libc::PROT_NONE, flags, -1, 0) };
            if taken != libc::MAP_FAILED && !self.put(taken) {
                // SAFETY: mapped above, and nobody else knows of it.
                unsafe { libc::munmap(taken, RESERVE_BYTES) };
            }
        }
        self.given_up.load(Ordering::Acquire)
    }

    fn put(&self, taken: *mut libc::c_void) -> bool {
        let (old, new) = (Ordering::AcqRel, Ordering::Acquire);
        let empty = null_mut();
        self.reserve
            .compare_exchange(empty, taken, old, new)
            .is_ok()
    }

    /// Whether it is worth trying again.
    #[cold]
    fn give_up(&self, bytes: usize) -> bool {
        if bytes > LARGE_BYTES {
            return false;
        }
        let reserve = self.reserve.swap(null_mut(), Ordering::AcqRel);
        if !reserve.is_null() {
            // SAFETY: it was mapped by `refill`, and whoever swaps it out is the only one to have it.
            unsafe { libc::munmap(reserve, RESERVE_BYTES) };
            self.given_up.fetch_add(1, Ordering::AcqRel);
        }
        // Somebody else may just have given it up.
        true
    }
}

// SAFETY: all memory is the system allocator's, which is asked twice at most.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to what the trait demands, and so does this call.
        let got = unsafe { System.alloc(layout) };
        if got.is_null() && self.give_up(layout.size()) {
            // SAFETY: as above.
            return unsafe { System.alloc(layout) };
        }
        got
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let got = unsafe { System.alloc_zeroed(layout) };
        if got.is_null() && self.give_up(layout.size()) {
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
        if got.is_null() && self.give_up(bytes) {
            // SAFETY: as above.
            return unsafe { System.realloc(at, layout, bytes) };
        }
        got
    }
}
