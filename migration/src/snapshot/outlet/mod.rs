//! Where a snapshot goes: into a file, or away as a stream.
//!
//! Both are opened before the guest notices anything ([`Opened`]), and take pages when the lengths of
//! the blocks are known ([`Outlet`]). What is dropped before it is complete leaves no file; a stream ends
//! where it is.

mod file;
mod stream;
mod tables;

use paguro_wire::device::DeviceSection;
use paguro_wire::snapshot::extension::Facts;

use super::picture::Picture;
use super::request::Request;
use crate::{Control, SnapshotError};

pub(super) use stream::StreamOutlet;

/// A way out that nothing of RAM went through yet.
pub(super) trait Opened {
    /// What takes the pages.
    type Outlet: Outlet;

    /// In the pause the blocks had these lengths, in bytes.
    fn lay_out(
        self,
        request: Request<'_>,
        lengths: &[usize],
    ) -> Result<Self::Outlet, SnapshotError>;
}

/// A way out for pages, then for all the rest. Called in this order, by one thread.
pub(super) trait Outlet {
    /// Saves all pages. The first failure ends it, and frees whoever waits for room.
    fn save_pages(&mut self, picture: &Picture<'_>) -> Result<(), SnapshotError>;

    /// Bytes that tables about all pages occupy, until the rest is written.
    fn table_bytes(&self) -> usize;

    /// Writes everything that is not pages.
    fn write_rest(&mut self, devices: &[DeviceSection], facts: &Facts)
    -> Result<(), SnapshotError>;

    /// Bytes written so far.
    fn written_bytes(&self) -> u64;

    /// Makes what was written outlive the host, as far as it can be before it is completed. A cancel
    /// that has come by then is heeded, unless the other side may have all of it already.
    fn settle(&mut self, control: &Control) -> Result<(), SnapshotError>;

    /// Length of all of it in bytes, holes included.
    fn len_bytes(&self) -> u64;

    /// Gives it its name, or its end; what could not be confirmed is given back in words. Whether it
    /// may be there in spite of an error is told by [`SnapshotError::is_in_doubt`].
    fn complete(self) -> Result<Option<String>, SnapshotError>;
}
