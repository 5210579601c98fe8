//! Background snapshot and restore: how a machine's memory and devices leave and come back.
//!
//! A VMM implements [`machine::Machine`] and keeps one [`Memory`] for it. Then
//!
//! * [`snapshot`] saves it to a file in QEMU's mapped-ram layout, while it runs
//!   ([`SnapshotOptions::background`]) or stopped;
//! * [`restore::RestoreFile`] and [`restore::restore_ram`] bring it back: all at once, by mapping
//!   the file, or page by page while it runs already.
//!
//! What an operator sees of a running snapshot, and how he cancels it, is a [`Control`].

#![forbid(unsafe_code)]

pub mod channel;
pub mod control;
pub mod destination;
mod error;
mod file;
pub mod handover;
pub mod machine;
mod memory;
pub mod multifd;
pub mod options;
mod outlet;
pub mod restore;
mod save;
mod snapshot;
pub mod source;
pub mod switchover;

pub use control::{Control, Status};
pub use error::SnapshotError;
pub use memory::Memory;
pub use options::{HugePolicy, Sabotage, SnapshotOptions};
pub use snapshot::{SnapshotReport, snapshot, snapshot_to_stream};
