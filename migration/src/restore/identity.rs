//! Whether a file is still what it was.
//!
//! A restored machine goes on reading its file, for minutes or for as long as it lives. Whoever
//! writes to that file meanwhile (`cp` onto its name, `rsync --inplace`, a dump that goes to the same
//! path) changes the guest's memory. Writing moves the file's time of modification before it moves
//! the content, and cutting it short moves its length, so these two tell. Its other time (ctime)
//! does not: `chmod`, a link more or less, and a rename or another file *over* its name move it, and
//! touch not a byte of what is open here.
//!
//! Times can be set back, and writes through a shared mapping move them only once in a while.
//! Content that has checksums is therefore judged by these alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;

/// What tells that a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    size_bytes: u64,
    modified_s: i64,
    modified_ns: u32,
}

impl Identity {
    /// Of a file as it is now.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        // Of a file system on the network as it is there, not as it is remembered here.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        match statx(file, "", flags, StatxFlags::SIZE | StatxFlags::MTIME) {
            Ok(now) => Ok(Self {
                size_bytes: now.stx_size,
                modified_s: now.stx_mtime.tv_sec,
                modified_ns: now.stx_mtime.tv_nsec,
            }),
            // A filter of system calls may know only the older one.
            Err(Errno::NOSYS | Errno::PERM) => {
                let now = file.metadata()?;
                Ok(Self {
                    size_bytes: now.size(),
                    modified_s: now.mtime(),
                    modified_ns: now.mtime_nsec() as u32,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How the file differs from that, if it does. One that does not tell is the same until it tells
    /// otherwise: a server may be away.
    pub(crate) fn change(&self, file: &File) -> Option<String> {
        let now = Self::of(file)
            .inspect_err(|error| tracing::debug!(%error, "the file says nothing of itself"))
            .ok()?;
        if now.size_bytes != self.size_bytes {
            let (now, then) = (now.size_bytes, self.size_bytes);
            return Some(format!("it has {now} bytes instead of {then}"));
        }
        (now != *self).then(|| "it was written to".to_owned())
    }
}
