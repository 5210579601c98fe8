//! SIGINT and SIGTERM, as something to ask about and to wait for.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::log;

/// From when it is made, these signals no longer end the process by themselves; the second one
/// does.
#[derive(Clone, Debug)]
pub struct Interrupts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    came: Mutex<bool>,
    changed: Condvar,
}

/// What a process that was interrupted twice ends with, as shells have it for SIGINT.
const INTERRUPTED: i32 = 130;

impl Interrupts {
    /// Begins to catch them.
    pub fn catch() -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let shared = Arc::new(Shared::default());
        let tell = shared.clone();
        let listen = move || {
            for _ in signals.forever() {
                if std::mem::replace(&mut *tell.lock(), true) {
                    log::say(format_args!("interrupted again: leaving at once"));
                    log::exit(INTERRUPTED);
                }
                tell.changed.notify_all();
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)?;
        Ok(Self(shared))
    }

    /// Whether one came.
    pub fn came(&self) -> bool {
        *self.0.lock()
    }

    /// Waits so long, or until one comes.
    pub fn wait(&self, at_most: Duration) {
        let came = self.0.lock();
        // A poisoned lock would only shorten the wait.
        drop(
            self.0
                .changed
                .wait_timeout_while(came, at_most, |came| !*came),
        );
    }

    /// Waits until one comes.
    pub fn wait_for_one(&self) {
        let mut came = self.0.lock();
        while !*came {
            came = self
                .0
                .changed
                .wait(came)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
