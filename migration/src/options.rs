//! How a snapshot is taken.

pub use paguro_dirty::{HugePolicy, Sabotage};
use paguro_ram::GuestRam;
use paguro_sys::{Bound, Limits};

use crate::Allowance;

/// How a snapshot is taken. [`SnapshotOptions::new`] gives what most want.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// The guest runs on while RAM is saved; else it is stopped first and stays so.
    pub background: bool,
    /// Threads that copy and write.
    pub threads: usize,
    /// Bytes of page copies that may wait to be written; 0 for half of RAM, but at least 16 and at
    /// most 256 MiB, and no more than [`Allowance`] says. Only what is needed of it is taken from the
    /// host. A guest that writes faster than the file takes it waits when the buffer is full.
    pub page_buffer_bytes: usize,
    /// Where the host says what this process may have.
    pub limits: Limits,
    /// Bytes copied and released at once, at most: 4 KiB to 2 MiB.
    pub chunk_bytes: usize,
    /// What happens to huge pages.
    pub huge: HugePolicy,
    /// A checksum for each page and for the metadata.
    pub checksums: bool,
    /// Bytes a second written at most; 0: no limit.
    pub max_bandwidth: u64,
    /// What no VMM sets.
    pub for_tests: ForTests,
}

/// What is done otherwise, to test and to measure it. The default is what is meant.
#[derive(Clone, Debug, Default)]
pub struct ForTests {
    /// Compare RAM with the copy again just before a chunk is released. All of RAM is read in the pause.
    pub check_freeze: bool,
    /// Arm everything inside the pause, as others do: to measure what the other way is worth.
    pub arm_in_pause: bool,
    /// Microseconds to sleep inside the pause: the test of the ruler.
    pub pause_sleep_us: u64,
    /// The file gets its name without being synced: it may be lost in a crash of the host.
    pub unsynced: bool,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            background: true,
            threads: 2,
            page_buffer_bytes: 0,
            limits: Limits::of_this_process(),
            chunk_bytes: 2 << 20,
            huge: HugePolicy::Keep,
            checksums: true,
            max_bandwidth: 0,
            for_tests: ForTests::default(),
        }
    }
}

impl SnapshotOptions {
    /// A background snapshot with checksums, two threads and a page buffer of up to half of RAM.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A page buffer of less cannot hold what the scan takes at a time, and a chunk for a fault.
const LEAST_BUFFER_BYTES: usize = 4 << 20;

/// How large a page buffer is to be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferSize {
    /// Bytes.
    pub bytes: usize,
    /// Bytes that it would be if the host had any amount of memory.
    pub wanted_bytes: usize,
    /// What allows no more, if it is smaller than wanted.
    pub bound: Option<Bound>,
}

impl SnapshotOptions {
    /// Bytes of page buffer for a machine with that much RAM, if the host has the memory.
    pub fn page_buffer_for(&self, ram_bytes: usize) -> usize {
        match self.page_buffer_bytes {
            0 => (ram_bytes / 2).clamp(16 << 20, 256 << 20),
            bytes => bytes,
        }
    }

    /// The page buffer for a machine with this RAM, now. One that was given a size has it: who gave it
    /// may know better.
    pub fn page_buffer(&self, ram: &GuestRam) -> BufferSize {
        let wanted_bytes = self.page_buffer_for(ram.bytes());
        let wanted = BufferSize {
            bytes: wanted_bytes,
            wanted_bytes,
            bound: None,
        };
        if self.page_buffer_bytes > 0 {
            return wanted;
        }
        let allowance = Allowance::beside(ram, &self.limits);
        let allowed = usize::try_from(allowance.bytes).unwrap_or(usize::MAX);
        if allowed >= wanted_bytes {
            return wanted;
        }
        BufferSize {
            bytes: allowed.max(LEAST_BUFFER_BYTES),
            bound: allowance.bound,
            ..wanted
        }
    }
}
