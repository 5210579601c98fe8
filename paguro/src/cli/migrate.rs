//! Options of `paguro migrate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use paguro_migration::channel::Address;
use paguro_workload::Size;

use super::{ModeArg, OnDisconnect, QmpAddress};

const MIGRATE_HELP: &str = "\
Examples:
  paguro run --memory 1G --incoming unix:/tmp/move --qmp unix:/tmp/b.sock   (the destination)
  paguro migrate --qmp unix:/tmp/a.sock unix:/tmp/move
  paguro migrate --qmp unix:/tmp/a.sock tcp:10.0.0.2:4444 --downtime-limit 50 --auto-converge
  paguro migrate --qmp unix:/tmp/a.sock tcp:10.0.0.2:4444 --timeout 60 --json | jq .downtime_us
  paguro migrate --qmp unix:/tmp/a.sock unix:/tmp/move --mode cpr-transfer   (RAM is not copied)
  paguro migrate --qmp unix:/tmp/a.sock tcp:10.0.0.2:4444 --xbzrle   (a slow channel, few bytes a page written)
  paguro migrate --qmp unix:/tmp/a.sock tcp:10.0.0.2:4444 --multifd-channels 4 --multifd-compression zstd
                        (with the same two options at `paguro run --incoming`)

The guest runs while its memory is sent; what it writes meanwhile is sent again, pass by pass. When
what is left would take no longer than --downtime-limit, it is stopped here, the rest is sent, and
it runs on there. A guest that writes faster than the channel takes it never gets there by itself:
--auto-converge slows it down, --vcpu-dirty-limit only those vCPUs that write much, and --timeout ends
the attempt.

When it returns with status 0 the guest runs at the destination, and the machine here is stopped,
whole (`postmigrate`): end it with `quit`. Otherwise the status is 1, and it says where the guest is
and what to do; in nearly all cases it runs on here.

Ctrl-C cancels. What happens when this command ends before the migration does (HUP, QUIT, TERM, XCPU,
PWR or KILL, a connection that breaks), says --on-disconnect: it is cancelled, as long as it can be, or
goes on (`query-migrate` says how far it is). A second signal ends the command at once. All other
signals are ignored, as are those but TERM that were when the command started.

Options count for this migration only, and nothing that is set over QMP is changed. While it runs this
command is the only client of the control socket: to look at a migration, or to change
`max-bandwidth` while it runs, start it over QMP, or leave it with --on-disconnect continue.

Where `pause-before-switchover` was set over QMP this command ends, with status 1, when the guest is
stopped and ready to move; whatever --on-disconnect says, the guest waits there then. `paguro migrate
--qmp ADDRESS --continue` moves it on and reports as this command does; over QMP `migrate-continue`
moves it on, and `migrate_cancel` lets it run on here.

With --mode cpr-transfer, from one process to another on one host, RAM (--backing memfd) is handed over
by descriptor, and only the state of devices is sent: for replacing this program while its guest
lives. The machine here cannot run again afterwards: there is one RAM, which the guest writes there.

URI: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, fd:N, exec:COMMAND (its standard input is the stream),
file:PATH[,offset=N]. fd:, exec: and file: are those of the machine's process. A file is replaced
as by `paguro snapshot`, when it is complete.

Fields of --json on success: `status` (`completed`), `hint`, `error` and `advice` (null), `warning` (what
could not be confirmed, null if there is nothing), and those of the engine's report, times in microseconds, sizes in bytes, pages of the host:
  uri, total_us, setup_us (until RAM began to be sent), track_us (of that, to begin tracking writes)
  downtime_us (the guest stood still, as the source sees it), forecast_us (by which it was stopped),
  forced (true: the forecast was longer than the limit, but --timeout was over),
  last_dirty_bytes (what was left then), sync_us (the last look for written pages)
  total_bytes (RAM), transferred_bytes, precopy_bytes and downtime_bytes (of that, before and after
  the guest was stopped), multifd_bytes, xbzrle_pages and xbzrle_bytes (of differences), normal_pages, zero_pages, dirty_sync_count (passes),
  bandwidth (bytes a second that the channel takes unlimited, 0: not measured),
  throttle_percent (how much the guest was slowed down at the end)
