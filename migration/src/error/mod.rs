//! What can go wrong with what leaves: one enum for each operation.
//!
//! [`MigrateError`] is not the source's alone: a snapshot that goes out as a stream breaks in the same
//! ways, and a destination lists its blocks as a source does.

mod migrate;
mod snapshot;
mod words;

pub use migrate::MigrateError;
pub use snapshot::SnapshotError;
pub(crate) use words::unconfirmed;
pub use words::with_causes;
