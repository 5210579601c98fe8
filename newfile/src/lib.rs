//! A file that stands under its name only when it is complete: a snapshot, or a stream.
//!
//! It has no name until it is complete and on the disk: it is made without one (`O_TMPFILE`), so
//! that a killed process leaves nothing behind, and linked and renamed at the end, which replaces
//! an older file in one step. On file systems that cannot do this it has a name of its own
//! (`.NAME.RANDOM.partial`) meanwhile, which a failure removes.
//!
//! # What can fail, and when
//!
//! Whoever finds the file under its name may run the guest that is in it. So there is one moment,
//! the rename, before which any failure means that there is no file, and after which none does.
//!
//! *Before anything is written* all that can be known is found out: where the name leads and
//! whether what is there can be replaced ([`TargetError`]), that there is room for a page at least, that
//! a name can be given and changed, and that the name can be made to last (a directory that may be
//! written but not read cannot be opened to be synced, and some file systems sync none).
//!
//! *Before the rename* the content is synced, which is where a disk or a server that is full or
//! broken says so.
//!
//! *A rename that failed* may have been done all the same: the answer of a server can be lost. If
//! the temporary name is still there to be removed, it was not; if the file stands under its name,
//! it was; otherwise nobody knows, and [`NotNamed::Unknown`] says so.
//!
//! *After the rename* the directory is synced. If that fails the file is there for all who look,
//! and may be gone after a crash of the host: that is no failure but a warning, as the guest must
//! not run on beside a file that can be run.

#![forbid(unsafe_code)]

mod error;
mod file;
mod target;

pub use error::{FileError, NotNamed, TargetError};
pub use file::PartialFile;
