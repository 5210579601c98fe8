//! The file while it is written. What can fail, and when, is said by the [crate](crate).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstatfs, linkat, openat, renameat, syncfs, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::target::Target;
use crate::{FileError, NotNamed, TargetError};

/// How the name is made to last.
#[derive(Debug)]
enum Lasting {
    /// By syncing its directory.
    Directory(OwnedFd),
    /// By syncing all of its file system, for which the file's own descriptor will do. Others' data
    /// are waited for, too.
    FileSystem,
    /// Not at all.
    Never,
}

/// A file that is not there yet.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    /// As the caller named it.
    path: PathBuf,
    target: Target,
    lasting: Lasting,
    /// Its name for the time being, in the directory of its target, if it needs one.
    name: Option<OsString>,
    written_bytes: AtomicU64,
    /// Of those, what was on the disk when it was synced last; more than can be before that.
    settled_bytes: AtomicU64,
    #[cfg(test)]
    lacking: Lacking,
}

/// What a host or a file system cannot do, for tests on one that can.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
struct Lacking {
    /// Files without a name.
    unnamed: bool,
    /// Renames; in their place.
    rename: Option<Rename>,
    /// Syncing a directory and a file system once the name was given.
    sync: bool,
}

#[cfg(test)]
type Rename = fn(&Target, &OsStr, &OsStr) -> rustix::io::Result<()>;

impl PartialFile {
    /// Makes one that shall become `path`, and with `sync` last. What is no regular file (a device,
    /// a pipe) is not replaced; a link is followed.
    ///
    /// # Errors
    ///
    /// The caller's, a [`TargetError`] inside; or the host's. Nothing was changed under the name.
    pub fn create(path: &Path, sync: bool) -> Result<Self, FileError> {
        Self::create_with(
            path,
            sync,
            #[cfg(test)]
            Lacking::default(),
        )
    }

