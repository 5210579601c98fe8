//! Files of the host that are held open, and all others by their paths.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::process::{Pid, getpid};

pub(crate) const PAGEMAP: &str = "/proc/self/pagemap";
pub(crate) const SMAPS: &str = "/proc/self/smaps";
pub(crate) const KSM_STAT: &str = "/proc/self/ksm_stat";
pub(crate) const USERFAULTFD: &str = "/dev/userfaultfd";

/// A file of the host is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open {path}; a process that locks itself in (chroot, seccomp) calls Resources::open before"
)]
pub struct ResourceError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Open files of the host, for the rest of this process' life.
#[derive(Debug)]
pub struct Resources {
    process: Pid,
    files: Mutex<BTreeMap<PathBuf, File>>,
    /// Nothing is added any more.
    is_complete: AtomicBool,
}

/// There is one: it is of this process, as `chroot` and filters are.
static OPENED: OnceLock<Resources> = OnceLock::new();

impl Resources {
    /// From now on these are held, and what is asked for until [all is](Self::complete).
    pub(crate) fn hold(files: BTreeMap<PathBuf, File>) -> &'static Self {
        OPENED.get_or_init(|| Self {
            process: getpid(),
            files: Mutex::new(files),
            is_complete: AtomicBool::new(false),
        })
    }

    /// Nothing more is opened.
    pub(crate) fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
    }

    fn of_this_process() -> Option<&'static Self> {
        OPENED.get().filter(|all| all.process == getpid())
    }

    /// The file of that path. What is not held when all is open is not there: it may be that a filter
    /// ends the process that asks for it.
    fn held(&self, path: &Path) -> Result<File, ResourceError> {
        let mut files = self.files.lock();
        let failed = |source| ResourceError {
            path: path.to_owned(),
            source,
        };
        if let Some(file) = files.get(path) {
            return file.try_clone().map_err(failed);
        }
        if self.is_complete.load(Ordering::Acquire) {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        let file = open_by_path(path)?;
        files.insert(path.to_owned(), file.try_clone().map_err(failed)?);
        Ok(file)
    }
}

/// A file of the host: one that is held, else by its path. Its position is everybody's.
pub(crate) fn file(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    let file = match Resources::of_this_process() {
        Some(all) => all.held(path),
        None => open_by_path(path),
    };
    file.map_err(|error| io::Error::new(error.source.kind(), error))
}

/// A file that is of the calling thread, and so not to be held: there is none any more once all is open.
pub(crate) fn of_thread(path: &str) -> Option<File> {
    match Resources::of_this_process() {
        Some(_) => None,
        None => File::open(path).ok(),
    }
}

/// All of a file that says something else each time it is read.
pub(crate) fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    let Some(all) = Resources::of_this_process() else {
        return std::fs::read_to_string(path);
    };
    let file = all.held(path).map_err(|error| error.source)?;
    let mut text = String::new();
    FromStart { file, at: 0 }.read_to_string(&mut text)?;
    Ok(text)
}

/// The same, bit by bit.
pub(crate) fn reader(path: impl AsRef<Path>) -> io::Result<impl BufRead> {
    Ok(BufReader::new(FromStart {
        file: file(path)?,
        at: 0,
    }))
}

pub(crate) fn open_by_path(path: &Path) -> Result<File, ResourceError> {
    File::open(path).map_err(|source| ResourceError {
        path: path.to_owned(),
        source,
    })
}

/// Reads from the start of a file, wherever others are in it.
struct FromStart {
    file: File,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(to, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
