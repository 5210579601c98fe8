//! Stopping a thread wherever it is.
//!
//! A flag that the thread looks at could not stop one that waits in a page fault, and a pause
//! during a freeze would wait for the very handler that waits for the pause. So the thread gets a
//! signal, whose handler waits on a futex until the thread may go on: 50-110 us, also out of a
//! fault, which is simply taken again afterwards. The handler only uses atomics and futexes.
//!
//! A thread that is stopped anywhere must not hold what others need, the allocator's locks for
//! one. So it is stopped so only while it works ([`Parking::work`], which must not allocate, lock
//! or print), and elsewhere at its next work; a thread without any more work has *retired*, which
//! is a rest too. A lock that nobody else wants is no exception: waiters of all locks of the process
//! stand in one table, and a thread that is stopped in it would keep strangers from each other's locks.
//!
//! Work that cannot do without a lock has parts that are done *whole* ([`Parking::whole`]): there the
//! handler returns at once, and the thread parks itself when the part is over. Such a part must be
//! short, and must not wait for anything that a machine at rest, or a page fault, could keep from it.
//!
//! ```text
//!            close             handler
//!   RUNNING -------> WANTED ------------> PARKED
//!      ^                |                    |
//!      +------ open ----+------- open -------+
//! ```
//!
//! A thread that works is at rest in PARKED only, and only the thread itself goes there; so a `close` that
//! comes while the handler is still on its way out finds WANTED, and the thread parks again.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering, compiler_fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::control::Hold;

const RUNNING: u32 = 0;
const WANTED: u32 = 1;
const PARKED: u32 = 2;

/// Steps in which the signal is sent again, in case one found no place in the queue.
const SIGNAL_STEP: Duration = Duration::from_millis(1);

thread_local! {
    /// Where this thread parks, while it works.
    static HERE: Cell<*const Park> = const { Cell::new(ptr::null()) };
    /// Whether it is in a part of its work that is done whole.
    static WHOLE: Cell<bool> = const { Cell::new(false) };
}

static INSTALLED: OnceLock<bool> = OnceLock::new();

fn park_signal() -> i32 {
    SIGRTMIN() + 1
}

/// Makes the signal park threads, for the whole process.
pub(super) fn install() -> io::Result<()> {
    let installed =
        *INSTALLED.get_or_init(|| register_signal_handler(park_signal(), on_park).is_ok());
    if installed {
        Ok(())
    } else {
        Err(io::Error::other("the signal is not to be had"))
    }
}

extern "C" fn on_park(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let here = HERE.get();
    // One that panics holds the locks of whatever it prints with, and retires when it is through.
    if here.is_null() || WHOLE.get() || std::thread::panicking() {
        return;
    }
    // SAFETY: errno's place is the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: set by `Parking::work`, which borrows the `Park` for as long.
    unsafe { &*here }.park();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Where one thread parks. It begins parked, before the thread exists.
#[derive(Debug)]
pub(super) struct Park {
    state: AtomicU32,
    /// 1 when the thread is to end.
    end: AtomicU32,
    /// 1 when the thread will not work any more.
    retired: AtomicU32,
    /// The thread, while it can be signalled; 0 otherwise.
    tid: AtomicI32,
    /// 1 when the thread is gone.
    gone: AtomicU32,
    /// Held while the thread is signalled and while it goes, so that none else is signalled.
    leaving: Mutex<()>,
    /// Microseconds that the thread is to nap for.
    nap_us: AtomicU32,
    /// Whom this thread wakes when it wakes up (see `gate`).
    next: OnceLock<Arc<Park>>,
}

impl Default for Park {
    fn default() -> Self {
        Self {
            state: AtomicU32::new(PARKED),
            end: AtomicU32::new(0),
            retired: AtomicU32::new(0),
            tid: AtomicI32::new(0),
            gone: AtomicU32::new(0),
            leaving: Mutex::new(()),
            nap_us: AtomicU32::new(0),
            next: OnceLock::new(),
        }
    }
}

/// Held by the thread; dropping it says that the thread is gone.
pub(super) struct Parking<'a>(&'a Park);

impl Park {
    /// To be called by the thread itself, first of all. Returns when it may run, or is to end.
    pub(super) fn enter(&self) -> Parking<'_> {
        // SAFETY: gettid has no arguments and no failure.
        self.tid.store(unsafe { libc::gettid() }, Ordering::Release);
        self.park();
        Parking(self)
    }

    /// Whether the thread is to end.
    #[inline(always)]
    pub(super) fn must_end(&self) -> bool {
        self.end.load(Ordering::Relaxed) != 0
    }

    /// Naps, if it is to. The signal that parks works in a nap, too.
    #[inline(always)]
    pub(super) fn nap_if_told(&self) {
        if self.nap_us.load(Ordering::Relaxed) != 0 {
            self.nap_now();
        }
    }

    #[cold]
    fn nap_now(&self) {
        const STEP_US: u32 = 5_000;
        let mut left_us = self.nap_us.swap(0, Ordering::AcqRel);
        while left_us > 0 && !self.must_end() {
            let us = left_us.min(STEP_US);
            std::thread::sleep(Duration::from_micros(us.into()));
            left_us -= us;
        }
    }

    /// Names the one whose thread this one's wakes.
    pub(super) fn chain(&self, next: Arc<Park>) {
        // A second one would be a bug without consequences.
        let _ = self.next.set(next);
    }

    pub(super) fn end(&self) {
        self.end.store(1, Ordering::Release);
        futex_wake(&self.end);
        self.open();
        self.wake();
    }

    pub(super) fn never_entered(&self) {
        self.gone.store(1, Ordering::Release);
    }

    /// Waits until the thread is gone, at most until `deadline`; whether it is.
    pub(super) fn wait_gone(&self, deadline: Instant) -> bool {
        while self.gone.load(Ordering::Acquire) == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            futex_wait(&self.gone, 0, Some(left));
        }
        true
    }

    /// Waits while the gate is closed. Runs in the signal's handler too.
    fn park(&self) {
        loop {
            match self.state.load(Ordering::Acquire) {
                RUNNING => {
                    if let Some(next) = self.next.get() {
                        futex_wake(&next.state);
                    }
                    return;
                }
                WANTED => {
                    let parked = self.state.compare_exchange(
                        WANTED,
                        PARKED,
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    if parked.is_ok() {
                        futex_wake(&self.state);
                    }
                }
                state => futex_wait(&self.state, state, None),
            }
        }
    }

    fn signal(&self) {
        let _leaving = self.leaving.lock();
        let tid = self.tid.load(Ordering::Acquire);
        if tid != 0 {
            // SAFETY: the thread exists: it takes its id back under this lock before it ends.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, park_signal()) };
        }
    }
}

