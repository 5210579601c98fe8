//! Where a file is to stand: a directory and a name in it, found before anything is written.
//!
//! What a name leads to decides at the very end whether a file can take it, when the guest was
//! stopped and everything was sent. So it is looked at first, and what cannot be replaced is
//! refused while nothing has happened yet. A symbolic link is followed, link by link, as the kernel
//! would follow it: the file is replaced where it points, and the link stays. The directory is held
//! by a descriptor from then on, so that whatever is moved or mounted meanwhile, all that is done
//! for one file is done in one directory; before the name is given it is looked at again whether
//! the path still leads there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags, fstat, fstatfs,
    openat, readlinkat, statat, statx, unlinkat,
};
use rustix::io::Errno;

use crate::TargetError;

/// A name in a directory.
#[derive(Debug)]
pub(crate) struct Target {
    dir: OwnedFd,
    name: OsString,
}

/// As many as the kernel follows.
const LINKS: usize = 40;
/// The file system of `/proc`.
const PROC_MAGIC: u64 = 0x9fa0;
/// The permission bits of a directory as `/tmp`.
const STICKY_FOR_ALL: u32 = 0o1002;

impl Target {
    /// Where a file called `path` will stand.
    ///
    /// # Errors
    ///
    /// The host's, or a [`TargetError`] inside.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        let mut target = Self::in_directory(CWD, path.as_os_str().as_bytes())?;
        for _ in 0..LINKS {
            let Some(entry) = target.entry()? else {
                return Ok(target);
            };
            let stat = fstat(&entry)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    target.check_link(&entry, &stat)?;
                    let to = readlinkat(&entry, "", Vec::new())?;
                    target = Self::in_directory(target.dir.as_fd(), to.as_bytes())?;
                }
                FileType::RegularFile => {
                    target.check_replaceable(&entry, &stat)?;
                    return Ok(target);
                }
                other => return Err(TargetError::of_kind(other).into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// The directory; it can be used for names in it, and for nothing else.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The name in it.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Whether it is the same name in the same directory.
    pub(crate) fn is(&self, other: &Self) -> io::Result<bool> {
        Ok(self.name == other.name && is_same(&fstat(&self.dir)?, &fstat(&other.dir)?))
    }

    /// Whether this file stands there.
    pub(crate) fn has(&self, file: impl AsFd) -> io::Result<bool> {
        let there = statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(is_same(&there, &fstat(file)?))
    }

    /// The last part of `path`, and the directory that it is in as seen from `from`.
    fn in_directory(from: BorrowedFd<'_>, path: &[u8]) -> io::Result<Self> {
        let start = path.iter().rposition(|&byte| byte == b'/');
        let (dir, name) = path.split_at(start.map_or(0, |slash| slash + 1));
        if path.is_empty() {
            return Err(Errno::NOENT.into());
        }
        // Also of one that does not exist: a file is not what was asked for.
        if matches!(name, b"" | b"." | b"..") {
            return Err(TargetError::Directory.into());
        }
        let dir = if dir.is_empty() { b"." } else { dir };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dir: openat(from, dir, flags, Mode::empty())?,
            name: OsString::from_vec(name.to_vec()),
        })
    }

    /// What stands there, itself; nothing if nothing does.
    fn entry(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.dir, &self.name, flags, Mode::empty()) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a link may be followed. The kernel would ask the same, but it is not asked: between
    /// a look at where a link leads and reading it, somebody else could put another one there.
    fn check_link(&self, link: &OwnedFd, stat: &Stat) -> io::Result<()> {
        if fstatfs(link)?.f_type as u64 & 0xffff_ffff == PROC_MAGIC {
            return Err(TargetError::Descriptor.into());
        }
        let dir = fstat(&self.dir)?;
        let for_all = dir.st_mode & STICKY_FOR_ALL == STICKY_FOR_ALL;
        let own = stat.st_uid == rustix::process::geteuid().as_raw() || stat.st_uid == dir.st_uid;
        if for_all && !own {
            Err(TargetError::ForeignLink.into())
        } else {
            Ok(())
        }
    }

    /// Whether a rename may put another file in the place of this one.
    fn check_replaceable(&self, file: &OwnedFd, stat: &Stat) -> io::Result<()> {
        let more = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        // Before Linux 5.8 only what comes from another file system is noticed.
        let root = StatxAttributes::MOUNT_ROOT;
        let mounted = if more.stx_attributes_mask.contains(root) {
            more.stx_attributes.contains(root)
        } else {
            stat.st_dev != fstat(&self.dir)?.st_dev
        };
        if mounted {
            return Err(TargetError::MountPoint.into());
        }
        // Who may replace whose file depends on owners, sticky directories, capabilities, user
        // namespaces and attributes of the file system, and only the kernel knows all of them.
        // Asked to remove it *as a directory*, it answers whether it could be removed at all before
        // it sees that this is none. (Should somebody have put an empty directory there just now,
        // that is gone: it stood where a file was to be.)
        match unlinkat(&self.dir, &self.name, AtFlags::REMOVEDIR) {
            Err(Errno::PERM) => Err(TargetError::Irreplaceable.into()),
            Err(error @ (Errno::ACCESS | Errno::ROFS)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
