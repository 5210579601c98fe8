//! How a snapshot is taken.

pub use paguro_dirty::{HugePolicy, Sabotage};
use paguro_sys::Host;

/// How a snapshot is taken. [`SnapshotOptions::new`] gives what most want.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// What this host can do, fallbacks applied.
    pub host: Host,
    /// The guest runs on while RAM is saved; else it is stopped first and stays so.
    pub background: bool,
    /// Threads that copy and write.
    pub channels: usize,
    /// Bytes of page copies that may wait to be written; 0 for half of RAM, but at least 16 and at
    /// most 256 MiB. Only what is needed of it is taken from the host. A guest that writes faster
    /// than the file takes it waits when the buffer is full.
    pub page_buffer_bytes: usize,
    /// Bytes copied and released at once, at most: 4 KiB to 2 MiB.
    pub chunk_bytes: usize,
    /// What happens to huge pages.
    pub huge: HugePolicy,
    /// A checksum for each page and for the metadata.
    pub checksums: bool,
    /// Bytes a second written at most; 0: no limit.
    pub max_bandwidth: u64,
    /// Compare RAM with the copy again just before a chunk is released.
    pub check_freeze: bool,
    /// Arm everything inside the pause, as others do: only to measure what the other way is worth.
    pub arm_in_pause: bool,
    /// Microseconds to sleep inside the pause: the test of the ruler.
    pub pause_sleep_us: u64,
    /// Sync the file before it gets its name. Off only for measurements.
    pub sync: bool,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

impl SnapshotOptions {
    /// A background snapshot with checksums, two threads and a page buffer of up to half of RAM.
    pub fn new(host: Host) -> Self {
        Self {
            host,
            background: true,
            channels: 2,
            page_buffer_bytes: 0,
            chunk_bytes: 2 << 20,
            huge: HugePolicy::Keep,
            checksums: true,
            max_bandwidth: 0,
            check_freeze: false,
            arm_in_pause: false,
            pause_sleep_us: 0,
            sync: true,
            sabotage: Sabotage::None,
        }
    }
}

impl SnapshotOptions {
    /// Bytes of page buffer for a machine with that much RAM.
    pub fn page_buffer_for(&self, ram_bytes: usize) -> usize {
        match self.page_buffer_bytes {
            0 => (ram_bytes / 2).clamp(16 << 20, 256 << 20),
            bytes => bytes,
        }
    }
}
