//! The program's memory: what is short does not end a machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_sys::Reserving;

#[global_allocator]
static ALLOCATOR: Reserving = Reserving;

/// How often the operator was told.
static TOLD: AtomicUsize = AtomicUsize::new(0);

/// Takes the reserve. Before there are other threads.
pub fn start() {
    Reserving::start();
}

/// Takes it again where it had to be given up, and says so. Called now and then, when nothing much
/// goes on.
pub fn refill() {
    let given_up = Reserving::refill();
    if TOLD.swap(given_up, Ordering::Relaxed) < given_up {
        tracing::warn!(
            given_up,
            "memory was refused: what was kept back for that was used"
        );
    }
}
