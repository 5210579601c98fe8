//! How one thread is let through or held.
//!
//! A thread that works for the machine passes its gate between any two steps of its work. A
//! closed gate holds it there, and only there does it count as at rest. Opening, closing and
//! ending never wait; [`Gate::wait_at_rest`] does.
//!
//! Gates of threads that go on together form a chain: a thread that wakes up wakes the next. On a
//! busy host the first to wake up often takes the CPU of whoever opened the gates, and the others
//! would sleep until that one gets it back, 5-10 ms later.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Steps in which a kick is repeated until the thread is at rest.
const KICK_STEP: Duration = Duration::from_micros(200);

/// The gate of one thread.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Microseconds that the thread is to nap for.
    nap_us: AtomicU32,
    /// Sent to the thread when the gate closes, if it has a signal of its own.
    signal: Option<i32>,
    next: OnceLock<Arc<Gate>>,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    end: bool,
    at_rest: bool,
    gone: bool,
    /// The thread, while it can be signalled.
    tid: Option<i32>,
}

/// Held by the thread of a gate; dropping it says that the thread is gone.
pub(crate) struct Passage<'a>(&'a Gate);

impl Gate {
    /// A closed gate for a thread that looks at it by itself, soon enough.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A closed gate for a thread that must be kicked out of what it does, by this signal.
    pub(crate) fn with_signal(signal: i32) -> Self {
        Self {
            signal: Some(signal),
            ..Self::default()
        }
    }

    /// Names the gate whose thread this one's wakes.
    pub(crate) fn chain(&self, next: Arc<Gate>) {
        // A second one would be a bug without consequences.
        let _ = self.next.set(next);
    }

    /// Lets the thread through, when it looks.
    pub(crate) fn open(&self) {
        let mut state = self.state.lock();
        // Of a nap that was ordered before the thread was held nobody wants anything any more.
        self.nap_us.store(0, Ordering::Release);
        state.open = true;
    }

    /// Makes the thread look.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Holds the thread from its next step on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.open = false;
        self.kick(&state);
        drop(state);
        self.changed.notify_all();
    }

    /// Makes the thread end at its next step.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.end = true;
        self.kick(&state);
        drop(state);
        self.changed.notify_all();
    }

    /// The thread's registered life: to be taken by the thread itself, first of all.
    pub(crate) fn enter(&self) -> Passage<'_> {
        // SAFETY: gettid has no arguments and no failure.
        self.state.lock().tid = Some(unsafe { libc::gettid() });
        Passage(self)
    }

    /// Waits until the thread is at rest (or gone), kicking it if it needs that, at most until
    /// `deadline`; whether it is. The gate must stay closed meanwhile.
    pub(crate) fn wait_at_rest(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.at_rest && !state.gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.kick(&state);
            let step = self.signal.map_or(left, |_| KICK_STEP.min(left));
            self.changed.wait_for(&mut state, step);
        }
        true
    }

    /// Waits until the thread is gone, at most until `deadline`; whether it is.
    pub(crate) fn wait_gone(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.kick(&state);
            let step = left.min(Duration::from_millis(1));
            self.changed.wait_for(&mut state, step);
        }
        true
    }

    /// Says that the thread will never be there (it could not be made).
    pub(crate) fn never_entered(&self) {
        self.state.lock().gone = true;
    }

    /// Has the thread do nothing for so long, unless the gate closes before. For threads that are
    /// kicked.
    pub(crate) fn nap(&self, length: Duration) {
        let us = u32::try_from(length.as_micros()).unwrap_or(u32::MAX);
        let state = self.state.lock();
        if state.open {
            self.nap_us.store(us, Ordering::Release);
            self.kick(&state);
        }
    }

    fn kick(&self, state: &State) {
        if let (Some(signal), Some(tid), false) = (self.signal, state.tid, state.at_rest) {
            // SAFETY: the thread exists: it takes its id back, under this lock, before it ends.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
        }
    }
}

impl Passage<'_> {
    /// Whether the gate is open, without waiting.
    pub(crate) fn is_open(&self) -> bool {
        let state = self.0.state.lock();
        state.open && !state.end
    }

    /// Whether the thread is to end, without waiting.
    pub(crate) fn is_to_end(&self) -> bool {
        self.0.state.lock().end
    }

    /// Waits at a closed gate; false if the thread is to end.
    pub(crate) fn pass(&self) -> bool {
        let mut state = self.0.state.lock();
        if state.open && !state.end {
            return true;
        }
        state.at_rest = true;
        self.0.changed.notify_all();
        let go = self.leave_rest(state);
        if let Some(next) = self.0.next.get() {
            next.wake();
        }
        go
    }

    /// Does something that may take as long as it likes and changes nothing: meanwhile the thread is at
    /// rest. Then waits at the gate; false if the thread is to end.
    pub(crate) fn at_rest(&self, what: impl FnOnce()) -> bool {
        self.0.state.lock().at_rest = true;
        self.0.changed.notify_all();
        what();
        self.leave_rest(self.0.state.lock())
    }

    /// Rests until the gate opens; false if the thread is to end, which is a rest that lasts.
    fn leave_rest(&self, mut state: MutexGuard<'_, State>) -> bool {
        let closed = |state: &mut State| !state.open && !state.end;
        self.0.changed.wait_while(&mut state, closed);
        state.at_rest = state.end;
        !state.end
    }

    /// Naps, if it is to.
    pub(crate) fn nap(&self) {
        match self.0.nap_us.swap(0, Ordering::AcqRel) {
            0 => {}
            us => self.sleep(Duration::from_micros(us.into())),
        }
    }

    /// Sleeps, unless the gate closes before.
    pub(crate) fn sleep(&self, length: Duration) {
        let until = Instant::now() + length;
        let mut state = self.0.state.lock();
        while state.open && !state.end {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.0.changed.wait_for(&mut state, left);
        }
    }

    /// Does nothing more until the thread is to end.
    pub(crate) fn wait_end(&self) {
        while self.pass() {
            self.sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.gone = true;
        state.tid = None;
        self.0.changed.notify_all();
    }
}