impl Hold for Park {
    fn open(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    fn wake(&self) {
        futex_wake(&self.state);
    }

    fn close(&self) {
        let closed =
            self.state
                .compare_exchange(RUNNING, WANTED, Ordering::AcqRel, Ordering::Acquire);
        if closed.is_ok() {
            self.signal();
        }
        // A thread that is to end does not park again.
        if self.must_end() {
            self.open();
            self.wake();
        }
    }

    fn nap(&self, length: Duration) {
        let us = u32::try_from(length.as_micros()).unwrap_or(u32::MAX);
        self.nap_us.store(us, Ordering::Release);
    }

    fn wait_at_rest(&self, deadline: Instant) -> bool {
        let at_work = || {
            self.state.load(Ordering::Acquire) == WANTED
                && self.retired.load(Ordering::Acquire) == 0
                && self.gone.load(Ordering::Acquire) == 0
        };
        while at_work() {
            let since = Instant::now();
            if since >= deadline {
                return false;
            }
            futex_wait(&self.state, WANTED, Some(SIGNAL_STEP));
            if since.elapsed() >= SIGNAL_STEP {
                self.signal();
            }
        }
        true
    }
}

impl Parking<'_> {
    /// Works: stopped at any instruction of `work`, which therefore holds nothing.
    pub(super) fn work<T>(&self, work: impl FnOnce() -> T) -> T {
        HERE.set(self.0);
        let _over = Over(|| HERE.set(ptr::null()));
        compiler_fence(Ordering::SeqCst);
        // A signal that came before was lost on a thread that did not work.
        self.0.park();
        work()
    }

    /// Does a part of the work that must not be stopped halfway: it may lock and allocate.
    pub(super) fn whole<T>(&self, part: impl FnOnce() -> T) -> T {
        WHOLE.set(true);
        let over = Over(|| WHOLE.set(false));
        compiler_fence(Ordering::SeqCst);
        let done = part();
        drop(over);
        // A signal that came meanwhile found nobody to park.
        if self.0.state.load(Ordering::Acquire) != RUNNING {
            self.0.park();
        }
        done
    }

    /// There is no more work.
    pub(super) fn retire(&self) {
        self.0.retired.store(1, Ordering::Release);
        futex_wake(&self.0.state);
    }

    /// Waits until the thread is to end.
    pub(super) fn wait_end(&self) {
        while !self.0.must_end() {
            futex_wait(&self.0.end, 0, None);
        }
    }
}

/// Done at the end of a part of the work, also if that panics.
struct Over<F: Fn()>(F);

impl<F: Fn()> Drop for Over<F> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        (self.0)();
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Parking<'_> {
    fn drop(&mut self) {
        let _leaving = self.0.leaving.lock();
        self.0.tid.store(0, Ordering::Release);
        self.0.gone.store(1, Ordering::Release);
        futex_wake(&self.0.gone);
        futex_wake(&self.0.state);
    }
}

fn futex_wait(word: &AtomicU32, expected: u32, most: Option<Duration>) {
    let time = most.map(|most| libc::timespec {
        tv_sec: most.as_secs() as libc::time_t,
        tv_nsec: most.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the time outlive the call; every result is followed by another look.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, time) };
}

fn futex_wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: waking takes the address only, which is valid.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// A thread that counts without ever looking at anything but its end.
    fn counter() -> (Arc<Park>, Arc<AtomicU64>) {
        install().unwrap();
        let (park, count) = (Arc::new(Park::default()), Arc::new(AtomicU64::new(0)));
        let (its, counted) = (park.clone(), count.clone());
        std::thread::spawn(move || {
            its.enter().work(|| {
                while !its.must_end() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        (park, count)
    }

    #[test]
    fn a_thread_at_rest_does_nothing_however_fast_it_is_let_go_and_stopped() {
        let _ends = paguro_testkit::must_end();
        let (park, count) = counter();
        for round in 0..500 {
            park.open();
            park.wake();
            if round % 2 == 0 {
                while count.load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
            }
            park.close();
            assert!(park.wait_at_rest(Instant::now() + Duration::from_secs(20)));
            let before = count.swap(0, Ordering::Relaxed);
            std::thread::yield_now();
            assert_eq!(
                count.load(Ordering::Relaxed),
                0,
                "round {round}, {before} before"
            );
        }
        park.end();
        assert!(park.wait_gone(Instant::now() + Duration::from_secs(10)));
    }
}
