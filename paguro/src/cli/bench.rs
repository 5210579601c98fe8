//! Arguments of the commands that try and measure.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
}

/// `paguro bench snapshot`
#[derive(Debug, Args)]
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

/// `paguro soak`
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub minutes: u64,
    /// Choose the same machines as an earlier run that printed this seed
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
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
  filled_us (from there until all its pages had arrived), lazy_faults
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
