//! What a snapshot was.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use paguro_dirty::Freeze;

use crate::Control;
use crate::options::BufferSize;
use crate::time::micros;

/// What a snapshot did and what it cost. Times in microseconds, sizes in bytes, pages of the host.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SnapshotReport {
    /// The file.
    #[serde(serialize_with = "in_words")]
    pub path: PathBuf,
    /// What could not be confirmed, in words, although all is there: that the file outlives a crash
    /// of the host.
    pub warning: Option<String>,
    /// Why the guest stands still although it was to run on meanwhile, in words: the machine failed to
    /// resume it after the pause. The snapshot is whole.
    pub not_resumed: Option<String>,
    /// Whether the guest ran on meanwhile.
    pub background: bool,
    /// Length of the file, holes included.
    pub file_bytes: u64,
    /// Bytes written to it.
    pub written_bytes: u64,
    /// Pages of RAM.
    pub total_pages: u64,
    /// Pages in the file.
    pub normal_pages: u64,
    /// Pages that are zero, of which most were never there.
    pub zero_pages: u64,
    /// Faults on protected pages while arming: no page was copied for them.
    pub arming_faults: u64,
    /// Faults on frozen pages that led to a copy.
    pub faults: u64,
    /// Pages copied because of a fault.
    pub fault_pages: u64,
    /// Rounds of arming before the pause.
    pub arm_rounds: u64,
    /// Pages armed inside the pause.
    pub rearmed_pages: u64,
    /// From the command to the pause: opening the file, arming.
    pub setup_us: u64,
    /// From the order to pause until the machine was told to run on: the engine's own view, which
    /// is shorter than what the guest sees.
    pub pause_us: u64,
    /// Of the pause: until all vCPUs and devices were at rest.
    pub pause_stop_us: u64,
    /// Of the pause: collecting device state.
    pub pause_devices_us: u64,
    /// Of the pause: waiting for the readers, the last look, the change of epoch.
    pub pause_freeze_us: u64,
    /// From the pause until all pages were in the file.
    pub save_us: u64,
    /// Taking away protection and registration.
    pub teardown_us: u64,
    /// Writing the rest, syncing, naming.
    pub finish_us: u64,
    /// All of it.
    pub total_us: u64,
    /// Bytes of page copies that waited at the same time, at most.
    pub peak_buffer_bytes: u64,
    /// Bytes of page copies that might wait at the same time.
    pub page_buffer_bytes: u64,
    /// Bytes that these would have been if the host had any amount of memory.
    pub page_buffer_wanted_bytes: u64,
    /// What allowed no more, if they were less.
    pub page_buffer_bound: Option<String>,
    /// Writers that waited for room in the page buffer.
    pub buffer_waits: u64,
    /// How long they did, all together.
    pub buffer_wait_us: u64,
    /// The longest of them.
    pub longest_buffer_wait_us: u64,
    /// Bytes of page sets and tables.
    pub set_bytes: u64,
    /// When the pause began, by the host's CLOCK_MONOTONIC.
    pub pause_at_ns: u64,
    /// When the command came, by the same clock.
    pub begin_at_ns: u64,
    /// When the last protection and registration was gone, by the same clock.
    pub free_at_ns: u64,
}

impl SnapshotReport {
    /// The page buffer that there will be.
    pub(super) fn note_buffer(&mut self, buffer: &BufferSize) {
        self.page_buffer_bytes = buffer.bytes as u64;
        self.page_buffer_wanted_bytes = buffer.wanted_bytes as u64;
        self.page_buffer_bound = buffer.bound.as_ref().map(ToString::to_string);
    }

    /// What was counted, when all but the last word is written.
    pub(super) fn count(&mut self, freeze: &Freeze, table_bytes: usize, control: &Control) {
        let stats = freeze.stats();
        let counters = &control.counters;
        counters
            .faults
            .store(stats.faults.load(Ordering::Relaxed), Ordering::Relaxed);
        self.total_pages = freeze.total_pages() as u64;
        self.normal_pages = counters.normal_pages.load(Ordering::Relaxed);
        self.zero_pages = counters.zero_pages.load(Ordering::Relaxed);
        self.written_bytes = counters.transferred_bytes.load(Ordering::Relaxed);
        self.arming_faults = stats.arming_faults.load(Ordering::Relaxed);
        self.faults = stats.faults.load(Ordering::Relaxed);
        self.fault_pages = stats.fault_pages.load(Ordering::Relaxed);
        self.arm_rounds = stats.rounds.load(Ordering::Relaxed);
        self.rearmed_pages = stats.rearmed_pages.load(Ordering::Relaxed);
        self.peak_buffer_bytes = freeze.peak_buffer_bytes() as u64;
        let waits = freeze.buffer_waits();
        control.note_waits(waits);
        self.buffer_waits = waits.count;
        self.buffer_wait_us = micros(waits.total);
        self.longest_buffer_wait_us = micros(waits.longest);
        self.set_bytes = (freeze.set_bytes() + table_bytes) as u64;
    }
}

/// A report can be told whatever the name is.
fn in_words<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}
