//! Makes a machine as the options say, new or out of a snapshot file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use paguro_migration::Memory;
use paguro_migration::restore::{RestoreFile, RestoreMode, RestoreOptions, Waiters, restore_ram};
use paguro_pager::Prefetch;
use paguro_ram::{Backing, GuestRam, PageKind, RamBlock};
use paguro_sys::{Advice, Host};
use paguro_vmm::{Accel, Clock, Config, Described, MACHINE_NAME, RunState, Vm, describe};
use paguro_workload::Size;

use crate::cli::{
    AccelArg, BackingArg, ClockArg, DEFAULT_MEMORY, MachineArgs, PagesArg, PrefetchArg,
    RestoreModeArg,
};
use crate::guest::{Alarm, Guest, Return};
use crate::hints::Advised;
use crate::qmp::with_causes;

/// Threads that read a file back, and that answer the guest's faults meanwhile.
const RESTORE_THREADS: usize = 2;

/// A machine that was never run, booted.
pub fn fresh(args: &MachineArgs, host: Host) -> Result<Guest> {
    let guest = blank(args, host)?;
    guest.vm().boot()?;
    Ok(guest)
}

/// A machine that another one's state will be moved into: as the options say, and empty.
pub fn empty(args: &MachineArgs, host: Host) -> Result<Guest> {
    let guest = blank(args, host)?;
    guest.vm().set_stopped_state(RunState::InMigrate);
    Ok(guest)
}

/// A machine on RAM that another process handed over, which says what it is made of; empty as
/// [`empty`] is.
pub fn handed(args: &MachineArgs, ram: &GuestRam, host: Host) -> Result<Guest> {
    let found = Size(ram.bytes() as u64);
    let huge = ram.blocks().iter().any(|block| block.unit_pages() > 1);
    let misfit = match (args.memory, args.pages) {
        (Some(given), _) if given != found => {
            Some((format!("--memory {given}"), found.to_string(), "--memory"))
        }
        (_, PagesArg::Huge) if !huge => {
            let found = "pages of 4 KiB".to_owned();
            Some(("--pages 2m".to_owned(), found, "--pages"))
        }
        _ => None,
    };
    if let Some((given, found, option)) = misfit {
        return Err(Advised::error(
            format!("{given} does not fit the RAM that was handed over, which has {found}"),
            format!("leave {option} out; the guest runs on at its source"),
        ));
    }
    let mut config = config(args, None)?;
    config.memory_bytes = found.0;
    config.backing = Backing::Memfd;
    if huge {
        config.pages = PageKind::Huge;
    }
    for block in ram.blocks().iter().filter(|_| !huge) {
        // Of the mapping, not of the memory behind it.
        let advice = match config.pages {
            PageKind::Thp => Advice::Huge,
            _ => Advice::NoHuge,
        };
        let mapping = block.mapping();
        if let Err(error) = mapping.advise(0, mapping.len(), advice) {
            tracing::debug!(block = block.id(), %error, "page size advice has no effect");
        }
    }
    if let ([low, _], None) = (ram.blocks(), config.ram_split) {
        config.ram_split = Some(low.used_bytes() as u64);
    }
    let vm = Vm::create(config, Memory::new(host, ram.clone()))?;
    vm.set_stopped_state(RunState::InMigrate);
    Ok(Guest::new(vm, None))
}

fn blank(args: &MachineArgs, host: Host) -> Result<Guest> {
    let config = config(args, None)?;
    let blocks = config.ram_layout()?.into_iter().map(RamBlock::new);
    let ram = GuestRam::new(blocks.collect::<Result<_, _>>()?);
    let vm = Vm::create(config, Memory::new(host, ram))?;
    Ok(Guest::new(vm, None))
}

