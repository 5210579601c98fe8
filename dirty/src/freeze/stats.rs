//! What a freeze counts.

use std::sync::atomic::AtomicU64;

/// Numbers of a freeze.
#[derive(Debug, Default)]
pub struct FreezeStats {
    /// Faults on protected pages while arming.
    pub arming_faults: AtomicU64,
    /// Faults on protected pages while frozen that led to a copy.
    pub faults: AtomicU64,
    /// Pages copied because of a fault.
    pub fault_pages: AtomicU64,
    /// Rounds of arming.
    pub rounds: AtomicU64,
    /// Pages armed inside the pause.
    pub rearmed_pages: AtomicU64,
}
