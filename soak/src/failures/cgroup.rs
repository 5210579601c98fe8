//! A cgroup of one trial, by either version of the interface.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Gone, with its limits, when it is dropped; whoever is in it moves to where it was made.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    limit: PathBuf,
    unlimited: &'static str,
    outside: PathBuf,
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of memory.
    Memory,
    /// Processes and threads.
    Pids,
}

impl Cgroup {
    /// An empty one without a limit.
    ///
    /// # Errors
    ///
    /// This process may not make one, or the controller is not to be had.
    pub fn new(resource: Resource) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new("/sys/fs/cgroup");
        let (controller, old, new) = match resource {
            Resource::Memory => ("memory", "memory.limit_in_bytes", "memory.max"),
            Resource::Pids => ("pids", "pids.max", "pids.max"),
        };
        let first = root.join(controller);
        let (parent, file) = if first.join("cgroup.procs").exists() {
            (first, old)
        } else {
            (root.to_owned(), new)
        };
        let unlimited = if file == old && old != new {
            "-1"
        } else {
            "max"
        };
        let name = format!("paguro-failures-{}-{number}", std::process::id());
        let dir = parent.join(name);
        fs::create_dir(&dir)?;
        let cgroup = Self {
            limit: dir.join(file),
            outside: parent.join("cgroup.procs"),
            dir,
            unlimited,
        };
        // Where the controller is not switched on, there is no such file, and none is made here.
        fs::OpenOptions::new().write(true).open(&cgroup.limit)?;
        Ok(cgroup)
    }

    /// Where processes are put in, and read.
    pub fn members(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// Puts a process in.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        write(&self.members(), &pid.to_string())
    }

    /// As much, from now on.
    pub fn limit(&self, limit: u64) -> io::Result<()> {
        write(&self.limit, &limit.to_string())
    }

    /// As much as there is, from now on.
    pub fn lift(&self) -> io::Result<()> {
        write(&self.limit, self.unlimited)
    }

    /// Whether somebody in it was killed for memory.
    pub fn killed(&self) -> bool {
        ["memory.oom_control", "memory.events"].iter().any(|file| {
            let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count.trim() != "0")
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.lift().ok();
        let members = fs::read_to_string(self.members()).unwrap_or_default();
        for pid in members.lines() {
            // It may have ended.
            write(&self.outside, pid).ok();
        }
        if let Err(error) = fs::remove_dir(&self.dir) {
            tracing::error!(%error, "a cgroup stays behind: {}", self.dir.display());
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // It is there: nothing is made where no controller has made it.
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}
