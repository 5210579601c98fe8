//! The command line.

mod bench;
mod incoming;
mod machine;
mod migrate;
mod on_disconnect;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use paguro_workload::Size;

pub use bench::{
    BenchArgs, BenchCommand, BenchMigrateArgs, BenchMigratePart, BenchSnapshotArgs, DemoArgs,
    SoakArgs,
};
pub use incoming::{IncomingArg, ModeArg};
pub use machine::{
    AccelArg, BackingArg, ClockArg, DEFAULT_MEMORY, MachineArgs, PagesArg, PrefetchArg, QmpAddress,
    RestoreModeArg,
};
pub use migrate::{CompressionArg, MigrateArgs, MultifdArgs};
pub use on_disconnect::OnDisconnect;

/// The name of an option's value on the command line, and over QMP.
pub fn name(value: impl clap::ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

const EXAMPLES: &str = "\
Examples:
  paguro demo                                     see it all work on this machine
  paguro run --memory 1G --qmp unix:/tmp/a.sock   start a guest that writes memory
  paguro snapshot --qmp unix:/tmp/a.sock a.snap   save it while it runs
  paguro inspect --verify a.snap                  look into the file, check every page
  paguro restore a.snap --qmp unix:/tmp/b.sock    bring it back, page by page
  paguro run --memory 1G --incoming tcp::4444     wait for a machine of that size
  paguro migrate --qmp unix:/tmp/a.sock tcp:HOST:4444   move it there while it runs

Environment:
  PAGURO_LOG     what to trace, for example `debug` or `paguro_migration=trace`
  PAGURO_FORCE   fallbacks to take and things to break on purpose, for tests";

/// Snapshots and moves a running virtual machine without stopping it, byte for byte.
#[derive(Debug, Parser)]
#[command(name = "paguro", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a machine
    Run(Box<RunArgs>),
    /// Save a running machine to a file, without stopping it
    Snapshot(SnapshotArgs),
    /// Run a machine out of a snapshot file: short for `run --restore FILE`
    Restore(Box<RestoreArgs>),
    /// Move a running machine to another process or host
    Migrate(MigrateArgs),
    /// Show what is in a snapshot file
    Inspect(InspectArgs),
    /// Measure what snapshots and migrations cost the guest
    Bench(BenchArgs),
    /// Try this host: random machines, snapshots and restores, every byte checked
    Soak(SoakArgs),
    /// See it all work: snapshot a writing guest, restore it elsewhere, check every byte
    Demo(DemoArgs),
}

const RUN_HELP: &str = "\
Examples:
  paguro run --qmp unix:/tmp/a.sock
  paguro run --memory 4G --cpus 2 --pages thp --workload pattern=zipf,rate=unlimited
  paguro run --kernel vmlinux --cmdline 'console=ttyS0' --serial stdio
  paguro run --restore a.snap --restore-mode map
  paguro run --memory 4G --cpus 2 --incoming tcp::4444 --qmp unix:/tmp/b.sock
  paguro run --cpus 2 --incoming unix:/tmp/move --mode cpr-transfer --qmp unix:/tmp/b.sock

With --incoming the other options describe the machine that will come in, which must be the same;
nothing is loaded. It runs once the source has permitted that; with --paused it waits for `cont`.
If it does not come, the status is 1, and nothing has run here. Its address stays in use for a minute
after it came, as a source in doubt may ask there.

With --mode cpr-transfer RAM is handed over, not copied: --memory may be left out, --backing and
whether pages are of 2 MiB is as at the source. There is no machine before RAM is here: the control
socket takes connections and answers then.

The machine ends with status 0 after `quit` over QMP, after a signal (HUP, INT, QUIT, TERM, XCPU or PWR),
or when the guest resets it; with status 1 if it fails. A signal ends what is under way first, in
order: no half file is left, a command of exec: is killed, the sockets are removed. Further signals
change nothing; after half a minute it leaves whatever does not end. But for TERM each of them is ignored
if it was when the program started (HUP: nohup; INT and QUIT: a script's `&`). All other signals whose default is death (ALRM, IO, PIPE, PROF, STKFLT, USR1,
USR2, VTALRM, XFSZ, real-time signals) are ignored: so a file beyond the limit of file size (ulimit -f)
fails what writes it, and nothing else.

Nobody is waited for who does not read: of the serial line 64 KiB are kept for them, of messages on
standard error 1 MiB; what comes then is lost, and how much is told.";

