//! What can go wrong with a file.

use std::io;
use std::path::PathBuf;

use rustix::fs::FileType;

/// The file's fault, or the host's, or the caller's ([`TargetError`]).
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub struct FileError {
    /// What was tried, as a verb.
    pub doing: &'static str,
    /// The file, as the caller named it.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl FileError {
    /// What was `doing` when a name was to outlive a crash of the host.
    pub const SYNC_DIRECTORY: &str = "sync the directory of";
}

/// Why a file that was written does not stand under its name.
#[derive(Debug, thiserror::Error)]
pub enum NotNamed {
    /// It certainly does not, and never will.
    #[error(transparent)]
    No(FileError),
    /// The host's: it may.
    #[error("whether {} was written is not known", .0.path.display())]
    Unknown(#[source] FileError),
}

impl From<FileError> for NotNamed {
    fn from(error: FileError) -> Self {
        Self::No(error)
    }
}

/// The caller's: no file can be put there. It is inside the [`FileError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A directory, or a name that can only be one of a directory.
    #[error("it is a directory")]
    Directory,
    /// Not replaced: whoever reads from it would never get a byte.
    #[error("it is a pipe")]
    Pipe,
    /// Not replaced, for the same reason.
    #[error("it is a socket")]
    Socket,
    /// Not replaced: `/dev/null` would be a file from then on.
    #[error("it is a device")]
    Device,
    /// `/dev/stdout`, `/dev/fd/7` and their like: which file that is depends on the process, and
    /// replacing the file changes nothing for whoever has it open.
    #[error("it leads to a descriptor of this process")]
    Descriptor,
    /// A link in a directory where everybody may put one, from somebody else. The kernel does not
    /// follow these either (`fs.protected_symlinks`).
    #[error("it is somebody else's link in a directory that all may write to")]
    ForeignLink,
    /// Something is mounted on the file, as a container's host does it.
    #[error("something is mounted on it")]
    MountPoint,
    /// It is somebody else's in a sticky directory, or immutable, or append-only.
    #[error("the file that is there may not be replaced")]
    Irreplaceable,
    /// A link or a directory was changed while the file was written.
    #[error("its name leads elsewhere by now")]
    Moved,
}

impl TargetError {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Directory,
        Self::Pipe,
        Self::Socket,
        Self::Device,
        Self::Descriptor,
        Self::ForeignLink,
        Self::MountPoint,
        Self::Irreplaceable,
        Self::Moved,
    ];

    /// What is neither a regular file nor a link.
    pub fn of_kind(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Directory,
            FileType::Fifo => Self::Pipe,
            FileType::Socket => Self::Socket,
            _ => Self::Device,
        }
    }
}

impl From<TargetError> for io::Error {
    fn from(error: TargetError) -> Self {
        Self::other(error)
    }
}