    fn create_with(
        path: &Path,
        sync: bool,
        #[cfg(test)] lacking: Lacking,
    ) -> Result<Self, FileError> {
        let failed = |source| FileError {
            doing: "create",
            path: path.to_owned(),
            source,
        };
        let target = Target::find(path).map_err(failed)?;
        let unnamed = open_unnamed(&target);
        #[cfg(test)]
        let unnamed = unnamed.filter(|_| !lacking.unnamed);
        let (file, name) = match unnamed {
            Some(file) => (file, None),
            None => {
                let (file, name) = open_named(&target).map_err(failed)?;
                (file, Some(name))
            }
        };
        let mut partial = Self {
            file,
            path: path.to_owned(),
            target,
            lasting: Lasting::Never,
            name,
            written_bytes: AtomicU64::new(0),
            settled_bytes: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            lacking,
        };
        partial.try_rename().map_err(failed)?;
        partial.try_room().map_err(failed)?;
        if sync {
            partial.lasting = partial.try_sync()?;
        }
        Ok(partial)
    }

    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Its length, holes included; 0 where the host cannot tell.
    pub fn len_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |file| file.len())
    }

    /// Sets the length, so that what is not written is a hole.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn set_len(&self, bytes: u64) -> Result<(), FileError> {
        self.file
            .set_len(bytes)
            .map_err(|error| self.failed("extend", error))
    }

    /// Takes over the first bytes of the file that it will replace, if there is one.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn keep_start(&self, bytes: u64) -> Result<(), FileError> {
        let failed = |error| self.failed("copy the start of", error);
        // Should it be a pipe by now, it is not waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(self.target.dir(), self.target.name(), flags, Mode::empty()) {
            Ok(old) => io::copy(&mut File::from(old).take(bytes), &mut &self.file)
                .map(drop)
                .map_err(failed),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Writes at a fixed place; any thread.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed("write", error))?;
        self.written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes pieces that follow each other in the file; any thread.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn write_pieces_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), FileError> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = loop {
            match rustix::io::pwritev(&self.file, pieces, offset) {
                Ok(written) => break written,
                Err(Errno::INTR) => {}
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

    /// Waits until what was written is on the disk, if it is to last at all.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn settle(&self) -> Result<(), FileError> {
        let written = self.written_bytes();
        let settled = self.settled_bytes.load(Ordering::Relaxed) == written;
        if settled || matches!(self.lasting, Lasting::Never) {
            return Ok(());
        }
        self.file
            .sync_all()
            .map_err(|error| self.failed("sync", error))?;
        self.settled_bytes.store(written, Ordering::Relaxed);
        Ok(())
    }

    /// Gives it its name, when all of it is on the disk. Whatever fails after that is given back:
    /// the file is there, but it is not sure that it lasts.
    ///
    /// # Errors
    ///
    /// [`NotNamed::No`], the host's or the caller's; [`NotNamed::Unknown`], the host's.
    pub fn complete(mut self) -> Result<Option<FileError>, NotNamed> {
        self.settle()?;
        self.check_target()
            .map_err(|error| self.failed("name", error))?;
        let name = match self.name.clone() {
            Some(name) => name,
            None => {
                let linked = with_new_name(&self.target, |name| self.link(name));
                let ((), name) = linked.map_err(|error| self.failed("name", error))?;
                self.name = Some(name.clone());
                name
            }
        };
        if let Err(error) = self.rename(&name, self.target.name()) {
            self.after_failed_rename(&name, error)?;
        }
        self.name = None;
        let lasts = match &self.lasting {
            Lasting::Directory(dir) => rustix::fs::fsync(dir).or_else(|error| {
                tracing::debug!(%error, "a directory cannot be synced any more");
                syncfs(&self.file).map_err(|_| error)
            }),
            Lasting::FileSystem => syncfs(&self.file),
            Lasting::Never => Ok(()),
        };
        #[cfg(test)]
        let lasts = lasts.and(if self.lacking.sync {
            Err(Errno::IO)
        } else {
            Ok(())
        });
        Ok(lasts
            .err()
            .map(|error| self.failed(FileError::SYNC_DIRECTORY, error.into())))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        #[cfg(test)]
        if let Some(rename) = self.lacking.rename {
            return rename(&self.target, from, to);
        }
        let dir = self.target.dir();
        renameat(dir, from, dir, to)
    }

    /// Whether the name was given all the same.
    fn after_failed_rename(&mut self, name: &OsStr, error: Errno) -> Result<(), NotNamed> {
        let failed = self.failed("rename", error.into());
        match unlinkat(self.target.dir(), name, AtFlags::empty()) {
            Ok(()) => {
                self.name = None;
                Err(NotNamed::No(failed))
            }
            Err(Errno::NOENT) if matches!(self.target.has(&self.file), Ok(true)) => Ok(()),
            Err(_) => Err(NotNamed::Unknown(failed)),
        }
    }

    /// Whether the path still leads to where the file will stand.
    fn check_target(&self) -> io::Result<()> {
        if Target::find(&self.path)?.is(&self.target)? {
            Ok(())
        } else {
            Err(TargetError::Moved.into())
        }
    }

    /// A file that has a name is given another one, as it will be at the end. (One without can be:
    /// all file systems that know such files can do it, but for those that [`open_unnamed`] leaves
    /// out.)
    fn try_rename(&mut self) -> io::Result<()> {
        let Some(name) = &self.name else {
            return Ok(());
        };
        let ((), name) = with_new_name(&self.target, |new| self.rename(name, new))?;
        self.name = Some(name);
        Ok(())
    }

    /// A file system without room for one page is full.
    fn try_room(&self) -> io::Result<()> {
        self.file.write_all_at(&[0; 4096], 0)?;
        self.file.set_len(0)
    }

    /// How the name can be made to last, by doing it.
    fn try_sync(&self) -> Result<Lasting, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(self.target.dir(), ".", flags, Mode::empty());
        let error = match opened.and_then(|dir| rustix::fs::fsync(&dir).map(|()| dir)) {
            Ok(dir) => return Ok(Lasting::Directory(dir)),
            Err(error) => error,
        };
        match syncfs(&self.file) {
            Ok(()) => {
                let path = self.path.display();
                tracing::debug!(%error, %path, "its directory cannot be synced: all is");
                Ok(Lasting::FileSystem)
            }
            Err(_) => Err(self.failed(FileError::SYNC_DIRECTORY, error.into())),
        }
    }

    /// Links the file without a name; by its descriptor where that is allowed, else through /proc.
    fn link(&self, name: &OsStr) -> rustix::io::Result<()> {
        let dir = self.target.dir();
        match linkat(&self.file, "", dir, name, AtFlags::EMPTY_PATH) {
            // Not for everybody.
            Err(Errno::NOENT | Errno::PERM | Errno::ACCESS) => linkat(
                CWD,
                proc_path(&self.file),
                dir,
                name,
                AtFlags::SYMLINK_FOLLOW,
            ),
            done => done,
        }
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
        let Some(name) = &self.name else { return };
        match unlinkat(self.target.dir(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                let name = name.display();
                tracing::warn!(%name, %error, "an incomplete file is left");
            }
        }
    }
}