/// `paguro run`
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub struct RunArgs {
    /// Start from this snapshot file. The other options describe the machine and must fit it; a
    /// kernel is not loaded again.
    #[arg(long, value_name = "FILE")]
    pub restore: Option<PathBuf>,
    /// Wait for a machine to come in: tcp:HOST:PORT (no HOST: any
    /// address; port 0: any, which is then printed),
    /// unix:PATH, vsock:CID:PORT, fd:N, exec:COMMAND, file:PATH, or defer, and QMP's
    /// `migrate-incoming` will say where from
    #[arg(long, value_name = "URI", conflicts_with = "restore")]
    pub incoming: Vec<IncomingArg>,
    /// Whether RAM comes in copied, or is handed over by a process on this host: with cpr-transfer
    /// the first connection to the unix:PATH of --incoming brings descriptors of RAM, the second
    /// the rest. As with QEMU, they may have an address of their own, and no --mode is needed:
    /// --incoming '{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"PATH"}}'
    /// [default: normal]
    #[arg(long, value_enum, requires = "incoming")]
    pub mode: Option<ModeArg>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

const RESTORE_HELP: &str = "\
Examples:
  paguro restore a.snap --qmp unix:/tmp/b.sock
  paguro restore a.snap --restore-mode eager --paused
  paguro restore a.snap --prefetch 100M/s

  paguro restore a.snap --clock advance

A machine that ran when it was saved runs on; one that was paused stays so until `cont`.

With --clock continue, the default as elsewhere, no time has passed for the guest: no timer is late, but its
time of day is, until something like NTP sets it. With --clock advance KVM's clock says what it would had
the guest never been away.";

/// `paguro restore`
#[derive(Debug, Args)]
#[command(after_help = RESTORE_HELP)]
pub struct RestoreArgs {
    /// The snapshot file
    pub file: PathBuf,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

const SNAPSHOT_HELP: &str = "\
Examples:
  paguro snapshot --qmp unix:/tmp/a.sock a.snap
  paguro snapshot --qmp unix:/tmp/a.sock a.snap --json | jq .pause_us

When it returns, the file is complete and on disk. Until then an older file of that name stays as it
was; the new one belongs to the user that runs the machine, with mode 0600. A link is followed, and
the file replaced where it leads. What can be known to be in the way (a pipe, a device, a directory
without the right to write, a name too long) is refused before the machine is paused.

Whatever is set over QMP for migrations neither stands in its way nor is changed by it.

Ctrl-C cancels; the guest runs on. What happens when this command ends before the snapshot does (HUP,
QUIT, TERM, XCPU, PWR or KILL, a connection that breaks), says --on-disconnect: it is cancelled, or goes
on (`query-migrate` says how far it is). A second signal ends the command at once. All other signals are
ignored, as are those but TERM that were when the command started.

Fields of --json on success: `status` (`completed`), `hint` and `error` (null), `warning` (what could
not be confirmed, null if there is nothing), and those of the engine's report, times in
microseconds, sizes in bytes:
  path, file_bytes (holes included), written_bytes, background
  total_pages, normal_pages (in the file), zero_pages
  faults (writes of the guest that waited for a copy), fault_pages (copied for them)
  setup_us (from the command to the pause), pause_us (the machine stood still), save_us,
  teardown_us, finish_us (syncing and naming the file), total_us
  peak_buffer_bytes, set_bytes (memory that the snapshot took)
  page_buffer_bytes (copies that might wait), page_buffer_wanted_bytes (if the host had any amount of
  memory), page_buffer_bound (what allowed no more, or null)
  buffer_waits (writes of the guest that waited for room), buffer_wait_us, longest_buffer_wait_us
and more that may change. On failure: `status` (`failed` or `cancelled`; another one if it goes on
without this command), `path`, `error`, and `hint`, which is null if there is none. The exit status is
then 1.";

/// `paguro snapshot`
#[derive(Debug, Args)]
#[command(after_help = SNAPSHOT_HELP)]
pub struct SnapshotArgs {
    /// The control socket of the machine: unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub qmp: QmpAddress,
    /// The file to write, replacing an older one when it is complete
    pub file: PathBuf,
    /// Stop the machine and leave it stopped (`postmigrate`), instead of letting it run on
    #[arg(long)]
    pub stop: bool,
    /// Copies of pages that may wait to be written; when there are more, writes of the guest wait
    /// [default: half of RAM, 16M to 256M, or less where the machine's memory is limited]
    #[arg(long, value_name = "SIZE")]
    pub page_buffer: Option<Size>,
    /// What becomes of the snapshot when this command ends before it does
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnDisconnect::Cancel)]
    pub on_disconnect: OnDisconnect,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const INSPECT_HELP: &str = "\
Examples:
  paguro inspect a.snap
  paguro inspect --verify a.snap

QEMU's own mapped-ram files can be read too; they have no checksums, so --verify checks their
structure only and says so. The exit status is 1 if the file is damaged.";

/// `paguro inspect`
#[derive(Debug, Args)]
#[command(after_help = INSPECT_HELP)]
pub struct InspectArgs {
    /// The snapshot file
    pub file: PathBuf,
    /// Check the checksum of every page
    #[arg(long)]
    pub verify: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
