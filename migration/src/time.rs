//! Times as they are reported, and one that both sides keep.

use std::time::Duration;

/// A side that may be silent for ever has so long to say its last words, and to take those of the other.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(10);

/// Whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The host's CLOCK_MONOTONIC, which is the same in all its processes.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
