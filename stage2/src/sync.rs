//! Where atomics come from: `core`, or shuttle when its scheduler explores interleavings.

#[cfg(not(feature = "shuttle"))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// One turn of a wait loop. Under shuttle it hands over to another task, or a wait would never end.
pub fn spin_loop() {
    #[cfg(not(feature = "shuttle"))]
    core::hint::spin_loop();
    #[cfg(feature = "shuttle")]
    shuttle::hint::spin_loop();
}

#[cfg(all(feature = "sim", feature = "shuttle"))]
pub(crate) use shuttle::{sync::Mutex, thread_local};
#[cfg(all(feature = "sim", not(feature = "shuttle")))]
pub(crate) use std::{sync::Mutex, thread_local};