/// A file without a name, where it can be given one later.
fn open_unnamed(target: &Target) -> Option<File> {
    /// What can be done there depends on a program, which may not be able to link such a file.
    const FUSE_MAGIC: u64 = 0x6573_5546;
    let dir = target.dir();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(dir, ".", flags, MODE).ok().map(File::from)?;
    if fstatfs(&file).ok()?.f_type as u64 & 0xffff_ffff == FUSE_MAGIC {
        return None;
    }
    // By its descriptor: "." exists, which is said only once the file was found and may be linked.
    // Through /proc, where that is mounted.
    let by_fd = linkat(&file, "", dir, ".", AtFlags::EMPTY_PATH) == Err(Errno::EXIST);
    let by_proc = || linkat(CWD, proc_path(&file), dir, ".", AtFlags::SYMLINK_FOLLOW);
    (by_fd || by_proc() == Err(Errno::EXIST)).then_some(file)
}

/// A file with a name for the time being.
fn open_named(target: &Target) -> io::Result<(File, OsString)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = with_new_name(target, |name| openat(target.dir(), name, flags, MODE));
    opened.map(|(file, name)| (file.into(), name))
}

/// Guest RAM is nobody else's business, whoever could read the file that is replaced.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Tries names for the time being until one is free. Two machines may save to one directory, and
/// one that was killed may have left its name; in containers all have the same process id.
fn with_new_name<T>(
    target: &Target,
    mut attempt: impl FnMut(&OsStr) -> rustix::io::Result<T>,
) -> io::Result<(T, OsString)> {
    const TRIES: usize = 16;
    for _ in 0..TRIES {
        let name = partial_name(target.name())?;
        match attempt(&name) {
            Err(Errno::EXIST) => {}
            done => return Ok((done?, name)),
        }
    }
    Err(Errno::EXIST.into())
}

/// Of a long name only the beginning: what is added must not make it too long.
fn partial_name(of: &OsStr) -> io::Result<OsString> {
    const KEPT_BYTES: usize = 96;
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let bytes = of.as_bytes();
    let mut kept = bytes.len().min(KEPT_BYTES);
    // Some file systems refuse a character that is cut.
    while kept < bytes.len() && kept > 0 && bytes[kept] & 0xc0 == 0x80 {
        kept -= 1;
    }
    let random = u64::from_ne_bytes(random);
    let end = format!(".{random:016x}.partial");
    let name = [b".", &bytes[..kept], end.as_bytes()].concat();
    Ok(OsString::from_vec(name))
}

fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
