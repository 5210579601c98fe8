//! What is expected of a machine that stands still.

use std::time::Duration;

/// What the state of vCPUs and devices costs a machine that moves, while it stands still for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCost {
    /// Bytes of it.
    pub bytes: u64,
    /// How long it takes to stop all that runs, to save the state here, and to load and start it there.
    pub time: Duration,
}
