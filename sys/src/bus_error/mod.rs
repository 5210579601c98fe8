//! SIGBUS in guest RAM: a page of a mapped snapshot file could not be read.
//!
//! The process must not die for it, and the guest need not: the disk may be back in a moment. The
//! handler waits a little and returns, upon which the access is made again, and the page is read
//! again. That is the whole retry, and it needs nothing that a handler may not do. Whoever watches
//! is told by a bell when it begins, and when a thread has waited in vain for as long as it was to.
//!
//! A thread that was said to be one that can wait ([`wait_at_bus_errors`]) goes on waiting: whoever
//! hears the bell stops the machine, and it rests where it is, by a signal that comes in here as
//! anywhere else. Any other thread gets a page of zeros in the place of the unreadable one, so that
//! nobody waits for ever. The memory is no more what it should be then, and who watches is told
//! that, too. As long as the kernel has none to give, that thread waits like the others.
//!
//! A SIGBUS anywhere else is no business of this, and goes to whoever had the signal before the first
//! mapping was watched: a handler of the VMM, or the kernel's default, which ends the process. Whoever
//! takes the signal later has it for himself, and mapped RAM dies of it.

mod elsewhere;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use crate::{Mapping, page_size};

/// RAM blocks watched at once, over the whole process.
const SLOTS: usize = 64;
/// The longest wait between two tries.
const LONGEST_MS: i32 = 500;
/// A thread that was not here for so long meets a page for the first time.
const FORGOTTEN_MS: u64 = 5_000;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    bell: AtomicI32,
    patience_ms: AtomicU64,
    /// At which all are to be patient anew.
    round: AtomicU64,
    /// The address that could not be read last.
    last: AtomicUsize,
    failed: AtomicU64,
    in_vain: AtomicU64,
    lost: AtomicU64,
    /// Threads that are putting zeros somewhere, or trying to: what is lost is known when they are done.
    giving: AtomicU64,
}

static WATCHED: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        bell: AtomicI32::new(-1),
        patience_ms: AtomicU64::new(0),
        round: AtomicU64::new(0),
        last: AtomicUsize::new(0),
        failed: AtomicU64::new(0),
        in_vain: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        giving: AtomicU64::new(0),
    }
}; SLOTS];

static INSTALL: Once = Once::new();

/// A thread that waits for a page.
#[derive(Clone, Copy)]
struct Wait {
    page: usize,
    round: u64,
    since_ms: u64,
    last_ms: u64,
    step_ms: i32,
    in_vain: bool,
}

thread_local! {
    static WAIT: Cell<Wait> = const { Cell::new(Wait {
        page: 0,
        round: 0,
        since_ms: 0,
        last_ms: 0,
        step_ms: 1,
        in_vain: false,
    }) };
    static CAN_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread waits for an unreadable page as long as it takes. It must be one that is
/// brought to rest by a signal, wherever it is.
pub fn wait_at_bus_errors(wait: bool) {
    CAN_WAIT.set(wait);
}

/// While this lives, a bus error in the mapping rings [`BusErrors::bell`].
#[derive(Debug)]
pub struct BusErrors {
    slot: usize,
    bell: OwnedFd,
    mapping: Arc<Mapping>,
}

impl BusErrors {
    /// An eventfd that becomes readable when a page cannot be read, and when a thread has waited for
    /// one in vain.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Reads that failed so far.
    pub fn failed(&self) -> u64 {
        self.slot().failed.load(Ordering::Acquire)
    }

    /// How often a thread waited as long as it was to, in vain, and waits on.
    pub fn in_vain(&self) -> u64 {
        self.slot().in_vain.load(Ordering::Acquire)
    }

    /// Pages for which zeros were given.
    pub fn lost(&self) -> u64 {
        let slot = self.slot();
        // Whoever reads zeros and then asks whether pages are lost must hear of it.
        while slot.giving.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        slot.lost.load(Ordering::Acquire)
    }

    /// The page of the mapping that could not be read last.
    pub fn last_page(&self) -> Option<usize> {
        let last = self.slot().last.load(Ordering::Acquire);
        let offset = last.checked_sub(self.mapping.addr())?;
        Some(offset / page_size())
    }

    /// Threads that wait are patient anew: what they belong to goes on.
    pub fn renew(&self) {
        self.slot().round.fetch_add(1, Ordering::AcqRel);
    }

    fn slot(&self) -> &'static Slot {
        &WATCHED[self.slot]
    }
}

