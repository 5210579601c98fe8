//! All that was measured, as JSON has it. Times end in `_us`, sizes in `_bytes`; a
//! [`Spread`] is the median and the maximum of the runs.

use serde::Serialize;

use super::limits::{BareFault, ProtectOnce};
use super::noise::Noise;
use super::series::Series;
use super::stats::Spread;

/// The result of `bench snapshot`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether it was a quick one.
    pub quick: bool,
    /// `kvm` or `threads`.
    pub accel: &'static str,
    /// The host.
    pub host: HostFacts,
    /// How long it took.
    pub took_s: f64,
    /// The test of the ruler.
    pub ruler: RulerTest,
    /// Gaps by size of RAM, kind of pages, load; in some also by variant.
    pub gaps: Vec<Series>,
    /// Guests that go over 256 MiB.
    pub lost: Vec<Series>,
    /// What such guests lose when protection is set and taken away once with nothing saved.
    pub protect_once: Vec<ProtectOnce>,
    /// Bare fault round trips.
    pub bare_faults: Vec<BareFault>,
    /// Resident memory of an idle guest before and after a snapshot.
    pub resident: Vec<Resident>,
    /// Snapshots by what RAM is made of.
    pub backings: Vec<OfBacking>,
    /// Beside busy threads.
    pub beside: Vec<Beside>,
    /// Throughput.
    pub throughput: Vec<Throughput>,
    /// The aims, and what was reached.
    pub aims: Vec<Aim>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
pub struct HostFacts {
    /// Release of the kernel.
    pub kernel: String,
    /// Cores.
    pub cores: usize,
    /// Share of all cores that was taken meanwhile by others than this program and its machines.
    pub others_share: f64,
    /// What it takes from whoever is busy.
    pub noise: Noise,
    /// Where snapshots were written in the measurements of gaps and of lost time.
    pub files_in: String,
}

/// A sleep of known length in the pause, as the ruler reads it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RulerTest {
    /// What was slept.
    pub sleep_us: f64,
    /// Longest gap of the pause with the sleep.
    pub with_us: Spread,
    /// Longest gap of the pause without.
    pub without_us: Spread,
    /// The sleep, as read: the smallest with it less the smallest without.
    pub reads_us: f64,
    /// The same read by the outside clock alone.
    pub outside_reads_us: f64,
    /// Whether both are right to 1 ms.
    pub is_right: bool,
}

/// Resident memory of a guest in which every eighth page (every eighth huge page with `2m`) of the
/// first half of RAM was touched.
#[derive(Clone, Debug, Serialize)]
pub struct Resident {
    /// `anon`, `memfd`, `2m`; `anon, in doubt` is what a process gets that is not shown which pages were
    /// swapped out.
    pub backing: &'static str,
    /// RAM.
    pub memory_bytes: u64,
    /// Guest RAM that is resident before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// Page tables of the process before.
    pub page_tables_before_bytes: u64,
    /// And after.
    pub page_tables_after_bytes: u64,
    /// What the snapshot took.
    pub total_us: f64,
}

/// Snapshots of a guest that writes 50,000 random pages a second, by what its RAM is made of.
#[derive(Clone, Debug, Serialize)]
pub struct OfBacking {
    /// `anon`, `memfd`.
    pub backing: &'static str,
    /// RAM, of which half is there.
    pub memory_bytes: u64,
    /// How many.
    pub runs: usize,
    /// Before the pause.
    pub setup_us: Spread,
    /// All of it.
    pub total_us: Spread,
}

/// A snapshot of a guest that leaves its memory alone, and the same bytes written from plain
/// buffers by as many threads at the same priority to the same directory while the same guest runs.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// Where.
    pub dir: String,
    /// Bytes of pages in one file.
    pub bytes: u64,
    /// Threads.
    pub threads: usize,
    /// How many files of each kind.
    pub runs: usize,
    /// From the pause until all pages are in the file (no sync).
    pub save_us: Spread,
    /// Plain writes of as many bytes (no sync).
    pub plain_us: Spread,
    /// From the command until the file is complete and synced.
    pub total_us: Spread,
    /// Plain writes and a sync.
    pub plain_synced_us: Spread,
}

/// Snapshots of a guest that goes over 256 MiB at full rate, beside threads that keep all cores busy.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// So many.
    pub threads_per_core: usize,
    /// Snapshots.
    pub runs: usize,
    /// From the command until the file is complete.
    pub total_us: Spread,
    /// The same on the same machine, without the busy threads.
    pub alone_us: Spread,
    /// Longest stall but for one in a hundred, see the table of stalls.
    pub stalls_p99_us: f64,
    /// The same of the guest beside the busy threads without a snapshot.
    pub idle_stalls_p99_us: f64,
    /// Of the snapshots without the busy threads.
    pub alone_stalls_p99_us: f64,
}

impl Beside {
    /// How much longer it takes, of what it would take with a fair part of each core.
    pub fn share(&self) -> f64 {
        let fair = self.alone_us.median * (self.threads_per_core + 1) as f64;
        self.total_us.median / fair.max(1.0)
    }
}

impl Throughput {
    /// Throughput of saving as a share of plain writing.
    pub fn share(&self) -> f64 {
        self.plain_us.median / self.save_us.median.max(1.0)
    }

    /// The same of the whole command and with the sync.
    pub fn synced_share(&self) -> f64 {
        self.plain_synced_us.median / self.total_us.median.max(1.0)
    }
}

/// An aim of the project (ARCHITECTURE.md says where they come from).
#[derive(Clone, Debug, Serialize)]
pub struct Aim {
    /// What is measured.
    pub what: String,
    /// The aim.
    pub aim: String,
    /// What was reached.
    pub reached: String,
    /// Whether that is enough; null where what it is compared with could not be measured.
    pub is_met: Option<bool>,
}
