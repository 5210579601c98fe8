//! How blocking calls are ended from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Ends everything that blocks with it, once and for good: clones are the same one.
///
/// One may serve a whole migration: all its connects, accepts, reads and writes.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Readable from the stop on, and never read: so it wakes all, and whoever comes later.
    event: OwnedFd,
    stopped: AtomicBool,
}

impl Stop {
    /// A fresh one.
    ///
    /// # Errors
    ///
    /// The host's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner {
            event,
            stopped: AtomicBool::new(false),
        })))
    }

    /// Stops; any thread, any number of times.
    pub fn stop(&self) {
        if !self.0.stopped.swap(true, Ordering::AcqRel) {
            // Cannot fail: the counter is zero.
            let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        }
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
