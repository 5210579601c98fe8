//! What this host has to offer to machines of the lab.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use paguro_sys::HUGE_PAGE_BYTES;

/// A directory whose files are in memory, so that no disk is in what is measured; the directory
/// for temporary files where there is none.
pub fn memory_dir() -> PathBuf {
    let shm = Path::new("/dev/shm");
    match tempfile::tempfile_in(shm) {
        Ok(_) => shm.to_owned(),
        Err(_) => std::env::temp_dir(),
    }
}

/// [`memory_dir`] if it has room for so many bytes, else the directory for temporary files.
pub fn dir_for(bytes: u64) -> PathBuf {
    let dir = memory_dir();
    match rustix::fs::statvfs(&dir) {
        Ok(stat) if stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes => dir,
        _ => std::env::temp_dir(),
    }
}

/// Why `/dev/kvm` cannot be used; `None` if it can.
pub fn no_kvm() -> Option<io::Error> {
    let mut options = File::options();
    options.read(true).write(true);
    options.open("/dev/kvm").err()
}

/// Bytes that could be given to processes now; `None` if the kernel does not say.
pub fn memory_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    field_kib(&text, "MemAvailable:").map(|kib| kib << 10)
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// 2 MiB pages set aside for machines, given back when dropped.
#[derive(Debug)]
pub struct HugePages {
    added: u64,
}

impl HugePages {
    /// Sets as many bytes aside, beyond what is there. Several processes may do so at the same
    /// time: each takes back what it added.
    ///
    /// # Errors
    ///
    /// Why it cannot be, in words: not root, or memory is too full or too fragmented. The pool is
    /// then as before.
    pub fn reserve(bytes: u64) -> Result<Self, String> {
        let wanted = bytes.div_ceil(HUGE_PAGE_BYTES as u64);
        let turn = turn().map_err(|error| format!("no lock for {POOL}: {error}"))?;
        let before = pool().map_err(|error| format!("cannot read {POOL}: {error}"))?;
        std::fs::write(POOL, (before + wanted).to_string())
            .map_err(|error| format!("cannot set 2 MiB pages aside in {POOL}: {error}"))?;
        let now = pool().unwrap_or(before);
        let pages = Self {
            added: now.saturating_sub(before),
        };
        if pages.added >= wanted {
            return Ok(pages);
        }
        // Dropped after the lock, which its destructor takes too.
        let added = pages.added;
        drop(turn);
        drop(pages);
        Err(format!(
            "the host has {added} of {wanted} pages of 2 MiB to set aside"
        ))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _turn = turn();
        let put_back =
            pool().and_then(|now| std::fs::write(POOL, now.saturating_sub(self.added).to_string()));
        if let Err(error) = put_back {
            tracing::error!(%error, "{} pages of 2 MiB stay set aside in {POOL}", self.added);
        }
    }
}

fn pool() -> io::Result<u64> {
    let text = std::fs::read_to_string(POOL)?;
    text.trim().parse().map_err(io::Error::other)
}

fn turn() -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let path = std::env::temp_dir().join("paguro-huge-pages.lock");
    // Another user may have made it: to lock it, it is enough to read it.
    let file = options.open(&path).or_else(|_| File::open(&path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

/// The number behind a name in a file of `/proc` that gives sizes in KiB.
pub(crate) fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_proc_are_read() {
        let text = "VmRSS:\t    1234 kB\nVmPTE:\t      56 kB\n";
        assert_eq!(field_kib(text, "VmPTE:"), Some(56));
        assert_eq!(field_kib(text, "VmHWM:"), None);
    }
}
