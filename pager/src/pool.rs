//! What is wanted, urgent first.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use paguro_ram::Located;

/// The queue of pages that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Located>,
    closed: bool,
}

impl Wanted {
    /// Queues one; false once it is closed, for then nobody may be left to serve it.
    pub(crate) fn push(&self, at: Located) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.queue.push_back(at);
        drop(state);
        // `sleep` waits on the same condition: one of all who are told may be the wrong one.
        self.changed.notify_all();
        true
    }

    /// The next one, or `None` once it is closed and empty.
    pub(crate) fn wait(&self) -> Option<Located> {
        let mut state = self.lock();
        loop {
            if let Some(at) = state.queue.pop_front() {
                return Some(at);
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Waits that long; false if it was closed meanwhile.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let state = self.lock();
        if state.closed {
            return false;
        }
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, |state| !state.closed)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        !state.closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
