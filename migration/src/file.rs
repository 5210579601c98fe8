//! A file while it is written: a snapshot, or a stream.
//!
//! It has no name until it is complete and on the disk: it is made without one (`O_TMPFILE`), so
//! that a killed process leaves nothing behind, and linked and renamed at the end, which replaces
//! an older file in one step. On file systems that cannot do this it has a name of its own
//! (`.NAME.PID.partial`) meanwhile, which a failure removes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::SnapshotError;

/// The file's fault, or the host's.
#[derive(Debug)]
pub(crate) struct FileError {
    /// What was tried, as a verb.
    pub(crate) doing: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
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

/// A file that is not there yet.
#[derive(Debug)]
pub(crate) struct PartialFile {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    /// Its name for the time being, if it needs one.
    name: Option<PathBuf>,
    written_bytes: AtomicU64,
}

impl PartialFile {
    /// Makes one that shall become `path`. What is no regular file (a device, a pipe) is not
    /// replaced.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError {
            doing: "create",
            path: path.to_owned(),
            source,
        };
        if path.file_name().is_none() || path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let unnamed = options
            .clone()
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(&dir);
        let (file, name) = match unnamed {
            Ok(file) => (file, None),
            Err(error) if is_no_tmpfile(&error) => {
                let name = partial_name(path, &dir);
                (
                    options.create_new(true).open(&name).map_err(failed)?,
                    Some(name),
                )
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            dir,
            name,
            written_bytes: AtomicU64::new(0),
        })
    }

    /// Bytes written so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Sets the length, so that what is not written is a hole.
    pub(crate) fn set_len(&self, bytes: u64) -> Result<(), FileError> {
        self.file
            .set_len(bytes)
            .map_err(|error| self.failed("extend", error))
    }

    /// Takes over the first bytes of the file that it will replace, if there is one.
    pub(crate) fn keep_start(&self, bytes: u64) -> Result<(), FileError> {
        let failed = |error| self.failed("copy the start of", error);
        match File::open(&self.path) {
            Ok(old) => io::copy(&mut old.take(bytes), &mut &self.file)
                .map(drop)
                .map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes at a fixed place; any thread.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed("write", error))?;
        self.written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes pieces that follow each other in the file; any thread.
    pub(crate) fn write_pieces_at(
        &self,
        offset: u64,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), FileError> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = loop {
            match rustix::io::pwritev(&self.file, pieces, offset) {
                Ok(written) => break written,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.failed("write", error.into())),
            }
        };
        self.written_bytes
            .fetch_add(written as u64, Ordering::Relaxed);
        if written == total {
            return Ok(());
        }
        // Cut short: the rest piece by piece, which finds the error if there is one.
        let mut at = 0;
        for piece in pieces {
            let skip = written.saturating_sub(at).min(piece.len());
            self.write_at(offset + (at + skip) as u64, &piece[skip..])?;
            at += piece.len();
        }
        Ok(())
    }

    /// Gives it its name, when all of it is on the disk.
    pub(crate) fn complete(mut self, sync: bool) -> Result<(), FileError> {
        if sync {
            self.file
                .sync_all()
                .map_err(|error| self.failed("sync", error))?;
        }
        let name = match self.name.clone() {
            Some(name) => name,
            None => {
                let name = partial_name(&self.path, &self.dir);
                self.link(&name)
                    .map_err(|error| self.failed("name", error))?;
                self.name = Some(name.clone());
                name
            }
        };
        std::fs::rename(&name, &self.path).map_err(|error| self.failed("rename", error))?;
        self.name = None;
        if sync {
            let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
            dir.map_err(|error| self.failed("sync the directory of", error))?;
        }
        Ok(())
    }

    /// Links the file without a name; by its descriptor where that is allowed, else through /proc.
    fn link(&self, name: &Path) -> io::Result<()> {
        let by_fd = rustix::fs::linkat(self.file.as_fd(), "", CWD, name, AtFlags::EMPTY_PATH);
        if by_fd.is_ok() {
            return Ok(());
        }
        use std::os::fd::AsRawFd;
        let proc = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::linkat(
            CWD,
            proc,
            CWD,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?)
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> FileError {
        FileError {
            doing,
            path: self.path.clone(),
            source,
        }
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = std::fs::remove_file(name)
        {
            tracing::warn!(name = %name.display(), %error, "an incomplete file is left");
        }
    }
}

fn is_no_tmpfile(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL))
}

fn partial_name(path: &Path, dir: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{count}.partial", std::process::id()));
    dir.join(name)
}
