//! What can go wrong with a snapshot.

use std::collections::TryReserveError;
use std::path::PathBuf;

use paguro_dirty::FreezeError;
use paguro_faults::FaultsError;
use paguro_newfile::{FileError, NotNamed};
use paguro_wire::device::DeviceError;
use paguro_wire::snapshot::LayoutError;

use super::{MigrateError, with_causes};
use crate::machine::MachineError;

/// A snapshot failed. The guest runs on as before, nothing of it is protected any more, and no new
/// file stands under the name that was asked for, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The caller's: one is under way already.
    #[error("another snapshot or migration of this machine is under way")]
    Busy,
    /// The caller's: options that make no sense.
    #[error("{option} cannot be {value}: {rule}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it was.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// The machine's: somebody writes guest RAM whom a freeze cannot see.
    #[error("{writer} writes guest RAM unseen, so it cannot be frozen while the machine runs")]
    UnseenWriter {
        /// His name.
        writer: String,
    },
    /// The host's: faults that are taken in the kernel are not delivered to this process.
    #[error("this process may not handle page faults that are taken in the kernel")]
    NoKernelFaults,
    /// The host's: no userfaultfd, or not enough of it.
    #[error("this host cannot freeze guest RAM")]
    CannotFreeze(#[source] FaultsError),
    /// The host's: its userfaultfd lacks a feature.
    #[error("userfaultfd on this host cannot write-protect {memory}")]
    NoWriteProtect {
        /// Which memory.
        memory: &'static str,
    },
    /// The freeze failed.
    #[error("guest RAM could not be held at one moment")]
    Freeze(#[source] FreezeError),
    /// The host's: no memory for the checksums of all pages.
    #[error("no memory for the tables of a snapshot")]
    Tables(#[from] TryReserveError),
    /// The file's that RAM comes from: a page of it could not be read and is zeros here, or is another one.
    #[error("pages of guest RAM could not be read from the file that they are in, and are lost")]
    LostPages,
    /// The machine failed.
    #[error("the machine could not be saved")]
    Machine(#[from] MachineError),
    /// The machine's: RAM blocks that no file can hold.
    #[error("the machine's RAM does not fit the file format")]
    Layout(#[from] LayoutError),
    /// The machine's: device state that no file can hold.
    #[error("the machine's devices do not fit the file format")]
    Device(#[from] DeviceError),
    /// The machine's: a RAM block changed its length when a stream had told it already.
    #[error("the machine's RAM blocks changed while the snapshot was being prepared")]
    BlocksChanged,
    /// The file's, or the caller's where a [`TargetError`](crate::TargetError) is inside.
    #[error("cannot {doing} {path}")]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's: the file is whole and was to get its name, and nobody knows whether it did. A
    /// guest that was stopped for it stays so.
    #[error("whether {path} was written is not known")]
    FileInDoubt {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The channel of a snapshot that goes out as a stream.
    #[error("the snapshot cannot be sent")]
    Stream(#[source] Box<MigrateError>),
    /// The host's: no thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The machine's: the snapshot came to nothing, and the guest, which was to run on, stands still.
    #[error("{}; then the guest could not be resumed", with_causes(.failed))]
    NotResumed {
        /// Why there is no snapshot.
        failed: Box<SnapshotError>,
        /// Why it does not run.
        #[source]
        source: MachineError,
    },
    /// Cancelled.
    #[error("the snapshot was cancelled")]
    Cancelled,
}

impl SnapshotError {
    /// Whether the file may have got its name all the same.
    pub(crate) fn is_in_doubt(&self) -> bool {
        match self {
            Self::FileInDoubt { .. } => true,
            Self::Stream(error) => error.is_file_in_doubt(),
            _ => false,
        }
    }
}

impl From<FileError> for SnapshotError {
    fn from(error: FileError) -> Self {
        Self::File {
            doing: error.doing,
            path: error.path,
            source: error.source,
        }
    }
}

impl From<NotNamed> for SnapshotError {
    fn from(error: NotNamed) -> Self {
        match error {
            NotNamed::No(error) => error.into(),
            NotNamed::Unknown(FileError { path, source, .. }) => Self::FileInDoubt { path, source },
        }
    }
}
