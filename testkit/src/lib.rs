//! For tests only: whose turn it is, waits that have an end, huge pages, swap and merging of the host, a
//! file system that fails when it is to, and reasons to skip.
//!
//! It stands on nothing, so that every other crate can have it as a dev-dependency.

#![forbid(unsafe_code)]

mod ending;
mod flaky;
mod host_wide;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

pub use ending::{IN_VAIN, MustEnd, ends, must_end, run, wait, wait_until};
pub use flaky::{EIO, Flaky};
pub use host_wide::{Merging, Swap, host_wide};

/// Says why something is not tested here, in words that are looked for in what tests print.
pub fn skipped(why: impl Display) {
    println!("SKIPPED: {why}");
}

/// The right to be the one test of this process that runs.
#[derive(Debug)]
pub struct Alone {
    _alone: MutexGuard<'static, ()>,
    _ends: MustEnd,
}

/// One test of this process at a time: for those whose threads spin, whose addresses are mapped over,
/// or who count something of the host's. It [must end](must_end).
#[track_caller]
pub fn alone() -> Alone {
    let alone = one_at_a_time();
    Alone {
        _alone: alone,
        _ends: must_end(),
    }
}

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

/// Mappings of this process that begin in a range of addresses: what `vm.max_map_count` limits.
///
/// # Panics
///
/// Without /proc.
pub fn mappings(addresses: Range<usize>) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().map(|line| {
        let start = line.split('-').next().unwrap_or_default();
        usize::from_str_radix(start, 16).unwrap()
    });
    starts.filter(|start| addresses.contains(start)).count()
}

/// The right to run vCPUs, of which a host has few: one test at a time, over all processes.
#[derive(Debug)]
pub struct Turn {
    _file: File,
    _alone: MutexGuard<'static, ()>,
    _ends: MustEnd,
}

/// What a test does with vCPUs takes as long as a campaign of failures, at most.
const LONGEST_TURN: Duration = Duration::from_secs(3600);

/// Waits for it. Whoever has it must give it back: others wait, in other processes too.
///
/// # Panics
///
/// If there can be no lock in the directory for temporary files.
#[track_caller]
pub fn turn() -> Turn {
    let alone = one_at_a_time();
    Turn {
        _file: lock("paguro-tests.lock").unwrap(),
        _alone: alone,
        _ends: MustEnd::within(LONGEST_TURN),
    }
}

/// A lock that all processes of this host know. Another user's file will do as well: to lock it, it is
/// enough to read it.
fn lock(name: &str) -> io::Result<File> {
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).or_else(|_| File::open(&path))?;
    file.lock()?;
    Ok(file)
}

/// A cgroup that may have little memory. It goes when it is dropped, if nobody is in it any more.
#[derive(Debug)]
pub struct MemoryCgroup {
    path: PathBuf,
    /// Names of its limit, its usage, and of what counts its members that were killed.
    files: [&'static str; 3],
}

impl MemoryCgroup {
    /// Of so many bytes, or `None` with a printed reason.
    pub fn make(bytes: u64) -> Option<Self> {
        const ONE: [&str; 3] = [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.oom_control",
        ];
        const TWO: [&str; 3] = ["memory.max", "memory.current", "memory.events"];
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("paguro-test-{}-{count}", std::process::id());
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for line in own.lines() {
            let (kinds, path) = line.rsplit_once(':').unwrap_or_default();
            let (top, files) = match kinds.split_once(':') {
                Some(("0", "")) => ("/sys/fs/cgroup", TWO),
                Some((_, names)) if names.split(',').any(|name| name == "memory") => {
                    ("/sys/fs/cgroup/memory", ONE)
                }
                _ => continue,
            };
            // In version 2 a cgroup with members has no children with limits: it is a sibling then.
            let above = Path::new(path.trim_start_matches('/')).ancestors();
            for path in above.map(|inside| Path::new(top).join(inside).join(&name)) {
                if std::fs::create_dir(&path).is_err() {
                    continue;
                }
                let made = Self { path, files };
                if std::fs::write(made.path.join(files[0]), bytes.to_string()).is_ok() {
                    return Some(made);
                }
            }
        }
        skipped("no cgroup that limits memory can be made");
        None
    }

    /// Whose process identifier is written here is in it.
    pub fn members(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Bytes that it has.
    pub fn used_bytes(&self) -> u64 {
        self.read(self.files[1]).trim().parse().unwrap_or(0)
    }

    /// How many of its members were killed because they wanted more.
    pub fn killed(&self) -> u64 {
        let counts = self.read(self.files[2]);
        let count = counts
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Who has just ended is a member for a moment more.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Some of the host's huge pages, given back when dropped. Others may take and give back theirs
/// meanwhile, so it is a difference that is asked for and given back.
#[derive(Debug)]
pub struct HugePages(i64);

impl HugePages {
    /// So many of 2 MiB, or `None` with a printed reason.
    pub fn take(count: i64) -> Option<Self> {
        let taken = change(count).map(Self);
        if taken.is_some() && free().unwrap_or(0) >= count {
            return taken;
        }
        skipped(format_args!("no {count} huge pages to be had"));
        None
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        change(-self.0);
    }
}

/// Makes the pool larger or smaller; by how much it did. The program does so too, and under this lock.
fn change(count: i64) -> Option<i64> {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    let _lock = lock("paguro-huge-pages.lock").ok()?;
    let size = || -> Option<i64> { std::fs::read_to_string(FILE).ok()?.trim().parse().ok() };
    let before = size()?;
    let _ = std::fs::write(FILE, (before + count).max(0).to_string());
    Some(size()? - before)
}

/// Pages of the pool that nobody has, nor was promised.
fn free() -> Option<i64> {
    let pool = std::fs::read_to_string("/proc/meminfo").ok()?;
    let number = |name: &str| -> Option<i64> {
        let line = pool.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some(number("HugePages_Free:")? - number("HugePages_Rsvd:")?)
}
