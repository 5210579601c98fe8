//! Arguments of the commands that try and measure.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use paguro_soak::{FailureCase, Trial};

use super::PagesArg;

/// `paguro bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Snapshots: gaps that the guest sees, time it loses, throughput, memory
    Snapshot(BenchSnapshotArgs),
    /// Migrations: throughput, downtime that the guest sees, what tracking costs
    Migrate(BenchMigrateArgs),
}

const MIGRATE_HELP: &str = "\
Examples:
  paguro bench migrate --quick
  paguro bench migrate --json > figures.json

A guest moves between two processes of this host. A table stands under a definition of its numbers.
The exit status is 1 if the ruler, tested first, does not read 20 ms as 20 ms.

Fields of --json; times in _us, sizes in _bytes; where several runs were made {min, median, max}:
  quick, accel, took_s, skipped, host, ruler, aims: as of `paguro bench snapshot`
  throughput: channel, connections (more than 1: multifd channels), bytes, runs, moved_us, raw_us (as
    many raw sockets into memory that is there), raw_fresh_us (into memory that the host must hand out)
  moves: channel, rate_pages_per_s (0: full), set_bytes, runs, seen_us (longest time without progress,
    from outside), idle_us (the same before), blind_us, downtime_us (as reported), forecast_us,
    seen_by_forecast, last_dirty_bytes, dirty_by_bandwidth_us (these by the bandwidth of the passes
    before), seen_by_dirty, downtime_bytes (sent while it was stopped), limit_us (these at the rate of raw sockets), total_us, passes,
    rate_kept (writes a second while it moved, by those before)
  tracking: memory_bytes, start_us, sync_us
  zero_scan: bytes, scan_us, read_us
  xbzrle: changed_bytes, pages, encoded_bytes, encode_us, copy_us
  zstd: level, bytes, packed_bytes, library_bytes, pack_us, library_pack_us, unpack_us,
    library_unpack_us";

