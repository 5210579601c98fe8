//! What the control side has a sender do, and why a sender ends.

use std::time::Duration;

use paguro_wire::device::DeviceSection;

use super::MigrateError;

/// Waits are looked into that often.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// What the control side has it do.
pub(super) enum Command {
    /// The guest is stopped: send what is left, and these.
    Rest(Vec<DeviceSection>),
    /// Send PING with this value.
    Ping(u32),
    /// Send the permission to run.
    Eof,
    /// Tell the destination to forget it.
    Forget,
    /// End the channel as a whole one.
    Finish,
}

/// Why the thread ends before it is told to.
pub(super) enum Stopped {
    /// It was told to, or the channel is being closed.
    Told,
    /// It failed.
    Failed(MigrateError),
}

impl From<MigrateError> for Stopped {
    fn from(error: MigrateError) -> Self {
        Self::Failed(error)
    }
}
