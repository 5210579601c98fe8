//! Says of a picture of guest RAM, page by page, whether it is right.
//!
//! The workload's writes are arithmetic, so the counters in a picture imply what every page of
//! it holds. [`check`] reads them and compares all of RAM: the pages that the vCPUs and the
//! devices write, the pages below 2 MiB where the guest program lies, and the rest, which is
//! zero. No page is exempt; the only bytes that may be anything are the used part of each
//! vCPU's stack.
//!
//! It shares no code with the engine that made the picture: [`SnapshotFile`] reads the file
//! layout by a small reader of its own, [`Process`] looks at a running VMM from outside. A
//! mistake in the engine's idea of its formats is therefore not repeated here.
#![forbid(unsafe_code)]

mod check;
mod expectation;
mod memory;
mod process;
mod report;
mod snapshot_file;

pub use check::{CheckError, check};
pub use memory::Memory;
pub use process::{Process, ProcessBlock};
pub use report::{DeviceWriter, Report, VcpuCounters, Wrong};
pub use snapshot_file::{SnapshotFile, SnapshotFileError};