/// `paguro bench migrate`
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_HELP)]
pub struct BenchMigrateArgs {
    /// Fewer sizes and runs: less than a minute, and tails less certain
    #[arg(long)]
    pub quick: bool,
    /// Only this, of what is measured
    #[arg(long, value_enum, value_name = "WHAT")]
    pub only: Option<BenchMigratePart>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `--only` of `paguro bench migrate`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchMigratePart {
    /// Bytes a second, against raw sockets
    Throughput,
    /// Downtime of guests that write, and throughput
    Moves,
    /// What tracking costs
    Tracking,
    /// Zero pages, differences of pages, and compression
    Pages,
}

const SNAPSHOT_HELP: &str = "\
Examples:
  paguro bench snapshot --quick
  paguro bench snapshot --json > figures.json

A table stands under a definition of its numbers. The exit status is 1 if the ruler, tested first,
does not read 20 ms as 20 ms.

Fields of --json; times in _us, sizes in _bytes; where several runs were made {min, median, max}:
  quick, accel, took_s, skipped (what was not measured, and why)
  host: kernel, cores, others_share (of all cores, by other programs), files_in, noise
    (longest_us and over_1ms_per_s: what threads missed that only read the clock)
  ruler: sleep_us, with_us, without_us, reads_us, outside_reads_us, is_right
  gaps, lost: for each machine (memory_bytes, set_bytes, pages, load, page_buffer_bytes, huge_bytes)
    and variant (default, arm-in-pause, page-chunks):
    arming, pause, saving, teardown, whole: seen_us (longest gap), idle_us (in an idle window of equal
      length); excess_us (whole less idle, run by run); pause_still_us, clock_difference_us (the
      outside clock alone)
    lost_us (guest time lost), idle_lost_us, full_rate_pages_per_s
    stalls: count (a run), p50_us, p99_us, idle_p50_us, idle_p99_us
    extra_resident_bytes, extra_page_table_bytes, engine (fields of `paguro snapshot --json`)
  protect_once: pages, load, runs, lost_us, idle_lost_us, took_us
  bare_faults: through, count, p50_us, p99_us
  resident: backing, memory_bytes, before_bytes, after_bytes, page_tables_before_bytes,
    page_tables_after_bytes
  beside: threads_per_core (busy ones), runs, total_us, alone_us (without them), stalls_p99_us,
    idle_stalls_p99_us, alone_stalls_p99_us
  throughput: dir, bytes, threads, runs, save_us, plain_us, total_us, plain_synced_us
  aims: what, aim, reached, is_met (null where it cannot be judged)";

/// `paguro bench snapshot`
#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct BenchSnapshotArgs {
    /// Fewer sizes and runs: minutes become seconds, and tails less certain
    #[arg(long)]
    pub quick: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where snapshot files go when throughput is measured; all else goes to /dev/shm if it is
    /// there, so that no disk is in what is measured [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

const SOAK_HELP: &str = "\
Examples:
  paguro soak --minutes 30
  paguro soak --pairwise --seed 1
  paguro soak --case pages=thp,cpus=2,rate=unlimited,restore=lazy,seed=7
  paguro soak --migrate --minutes 30
  paguro soak --migrate --full
  paguro soak --case tracker=ring,cpus=2,rate=unlimited,channel=tcp,moves=10
  paguro soak --failures
  paguro soak --failures --full --seed 1 --from 200
  paguro soak --failure work=move,fault=kill,to=destination,seed=7

Machines of all kinds run, are saved at random moments, and come back; every page of every file and
of every machine is compared with what the guest's own counters imply. Each case is printed, with
its seed; what this host cannot do is skipped and said so. At the first wrong page it ends, prints
the command that brings the case back, and exits with status 1. The last line sums up.

Keys of a case: pages=4k|thp|2m, backing=anon|memfd, accel=kvm|threads, cpus=N,
pattern=sequential|random|zipf|hotset, rate=10k|unlimited, dma=off|read|direct,
restore=eager|map|lazy, force=none or a fallback of PAGURO_FORCE, chunk=SIZE, seed=N; and
snapshots=N, returns=N, memory=SIZE, set=SIZE where the seed shall not choose; busy=on for other
work on the host while a snapshot begins.

Keys of a case of --migrate: tracker=log|log-not-all-set|plain-log|ring|wp-async (the last without
KVM), rate=idle|10k|100k|unlimited, channel=tcp|unix; moves=N where the seed shall not choose; pages,
backing, cpus, pattern, dma, memory and seed as above. Such a case is known by its tracker.

With --failures something befalls those at work, at random moments: no guest may be lost but by KILL, by
an end that was asked for and by the OOM killer, two never run, no half file has the final name, no
setting is left, no byte is wrong, nobody waits for ever. It takes about a minute, with --full about an
hour, and goes on after what is wrong. Root is needed for disks (in mounts of its own) and for cgroups.
Keys of such a case: work=snapshot|stopped|file|restore|move, to=machine|destination|client,
accel=kvm|threads, seed=N, fault=hup|int|quit|term|term-twice|pipe|usr1|usr2|alrm|xfsz|stop-cont|kill|
file-size|descriptors|threads|address-space|cgroup-memory|cgroup-pids|disk-full|disk-read-only.";

/// `paguro soak`
#[derive(Debug, Args)]
#[command(after_help = SOAK_HELP)]
pub struct SoakArgs {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub minutes: u64,
    /// Choose the same machines as an earlier run that printed this seed
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Instead of all machines for some time, once a few in which every two properties meet
    #[arg(long, conflicts_with = "case")]
    pub pairwise: bool,
    /// Instead of all machines for some time, all of them once; with --failures, all of these
    #[arg(long, conflicts_with_all = ["case", "pairwise", "minutes"])]
    pub full: bool,
    /// Machines that move to other processes and on, instead of being saved
    #[arg(long, conflicts_with = "case")]
    pub migrate: bool,
    /// Signals, limits and full disks at random moments of snapshots, restores and migrations
    #[arg(long, conflicts_with_all = ["case", "migrate", "minutes", "pairwise"])]
    pub failures: bool,
    /// With --failures: begin with the case of this number, as printed by an earlier run of this seed
    #[arg(long, value_name = "K", default_value_t = 1, requires = "failures")]
    pub from: usize,
    /// Instead of all failures, this one, once; can be given several times
    #[arg(long, value_name = "KEY=VALUE,...", conflicts_with_all = ["failures", "case", "migrate", "minutes", "pairwise", "full"])]
    pub failure: Vec<FailureCase>,
    /// It has mounts of its own.
    #[arg(long, hide = true)]
    pub x_apart: bool,
    /// Instead of all machines for some time, this one, once; can be given several times
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub case: Vec<Trial>,
}

const DEMO_HELP: &str = "\
A guest writes 256 MiB of its RAM over and over, as fast as it can, and is saved meanwhile. A second
process brings it back page by page. Every page of the file and of both machines is compared with
what the guest's own counters imply, by a checker that shares no code with the engine.

What is measured is measured from outside both processes, by a clock that looks at the guest's
progress every 50 us. The exit status is 0 only if all is right.

Fields of --json; times in microseconds, sizes in bytes, rates in pages a second:
  accel, cpus, memory_bytes, pages, seconds (what the demo took)
  pause_us (the guest's longest time without progress that overlaps the pause), engine_pause_us
  time_lost_us (from the command until all protection was gone, less what its writes take at the
  rate before), snapshot_us (the same span), longest_stall_us (in it), idle_stall_us (the longest
  without a snapshot, in idle_us)
  rate_before, rate_during, rate_after
  file_bytes, written_bytes, normal_pages, zero_pages, faults, fault_pages
  extra_memory_bytes (page copies and page sets at most), page_table_bytes (that the kernel added)
  first_instruction_us (from the entry of main to the restored guest's first write)
  lazy_faults (pages that it asked for)
  pages_checked, wrong, checks (what was checked: name, pages, wrong), problems (all else that was
  not as it must be)";

/// `paguro demo`
#[derive(Debug, Args)]
#[command(after_help = DEMO_HELP)]
pub struct DemoArgs {
    /// Which pages the guest's RAM has
    #[arg(long, value_enum, default_value_t = PagesArg::Small)]
    pub pages: PagesArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
