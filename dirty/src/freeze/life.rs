//! How far a freeze is, and how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::{FreezeError, PageBuffer};

/// The epochs of a freeze. The first two may be followed by the last at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Epoch {
    /// Protection is being laid over RAM that changes still.
    Arming,
    /// The picture is that of the pause, and is being saved.
    Frozen,
    /// It was ended, or has failed: whoever writes, writes on.
    Over,
}

const ARMING: u8 = Epoch::Arming as u8;
const FROZEN: u8 = Epoch::Frozen as u8;
const OVER: u8 = Epoch::Over as u8;

/// The epoch, and the failure that ended it.
#[derive(Debug)]
pub(super) struct Life {
    epoch: AtomicU8,
    failed: Mutex<Option<FreezeError>>,
    ended: AtomicBool,
    /// Closed when it is over: nobody waits for room any more.
    buffer: Arc<PageBuffer>,
}

impl Life {
    /// It begins with arming.
    pub(super) fn new(buffer: Arc<PageBuffer>) -> Self {
        Self {
            epoch: AtomicU8::new(ARMING),
            failed: Mutex::new(None),
            ended: AtomicBool::new(false),
            buffer,
        }
    }

    /// The epoch.
    pub(super) fn now(&self) -> Epoch {
        match self.epoch.load(Ordering::Acquire) {
            ARMING => Epoch::Arming,
            FROZEN => Epoch::Frozen,
            _ => Epoch::Over,
        }
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.now() == Epoch::Over
    }

    /// Begins the frozen epoch. Not if it failed meanwhile: what is over stays over.
    pub(super) fn freeze(&self) {
        let _ = self
            .epoch
            .compare_exchange(ARMING, FROZEN, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Remembers the first failure and lets everybody go on unprotected.
    pub(super) fn fail(&self, error: FreezeError) {
        let mut failed = self.failed.lock();
        failed.get_or_insert(error);
        drop(failed);
        self.close();
    }

    /// The first failure, once.
    pub(super) fn failure(&self) -> FreezeError {
        self.failed.lock().take().unwrap_or(FreezeError::Ended)
    }

    /// Fails; what to tell the caller, who ran into it.
    pub(super) fn fail_with(&self, error: FreezeError) -> FreezeError {
        self.fail(error);
        self.failure()
    }

    /// Ends it, from any state. Whether the caller is the first to end it, and has to undo it.
    pub(super) fn end(&self) -> bool {
        self.close();
        !self.ended.swap(true, Ordering::AcqRel)
    }

    fn close(&self) {
        self.epoch.store(OVER, Ordering::Release);
        self.buffer.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life() -> Life {
        let buffer = PageBuffer::new(4 << 20, 16).unwrap();
        Life::new(Arc::new(buffer))
    }

    #[test]
    fn what_is_over_stays_over() {
        let life = life();
        assert_eq!(life.now(), Epoch::Arming);
        life.freeze();
        assert_eq!(life.now(), Epoch::Frozen);
        assert!(!life.is_over());
        assert!(life.buffer.take(1).is_some());
        assert!(life.end(), "the first");
        assert!(life.is_over());
        assert!(life.buffer.take(1).is_none(), "closed");
        life.freeze();
        assert!(life.is_over());
        assert!(!life.end(), "the second");
    }

    #[test]
    fn the_first_failure_is_told_once() {
        let life = life();
        life.fail(FreezeError::Bug);
        assert!(life.is_over());
        let told = life.fail_with(FreezeError::Busy);
        assert!(matches!(told, FreezeError::Bug), "{told}");
        assert!(matches!(life.failure(), FreezeError::Ended));
        assert!(life.end(), "a failure undoes nothing");
    }
}
