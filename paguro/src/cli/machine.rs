//! Options that describe a machine.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use paguro_stage2::{LogMode, LogOptions, SplitPolicy};
use paguro_vmm::{DmaConfig, Serial, Stage2Config};
use paguro_workload::Size;
use paguro_workload::Spec;

use super::MultifdArgs;

/// RAM of a new machine.
pub const DEFAULT_MEMORY: Size = Size(512 << 20);

/// Options of `run` and `restore`.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Name of the machine
    #[arg(long, default_value = "paguro")]
    pub name: String,
    /// PVH ELF kernel to boot; without one a built-in guest runs that writes memory
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    pub kernel: Option<PathBuf>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub cmdline: Option<String>,
    /// RAM, for example 512M or 4G [default: 512M, or that of the snapshot file]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// vCPUs [default: 1, or those of the snapshot file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// What is behind the RAM
    #[arg(long, value_enum, default_value_t = BackingArg::Anon)]
    pub backing: BackingArg,
    /// Which pages it has
    #[arg(long, value_enum, default_value_t = PagesArg::Small)]
    pub pages: PagesArg,
    /// What runs the vCPUs: kvm (/dev/kvm), threads (of this process, doing the same work; needs no
    /// /dev/kvm). With kvm,dirty-ring-size=N, KVM tells of written pages by a ring of N entries a
    /// vCPU, N a power of two, instead of a log. With threads,dirty-log=stage2, the threads write
    /// through Arm stage-2 tables in software, whose log tells; dirty-log=stage2-eager splits their
    /// blocks in advance, dirty-log=stage2-hardware lets the CPUs note what they write [default: kvm, or what ran those of the snapshot
    /// file]
    #[arg(long, value_name = "kvm[,dirty-ring-size=N]|threads[,dirty-log=LOG]", value_parser = accel)]
    pub accel: Option<AccelOption>,
    /// What the built-in guest does: pattern=sequential|random|zipf|hotset, rate=PAGES/S|unlimited,
    /// hot=SIZE (of the hot part of hotset, of the hottest of zipf), seed=N, bytes=8|64|page (that
    /// one write stores), op=write|read, set=SIZE (of the part of RAM that is written), separated by
    /// commas
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub workload: Option<Spec>,
    /// Control socket: unix:PATH; one client at a time, others wait until it has gone
    #[arg(long, value_name = "ADDRESS")]
    pub qmp: Option<QmpAddress>,
    /// Where the serial line goes: stdio, file:PATH (to its end: what it has stays, also in `run`) or
    /// none. The guest waits for nobody who reads it: up to 64 KiB are kept, what comes then is lost and
    /// counted (`x-paguro-query-machine`)
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = serial)]
    pub serial: Serial,
    /// How RAM comes back: lazy (page by page, as the guest asks, and by prefetching), map (the file
    /// is mapped), eager (all is read first). Until all has come (lazy), or as long as the machine
    /// lives (map), the file must not be written to; it may be renamed, unlinked or replaced by another
    /// of its name
    #[arg(long, value_enum, value_name = "MODE", default_value_t = RestoreModeArg::Lazy)]
    pub restore_mode: RestoreModeArg,
    /// What a lazy restore fetches unasked: off, unlimited, or a rate such as 100M/s
    #[arg(long, value_name = "RATE", default_value = "unlimited", value_parser = prefetch)]
    pub prefetch: PrefetchArg,
    /// How long a read of the snapshot file is tried again if it fails while the machine runs from it
    /// (lazy, map) or is read (eager): with --restore-mode lazy or map the machine is then stopped
    /// (`io-error`), and `cont` lets it try again. For example 30s, 500ms, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub read_retry: Duration,
    /// What the guest's clock (KVM's, which a kvmclock shows) does with the time between when the
    /// machine was saved, or left its host, and now
    #[arg(long, value_enum, default_value_t = ClockArg::Continue)]
    pub clock: ClockArg,
    /// Do not start: wait for `cont`
    #[arg(long)]
    pub paused: bool,
    /// Directory of certificates, as the migration parameter `tls-creds`, which it sets: with it,
    /// sockets of --incoming speak TLS
    #[arg(long, value_name = "DIR")]
    pub tls_creds: Option<PathBuf>,
    #[command(flatten)]
    pub multifd: MultifdArgs,
    /// Read all of RAM in the pause of a snapshot and compare each copy with it, to find writers that no
    /// freeze sees. The pause takes longer by some 0.2 ms a MiB
    #[arg(long)]
    pub check_freeze: bool,
    /// Add a device that writes guest RAM: rate=PAGES/S[,direct=on]
    #[arg(long, value_name = "rate=N[,direct=on]", value_parser = dma)]
    pub x_dma: Option<DmaConfig>,
    /// File through which other processes see the guest's progress
    #[arg(long, value_name = "FILE")]
    pub x_progress: Option<PathBuf>,
    /// Gaps in the guest's progress of at least so many microseconds are listed one by one
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub x_gap_threshold_us: u64,
    /// Size of the first RAM block; the rest stands from 4 GiB on
    #[arg(long, value_name = "SIZE")]
    pub x_ram_split: Option<Size>,
    /// Pretend that there is a writer of this name that no freeze can see
    #[arg(long, value_name = "NAME")]
    pub x_unseen_writer: Option<String>,
    /// End when standard input ends: for a program that runs machines and must leave none behind
    #[arg(long)]
    pub x_end_with_stdin: bool,
}

