//! A place where a pass can be stopped, so that a test decides who comes in between two chunks.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Longer than any of these waits takes on a host that is not dead.
const END: Duration = Duration::from_secs(60);
const OPEN: u64 = u64::MAX;

/// Stops a pass between two of its chunks, the lock in its hands, until another thread waits for the
/// lock; then the pass gives it up, and that thread has it next.
pub struct Gate {
    /// Chunks until the pass is stopped.
    left: AtomicU64,
    closed: AtomicBool,
    waited_for: AtomicBool,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            left: AtomicU64::new(OPEN),
            closed: AtomicBool::new(false),
            waited_for: AtomicBool::new(false),
        }
    }

    /// Closes after `chunks` more chunks, for one pass.
    pub fn close_after(&self, chunks: u64) {
        self.left.store(chunks, SeqCst);
    }

    /// Waits until a pass stands before it.
    pub fn reached(&self) {
        wait_for(|| self.closed.load(SeqCst), "no pass came to the gate");
    }

    /// A pass is between two chunks: whether it has to give up the lock.
    pub(super) fn pass(&self) -> bool {
        match self.left.load(SeqCst) {
            OPEN => return false,
            0 => {}
            left => {
                self.left.store(left - 1, SeqCst);
                return false;
            }
        }
        self.left.store(OPEN, SeqCst);
        self.closed.store(true, SeqCst);
        wait_for(|| self.waited_for.load(SeqCst), "nobody waits for the lock");
        self.closed.store(false, SeqCst);
        self.waited_for.store(false, SeqCst);
        true
    }

    /// Somebody waits for the lock.
    pub(super) fn wait(&self) {
        if self.closed.load(SeqCst) {
            self.waited_for.store(true, SeqCst);
        }
    }
}

fn wait_for(condition: impl Fn() -> bool, failure: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < END, "{failure}");
        std::thread::yield_now();
    }
}
