//! What a VMM names, all at once: `use paguro_migration::prelude::*;`.
//!
//! The traits and what they are asked, RAM, device sections, and each operation with its options and
//! errors. The crates below are there as a whole, too, as modules of this one ([`crate::ram`],
//! [`crate::sys`], [`crate::wire`], [`crate::dirty`], [`crate::channel`]), so that a VMM depends on
//! one crate, and on one version of each.

pub use paguro_dirty::FreezeError;
pub use paguro_dirty::tracker::{AsyncProtect, MarkTracker, Marks, Tracker, TrackerError, Union};
pub use paguro_pager::SourceError;
pub use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock, RamError};
pub use paguro_sys::{Fallbacks, Host, Mapping};
pub use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};

pub use crate::channel::{self, Address, Incoming, Stop};
pub use crate::control::{Control, Status};
pub use crate::destination::{Arrival, ReceiveError, ReceiveOptions, receive};
pub use crate::error::{MigrateError, SnapshotError, with_causes};
pub use crate::machine::{
    Board, DeviceCost, Machine, MachineError, Paused, Recipient, Stay, Writer, WriterClass,
};
pub use crate::memory::Memory;
pub use crate::options::SnapshotOptions;
pub use crate::restore::{
    Filler, MapWatch, Prefetch, RestoreError, RestoreFile, RestoreMode, RestoreOptions, Restored,
    Waiters, fill, restore_ram,
};
pub use crate::snapshot::{SnapshotReport, check_can_freeze, snapshot, snapshot_to_stream};
pub use crate::source::{MigrateOptions, MigrateReport, Migration, Mode, Pages, migrate};