/// `--backing`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackingArg {
    /// Private anonymous memory
    Anon,
    /// A memfd, which other processes could map too
    Memfd,
}

/// `--pages`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PagesArg {
    /// 4 KiB
    #[value(name = "4k")]
    Small,
    /// 4 KiB, joined to huge pages by the kernel
    Thp,
    /// 2 MiB of hugetlbfs, which the host must have set aside
    #[value(name = "2m")]
    Huge,
}

impl PagesArg {
    /// The same for a machine in a process of its own.
    pub fn of_lab(self) -> paguro_lab::Pages {
        match self {
            Self::Small => paguro_lab::Pages::Small,
            Self::Thp => paguro_lab::Pages::Thp,
            Self::Huge => paguro_lab::Pages::Huge,
        }
    }
}

/// `--accel`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// /dev/kvm
    Kvm,
    /// Threads of this process that do the same work; needs no /dev/kvm
    Threads,
}

/// `--accel` of a machine, with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccelOption {
    /// What runs the vCPUs.
    pub accel: AccelArg,
    /// Entries of KVM's dirty ring.
    pub dirty_ring_entries: Option<u32>,
    /// The stage-2 tables of threads.
    pub stage2: Option<Stage2Config>,
}

/// `--restore-mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestoreModeArg {
    /// The file is mapped privately
    Map,
    /// Pages are fetched when they are touched, and before
    Lazy,
    /// All is read before the machine starts
    Eager,
}

/// `--clock`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClockArg {
    /// It goes on where it was: for the guest no time has passed, and none of its timers is late
    Continue,
    /// It advances by what the host's clock did meanwhile; hosts must agree on the time
    Advance,
}

/// `--prefetch`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchArg {
    /// Only what is asked for.
    Off,
    /// As fast as it goes.
    Unlimited,
    /// Bytes a second.
    Limited(u64),
}

/// `--qmp`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpAddress(pub PathBuf);

impl FromStr for QmpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() && !path.contains(',') => Ok(Self(path.into())),
            Some(path) if path.contains(',') => {
                Err("options after the path are not known: just unix:PATH".to_owned())
            }
            _ => Err("not an address of the form unix:PATH".to_owned()),
        }
    }
}

fn accel(text: &str) -> Result<AccelOption, String> {
    let (name, options) = match text.split_once(',') {
        Some((name, options)) => (name, Some(options)),
        None => (text, None),
    };
    let accel = match name {
        "kvm" => AccelArg::Kvm,
        "threads" => AccelArg::Threads,
        _ => return Err("not one of kvm, threads".to_owned()),
    };
    let mut option = AccelOption {
        accel,
        dirty_ring_entries: None,
        stage2: None,
    };
    match (options, accel) {
        (None, _) => {}
        (Some(options), AccelArg::Kvm) => option.dirty_ring_entries = Some(dirty_ring(options)?),
        (Some(options), AccelArg::Threads) => option.stage2 = Some(dirty_log(options)?),
    }
    Ok(option)
}