/// A machine out of a file, and whether it ran when it was saved.
pub fn restored(args: &MachineArgs, path: &Path, host: Host) -> Result<(Guest, bool)> {
    refuse_unmappable(args)?;
    let file = Arc::new(RestoreFile::open(path)?);
    if file.machine_name() != MACHINE_NAME {
        return Err(Advised::error(
            format!(
                "{} is a snapshot of a machine {:?}; this one is {MACHINE_NAME:?}",
                path.display(),
                file.machine_name()
            ),
            "restore it with the program that runs such machines; `paguro inspect` can show it",
        ));
    }
    let picture = describe(file.devices())?;
    let memory_bytes = file.ram_bytes();
    if let Some(given) = args.memory.filter(|given| given.0 != memory_bytes) {
        let found = Size(memory_bytes);
        return Err(Advised::error(
            format!(
                "--memory {given} does not fit {}, which has {found}",
                path.display()
            ),
            format!("leave --memory out, or give {found}"),
        ));
    }
    let mut config = config(args, Some(&picture))?;
    let options = RestoreOptions {
        prefetch: prefetch(args.prefetch),
        threads: RESTORE_THREADS,
        retry: args.read_retry,
        faults_in_kernel: config.accel == Accel::Kvm,
        ..RestoreOptions::new(mode(args.restore_mode))
    };
    if options.mode != RestoreMode::Eager {
        // Not zero, which says that nothing comes back.
        config.memory_retry = options.retry.max(Duration::from_millis(1));
    }
    // From here on pages are served, or there: KVM may touch them.
    let restored = restore_ram(&file, config.ram_layout()?, host, &options)?;
    let vm = Vm::create(config, restored.memory.clone())?;
    vm.load_devices(file.devices())
        .with_context(|| format!("{} does not fit this machine", path.display()))?;
    // The machine has all that it needs to run, and can be stopped for a while. What failed before is
    // told now.
    let alarm = Arc::new(Alarm::new(&vm));
    let raise = alarm.clone();
    restored.on_failure(Box::new(move |error| {
        if error.may_pass() {
            raise.halt(with_causes(error))
        } else {
            raise.raise(with_causes(error));
            Waiters::LetGo
        }
    }));
    let back = Return {
        mode: options.mode,
        filler: restored.filler,
        watch: restored.watch,
        alarm,
    };
    Ok((Guest::new(vm, Some(back)), file.was_running()))
}

/// What cannot be a private mapping of a file, refused before anything is made.
fn refuse_unmappable(args: &MachineArgs) -> Result<()> {
    let option = match (args.restore_mode, args.pages, args.backing) {
        (RestoreModeArg::Map, PagesArg::Huge, _) => "--pages 2m",
        (RestoreModeArg::Map, _, BackingArg::Memfd) => "--backing memfd",
        _ => return Ok(()),
    };
    Err(Advised::error(
        format!(
            "--restore-mode map cannot be combined with {option}: a file is mapped privately, in pages of 4 KiB"
        ),
        "use --restore-mode lazy, which can",
    ))
}

/// The machine that the options describe; what they leave out comes from the picture.
fn config(args: &MachineArgs, picture: Option<&Described>) -> Result<Config> {
    let accel = match args.accel.map(|option| option.accel) {
        Some(AccelArg::Kvm) => Accel::Kvm,
        Some(AccelArg::Threads) => Accel::Threads,
        None => picture.map_or(Accel::Kvm, |picture| picture.accel),
    };
    let memory = match (args.memory, picture) {
        (Some(memory), _) => memory.0,
        (None, Some(picture)) => picture.memory_bytes,
        (None, None) => DEFAULT_MEMORY.0,
    };
    let split = args.x_ram_split.map(|split| split.0);
    let config = Config {
        name: args.name.clone(),
        memory_bytes: memory,
        cpus: args
            .cpus
            .or(picture.map(|picture| picture.cpus))
            .unwrap_or(1),
        accel,
        backing: match args.backing {
            BackingArg::Anon => Backing::Anonymous,
            BackingArg::Memfd => Backing::Memfd,
        },
        pages: match args.pages {
            PagesArg::Small => PageKind::Small,
            PagesArg::Thp => PageKind::Thp,
            PagesArg::Huge => PageKind::Huge,
        },
        kernel: args.kernel.clone(),
        cmdline: args.cmdline.clone().unwrap_or_default(),
        workload: args.workload.unwrap_or_default(),
        clock: match args.clock {
            ClockArg::Continue => Clock::Continue,
            ClockArg::Advance => Clock::Advance,
        },
        serial: args.serial.clone(),
        dma: args.x_dma.or(picture.and_then(|picture| picture.dma)),
        progress: args.x_progress.clone(),
        gap_threshold_us: args.x_gap_threshold_us,
        ram_split: split.or(picture.and_then(|picture| picture.ram_split)),
        stage2: args.accel.and_then(|option| option.stage2),
        dirty_ring_entries: args.accel.and_then(|option| option.dirty_ring_entries),
        unseen_writer: args.x_unseen_writer.clone(),
        ..Config::default()
    };
    Ok(config)
}

fn mode(arg: RestoreModeArg) -> RestoreMode {
    match arg {
        RestoreModeArg::Map => RestoreMode::Map,
        RestoreModeArg::Lazy => RestoreMode::Lazy,
        RestoreModeArg::Eager => RestoreMode::Eager,
    }
}

fn prefetch(arg: PrefetchArg) -> Prefetch {
    match arg {
        PrefetchArg::Off => Prefetch::Off,
        PrefetchArg::Unlimited => Prefetch::Unlimited,
        PrefetchArg::Limited(rate) => Prefetch::Limited(rate),
    }
}