and more that may change. On failure: `status` (`failed`, `cancelled`, `x-paguro-in-doubt` or
`pre-switchover`; another one if it goes on without this command), `uri` (null with
--continue), `error`, `hint` (null if there is none) and `advice`: `is`, what is so, and `may`, what can be done;
null if it never began.";

/// `paguro migrate`
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_HELP)]
pub struct MigrateArgs {
    /// The control socket of the machine: unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub qmp: QmpAddress,
    /// Where the destination waits
    #[arg(required_unless_present = "go_on")]
    pub uri: Option<Address>,
    /// Move a guest on that waits in `pre-switchover`
    #[arg(long = "continue", conflicts_with_all = [
        "uri", "mode", "downtime_limit", "max_bandwidth", "switchover_bandwidth", "auto_converge",
        "vcpu_dirty_limit", "timeout", "silence", "tls_creds", "multifd_channels", "xbzrle",
        "on_disconnect",
    ])]
    pub go_on: bool,
    /// Copy RAM, or hand it over to a process on this host [default: as set, at first normal]
    #[arg(long, value_enum)]
    pub mode: Option<ModeArg>,
    /// How long the guest may stand still, by the forecast [default: as set, at first 300]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=2_000_000))]
    pub downtime_limit: Option<u64>,
    /// Bytes a second sent at most while the guest runs, for example 100M; 0: no limit [default: as
    /// set, at first 0]
    #[arg(long, value_name = "SIZE")]
    pub max_bandwidth: Option<Size>,
    /// Bytes a second that the forecast reckons with, instead of what was measured
    #[arg(long, value_name = "SIZE")]
    pub switchover_bandwidth: Option<Size>,
    /// Slow the guest down if it writes too fast
    #[arg(long)]
    pub auto_converge: bool,
    /// Slow down each vCPU that writes more MiB a second, if the guest writes too fast; needs
    /// `--accel kvm,dirty-ring-size=N`
    #[arg(long, value_name = "N", conflicts_with = "auto_converge",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub vcpu_dirty_limit: Option<u64>,
    /// Do not try for longer than that, and then do as --at-timeout says
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub timeout: Option<u64>,
    /// Give up, and the guest runs on here; or stop it for as long as the rest takes
    #[arg(long, value_enum, requires = "timeout")]
    pub at_timeout: Option<AtTimeoutArg>,
    /// For how long the destination may be silent before it is given up; 0: for ever
    #[arg(long, value_name = "MS")]
    pub silence: Option<u64>,
    /// Speak TLS, with the certificates in this directory: ca-cert.pem, client-cert.pem,
    /// client-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls_creds: Option<PathBuf>,
    /// The name that the destination's certificate is for, if not that in the URI
    #[arg(long, value_name = "NAME", requires = "tls_creds")]
    pub tls_hostname: Option<String>,
    #[command(flatten)]
    pub multifd: MultifdArgs,
    /// Send of a page that was sent before what has changed in it (XBZRLE)
    #[arg(long, conflicts_with = "multifd_channels")]
    pub xbzrle: bool,
    /// Bytes of sent pages that are kept for that, a power of two [default: as set, at first 64M]
    #[arg(long, value_name = "SIZE", requires = "xbzrle")]
    pub xbzrle_cache_size: Option<Size>,
    /// What becomes of the migration when this command ends before it does
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnDisconnect::Cancel)]
    pub on_disconnect: OnDisconnect,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Connections for pages, of either side.
#[derive(Clone, Debug, Default, Args)]
pub struct MultifdArgs {
    /// Pages travel over so many connections of their own; source and destination must be told alike
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub multifd_channels: Option<u8>,
    /// How pages are compressed on them; source and destination must be told alike
    #[arg(long, value_enum, value_name = "METHOD", requires = "multifd_channels")]
    pub multifd_compression: Option<CompressionArg>,
    /// 1 (fast) to 20 (small)
    #[arg(long, value_name = "N", requires = "multifd_compression",
          value_parser = clap::value_parser!(u8).range(1..=20))]
    pub multifd_zstd_level: Option<u8>,
}

/// `--multifd-compression`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// Not at all
    None,
    /// zstd
    Zstd,
}

/// `--at-timeout`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AtTimeoutArg {
    /// The guest runs on here
    Cancel,
    /// It is stopped and moved
    Switchover,
}
