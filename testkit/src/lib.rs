//! For tests only: whose turn it is, huge pages, swap and merging of the host, and reasons to skip.
//!
//! It stands on nothing, so that every other crate can have it as a dev-dependency.

#![forbid(unsafe_code)]

mod host_wide;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use host_wide::{Merging, Swap, host_wide};

/// Says why something is not tested here, in words that are looked for in what tests print.
pub fn skipped(why: impl Display) {
    println!("SKIPPED: {why}");
}

/// One test of this process at a time: for those whose threads spin, whose addresses are mapped over,
/// or who count something of the host's.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
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
}

/// Waits for it.
///
/// # Panics
///
/// If there can be no lock in the directory for temporary files.
pub fn turn() -> Turn {
    let alone = alone();
    Turn {
        _file: lock("paguro-tests.lock").unwrap(),
        _alone: alone,
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