fn dirty_log(text: &str) -> Result<Stage2Config, String> {
    let mut log = LogOptions::default();
    match text.split_once('=') {
        Some(("dirty-log", "stage2")) => {}
        Some(("dirty-log", "stage2-eager")) => log.split = SplitPolicy::Eager,
        Some(("dirty-log", "stage2-hardware")) => log.mode = LogMode::Hardware,
        _ => {
            return Err(format!(
                "{text:?} is not dirty-log=stage2, dirty-log=stage2-eager or dirty-log=stage2-hardware"
            ));
        }
    }
    Ok(Stage2Config {
        log,
        ..Stage2Config::default()
    })
}

fn dirty_ring(text: &str) -> Result<u32, String> {
    let Some(("dirty-ring-size", entries)) = text.split_once('=') else {
        return Err(format!("{text:?} is not dirty-ring-size=N"));
    };
    match entries.parse() {
        Ok(entries) if u32::is_power_of_two(entries) => Ok(entries),
        _ => Err(format!(
            "dirty-ring-size is a number of entries, a power of two, not {entries:?}"
        )),
    }
}

fn serial(text: &str) -> Result<Serial, String> {
    match (text, text.strip_prefix("file:")) {
        ("stdio", _) => Ok(Serial::Stdio),
        ("none", _) => Ok(Serial::None),
        (_, Some(path)) if !path.is_empty() => Ok(Serial::File(path.into())),
        _ => Err("not one of stdio, file:PATH, none".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, milliseconds) = [("ms", 1), ("s", 1_000), ("m", 60_000)]
        .into_iter()
        .find_map(|(unit, milliseconds)| Some((text.strip_suffix(unit)?, milliseconds)))
        .ok_or("not a number with one of the units ms, s, m")?;
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{number:?} is no number"))?;
    let milliseconds = number.checked_mul(milliseconds).ok_or("too long")?;
    Ok(Duration::from_millis(milliseconds))
}

fn prefetch(text: &str) -> Result<PrefetchArg, String> {
    match text {
        "off" => Ok(PrefetchArg::Off),
        "unlimited" => Ok(PrefetchArg::Unlimited),
        _ => match text.strip_suffix("/s").map(str::parse) {
            Some(Ok(Size(rate))) if rate > 0 => Ok(PrefetchArg::Limited(rate)),
            _ => Err("not one of off, unlimited, SIZE/s".to_owned()),
        },
    }
}

fn dma(text: &str) -> Result<DmaConfig, String> {
    let (mut rate, mut direct) = (None, false);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("rate", "unlimited")) => rate = Some(0),
            Some(("rate", number)) => {
                let number: u64 = number.parse().map_err(|_| "rate is no number".to_owned())?;
                if number == 0 {
                    return Err("rate is 0: leave the device out, or say unlimited".to_owned());
                }
                rate = Some(number);
            }
            Some(("direct", "on")) => direct = true,
            Some(("direct", "off")) => direct = false,
            _ => {
                return Err(format!(
                    "{part:?} is not one of rate=N, rate=unlimited, direct=on"
                ));
            }
        }
    }
    let rate_pages_per_s = rate.ok_or("rate is missing")?;
    Ok(DmaConfig {
        rate_pages_per_s,
        direct,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use paguro_lab::Choice;

    #[test]
    fn addresses_are_unix_paths() {
        assert_eq!("unix:/a/b".parse(), Ok(QmpAddress("/a/b".into())));
        for text in ["/a/b", "unix:", "tcp:1:2", "unix:/a,server=on"] {
            assert!(text.parse::<QmpAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_accelerator_may_have_a_dirty_ring_or_log() {
        let option = |accel, dirty_ring_entries| AccelOption {
            accel,
            dirty_ring_entries,
            stage2: None,
        };
        assert_eq!(accel("kvm"), Ok(option(AccelArg::Kvm, None)));
        assert_eq!(accel("threads"), Ok(option(AccelArg::Threads, None)));
        let ring = accel("kvm,dirty-ring-size=4096");
        assert_eq!(ring, Ok(option(AccelArg::Kvm, Some(4096))));
        for (text, mode, split) in [
            ("stage2", LogMode::Fault, SplitPolicy::Lazy),
            ("stage2-eager", LogMode::Fault, SplitPolicy::Eager),
            ("stage2-hardware", LogMode::Hardware, SplitPolicy::Lazy),
        ] {
            let option = accel(&format!("threads,dirty-log={text}")).unwrap();
            let log = option.stage2.unwrap().log;
            assert_eq!(
                (option.accel, log.mode, log.split),
                (AccelArg::Threads, mode, split)
            );
        }
        for text in [
            "",
            "tcg",
            "threads,",
            "threads,dirty-log",
            "threads,dirty-log=kvm",
            "kvm,dirty-log=stage2",
            "kvm,",
            "kvm,dirty-ring-size",
            "kvm,dirty-ring-size=",
            "kvm,dirty-ring-size=0",
            "kvm,dirty-ring-size=1000",
            "kvm,dirty-ring-size=-4096",
            "kvm,dirty-ring-size=8589934592",
            "kvm,dirty-ring-size=4096,dirty-ring-size=4096",
            "threads,dirty-ring-size=4096",
        ] {
            assert!(accel(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prefetch_is_off_unlimited_or_a_rate() {
        assert_eq!(prefetch("off"), Ok(PrefetchArg::Off));
        assert_eq!(prefetch("unlimited"), Ok(PrefetchArg::Unlimited));
        assert_eq!(prefetch("2M/s"), Ok(PrefetchArg::Limited(2 << 20)));
        for text in ["", "2M", "0/s", "/s", "on"] {
            assert!(prefetch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_lab_knows_the_values_by_their_names() {
        fn agree<A: ValueEnum, B: Choice>() {
            let ours = A::value_variants().iter().map(|value| {
                let value = value.to_possible_value().unwrap();
                value.get_name().to_owned()
            });
            let mut ours: Vec<_> = ours.collect();
            let mut theirs: Vec<_> = B::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
            ours.sort();
            theirs.sort();
            assert_eq!(ours, theirs);
        }
        agree::<AccelArg, paguro_lab::Accel>();
        agree::<BackingArg, paguro_lab::Backing>();
        agree::<PagesArg, paguro_lab::Pages>();
        agree::<RestoreModeArg, paguro_lab::RestoreMode>();
        for (text, config) in [
            ("rate=5,direct=on", (5, true)),
            ("rate=unlimited", (0, false)),
        ] {
            let (rate_pages_per_s, direct) = config;
            let theirs = paguro_lab::DmaConfig {
                rate_pages_per_s,
                direct,
            };
            assert_eq!(theirs.to_string(), text);
        }
        for (ours, theirs) in [
            (PrefetchArg::Off, paguro_lab::Prefetch::Off),
            (PrefetchArg::Unlimited, paguro_lab::Prefetch::Unlimited),
            (PrefetchArg::Limited(7), paguro_lab::Prefetch::Limited(7)),
        ] {
            assert_eq!(prefetch(&theirs.to_string()), Ok(ours));
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "30", "s", "-1s", "1h", "1.5s", "18446744073709551615m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_dma_device_needs_a_rate() {
        let config = DmaConfig {
            rate_pages_per_s: 5,
            direct: true,
        };
        assert_eq!(dma("rate=5,direct=on"), Ok(config));
        assert_eq!(dma("rate=unlimited").map(|dma| dma.rate_pages_per_s), Ok(0));
        for text in [
            "",
            "direct=on",
            "rate=0",
            "rate=x",
            "rate=5,direct",
            "speed=1",
        ] {
            assert!(dma(text).is_err(), "{text}");
        }
    }
}