impl Drop for BusErrors {
    fn drop(&mut self) {
        let slot = self.slot();
        slot.end.store(0, Ordering::Release);
        slot.bell.store(-1, Ordering::Release);
        slot.start.store(0, Ordering::Release);
    }
}

/// Watches a mapping whose pages come from a file. For `patience` a page that cannot be read is tried
/// again.
///
/// # Errors
///
/// No eventfd to be had, or too many mappings watched at once.
pub fn catch_bus_errors(mapping: &Arc<Mapping>, patience: Duration) -> io::Result<BusErrors> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let bell = rustix::event::eventfd(0, flags)?;
    INSTALL.call_once(|| elsewhere::install(on_bus_error));
    let range = mapping.range(0, mapping.len());
    for (index, slot) in WATCHED.iter().enumerate() {
        let free = slot
            .start
            .compare_exchange(0, range.start, Ordering::AcqRel, Ordering::Relaxed);
        if free.is_ok() {
            for count in [&slot.failed, &slot.in_vain, &slot.lost] {
                count.store(0, Ordering::Release);
            }
            slot.last.store(0, Ordering::Release);
            // One that waits in another mapping's slot of before must not take this for its own.
            slot.round.fetch_add(1, Ordering::AcqRel);
            let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            slot.patience_ms.store(patience_ms, Ordering::Release);
            slot.bell.store(bell.as_raw_fd(), Ordering::Release);
            slot.end.store(range.end, Ordering::Release);
            return Ok(BusErrors {
                slot: index,
                bell,
                mapping: mapping.clone(),
            });
        }
    }
    Err(io::Error::other("too many mapped snapshot files at once"))
}

/// Runs in whatever thread touched the page: system calls and atomics only.
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, more: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let at = unsafe { (*info).si_addr() } as usize;
    let inside = |slot: &&Slot| {
        slot.start.load(Ordering::Acquire) <= at && at < slot.end.load(Ordering::Acquire)
    };
    let Some(slot) = WATCHED.iter().find(inside) else {
        return elsewhere::hand_on(signal, info, more);
    };
    // SAFETY: errno's place is the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    meet(slot, at & !(page_size() - 1));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Waits before the next try, or gives zeros.
fn meet(slot: &Slot, page: usize) {
    let (now, round) = (now_ms(), slot.round.load(Ordering::Acquire));
    let mut wait = WAIT.get();
    let known = wait.page == page && wait.round == round;
    if !known || now.saturating_sub(wait.last_ms) > FORGOTTEN_MS {
        wait = Wait {
            page,
            round,
            since_ms: now,
            last_ms: now,
            step_ms: 1,
            in_vain: false,
        };
    }
    slot.last.store(page, Ordering::Release);
    slot.failed.fetch_add(1, Ordering::AcqRel);
    let patience_ms = slot.patience_ms.load(Ordering::Acquire);
    if now.saturating_sub(wait.since_ms) >= patience_ms {
        // Where the process has as many mappings as it may, even this thread waits, and is heard of.
        if !CAN_WAIT.get() && give_zeros(slot, page) {
            return ring(slot);
        }
        if !std::mem::replace(&mut wait.in_vain, true) {
            slot.in_vain.fetch_add(1, Ordering::AcqRel);
        }
    }
    ring(slot);
    // SAFETY: no descriptors: it only waits, and may be called in a handler.
    unsafe { libc::poll(std::ptr::null_mut(), 0, wait.step_ms) };
    wait.step_ms = (wait.step_ms * 2).min(LONGEST_MS);
    wait.last_ms = now_ms();
    WAIT.set(wait);
}

/// False if the kernel has no zeros for it: they are a mapping of their own.
fn give_zeros(slot: &Slot, page: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let at = page as *mut libc::c_void;
    slot.giving.fetch_add(1, Ordering::AcqRel);
    // SAFETY: replaces one page inside a watched mapping, which this process owns and reaches by
    // raw copies only; mmap is safe in a handler in practice.
    let given = unsafe {
        let all = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(at, page_size(), all, flags, -1, 0)
    };
    let given = given != libc::MAP_FAILED;
    if given {
        slot.lost.fetch_add(1, Ordering::AcqRel);
    }
    slot.giving.fetch_sub(1, Ordering::AcqRel);
    given
}

fn ring(slot: &Slot) {
    let (bell, one) = (slot.bell.load(Ordering::Acquire), 1u64);
    // SAFETY: eight bytes that live here. A bell that is gone is an error, which is nobody's.
    unsafe { libc::write(bell, (&raw const one).cast(), 8) };
}

fn now_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for the answer; allowed in a handler.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}
