//! A snapshot from the command to the name, or to the end of a stream.
//!
//! The order is that of the kernel's and QEMU's background snapshots, and of what went wrong with
//! them: guest RAM is armed before the pause, device state is taken inside it and *before* the
//! last look at RAM (collecting it may write there), and written after RAM. Every step that fails
//! drops what was built so far, and the destructors undo it: [`Frozen`] takes all protection away,
//! the machine's `Paused` lets it run on, `PartialFile` leaves no file.
//!
//! A guest that is stopped for its snapshot may be run by whoever finds the file. So from just
//! before the file gets its name nothing but the certainty that it did not lets it run on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use paguro_dirty::{Freeze, FreezeError, FreezeOptions};
use paguro_faults::{Faults, FaultsError};
use paguro_newfile::PartialFile;
use paguro_ram::{Backing, PageKind};
use paguro_sys::{Host, Raised, Userfault, page_size};
use paguro_wire::device::DeviceSection;
use paguro_wire::globalstate;
use paguro_wire::snapshot::extension::Facts;
use paguro_wire::snapshot::{BlockPlan, Layout};

use crate::channel::{self, Address};
use crate::error::{chain, unconfirmed};
use crate::machine::{Machine, Paused, WriterClass};
use crate::outlet::StreamOutlet;
use crate::save::Saver;
use crate::time::{micros, monotonic_ns};
use crate::{Control, Memory, Sabotage, SnapshotError, SnapshotOptions, Status};

/// What a snapshot did and what it cost. Times in microseconds, sizes in bytes, pages of the host.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SnapshotReport {
    /// The file.
    #[serde(serialize_with = "in_words")]
    pub path: PathBuf,
    /// What could not be confirmed, in words, although all is there: that the file outlives a crash
    /// of the host.
    pub warning: Option<String>,
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

/// Takes a snapshot of `machine` to `path`. Blocks until the file stands under its name, or
/// nothing is left of it; to be run in a thread of its own, while `control` is watched from others.
///
/// # Errors
///
/// [`SnapshotError`]; the machine then runs on if it ran before. The same text is kept in
/// `control`.
pub fn snapshot(
    machine: &dyn Machine,
    path: &Path,
    options: &SnapshotOptions,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    finish(run(machine, To::File(path), options, control), control)
}

/// The same as a stream: to any address, as QEMU's `background-snapshot` without `mapped-ram`. Every
/// page is in it once, and nothing tells where the next one is, so one thread writes it. There is no
/// return path: what the other side makes of it is not known, and whoever loads it has a second
/// machine, while this one runs on.
///
/// Options that concern the file (`channels`, `checksums`, `sync`) mean nothing here.
///
/// # Errors
///
/// [`SnapshotError`]; the machine then runs on if it ran before.
pub fn snapshot_to_stream(
    machine: &dyn Machine,
    address: &Address,
    channel: &channel::Options,
    options: &SnapshotOptions,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let to = To::Stream(address, channel);
    finish(run(machine, to, options, control), control)
}

/// Where a snapshot goes.
#[derive(Clone, Copy)]
enum To<'a> {
    File(&'a Path),
    Stream(&'a Address, &'a channel::Options),
}

fn finish(
    result: Result<SnapshotReport, SnapshotError>,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let result = result.map_err(|error| match error {
        // There may be a file.
        error if error.is_in_doubt() => error,
        _ if control.is_cancelled() => SnapshotError::Cancelled,
        error => error,
    });
    match &result {
        Ok(_) => control.finish(Status::Completed, None),
        Err(SnapshotError::Cancelled) => control.finish(Status::Cancelled, None),
        Err(error) => control.finish(Status::Failed, Some(chain(error))),
    }
    result
}

/// A report can be told whatever the name is.
fn in_words<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// A freeze that is ended on every path.
struct Frozen(Arc<Freeze>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn run(
    machine: &dyn Machine,
    to: To<'_>,
    options: &SnapshotOptions,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let begin = Instant::now();
    let mut report = SnapshotReport {
        path: match to {
            To::File(path) => path.to_owned(),
            To::Stream(address, _) => address.to_string().into(),
        },
        background: options.background,
        begin_at_ns: monotonic_ns(),
        ..Default::default()
    };
    let memory = machine.memory();
    let _busy = memory.begin().ok_or(SnapshotError::Busy)?;
    control.advance(Status::Setup);
    check(options)?;
    let ram = memory.ram();
    let faults = if options.background {
        Some(watch(machine)?)
    } else {
        None
    };
    let outlet = match to {
        To::File(path) => Outlet::File(PartialFile::create(path, options.sync)?),
        To::Stream(address, channel) => Outlet::Stream(Box::new(StreamOutlet::open(
            address,
            channel,
            machine.machine_name(),
            ram,
        )?)),
    };
    let buffer = options.page_buffer(ram);
    if let Some(bound) = &buffer.bound {
        let bytes = buffer.bytes;
        tracing::info!(%bound, bytes, wanted = buffer.wanted_bytes, "a small page buffer");
    }
    report.page_buffer_bytes = buffer.bytes as u64;
    report.page_buffer_wanted_bytes = buffer.wanted_bytes as u64;
    report.page_buffer_bound = buffer.bound.map(|bound| bound.to_string());
    control.set_page_buffer(&report);
    let freeze = Freeze::new(
        faults,
        ram.clone(),
        memory.unarrived(),
        &memory.take_written(),
        FreezeOptions {
            host: memory.host(),
            chunk_pages: options.chunk_bytes / page_size(),
            buffer_bytes: buffer.bytes,
            huge: options.huge,
            retry: memory.map_retry(),
            check: options.check_freeze && options.background,
            sabotage: options.sabotage,
        },
    )
    .map_err(SnapshotError::Freeze)?;
    memory.set_freeze(&freeze);
    let frozen = Frozen(freeze.clone());
    if !options.arm_in_pause {
        freeze
            .arm(|| !control.is_cancelled())
            .map_err(|error| cancelled(control, error))?;
    }
    report.setup_us = micros(begin.elapsed());
    report.pause_at_ns = monotonic_ns();

    // All vCPUs wait for this thread now.
    let raised = Raised::begin();
    let (paused, devices) = pause(machine, &freeze, options, &mut report)?;
    let saving_us = report.pause_stop_us + report.pause_devices_us;
    memory.was_saved(&devices, Duration::from_micros(saving_us));
    let state = if paused.was_running() {
        globalstate::RUNNING
    } else {
        globalstate::PAUSED
    };
    let was_running = paused.was_running();
    let lengths = ram.blocks().iter().map(|block| block.used_bytes());
    let lengths: Vec<usize> = lengths.collect();
    let mut stopped = if options.background {
        drop(paused);
        None
    } else {
        Some(paused)
    };
    drop(raised);
    let devices = match options.sabotage {
        Sabotage::DevicesAfterFreeze => machine.pause()?.save_devices()?,
        _ => devices,
    };
    note(control, &freeze, &report);
    control.advance(Status::Active);

    let saving = Instant::now();
    let mut outlet = match outlet {
        Outlet::Stream(mut stream) => {
            cancellable(&freeze, control, memory, || {
                stream.save_pages(&freeze, control, options)
            })?;
            Saving::Stream(stream)
        }
        Outlet::File(file) => {
            let layout = plan(machine, &lengths)?;
            file.set_len(layout.resume_offset)?;
            Saving::File(file, Box::new(layout))
        }
    };
    let saver = match &outlet {
        Saving::File(file, layout) => {
            let saver = Saver::new(file, layout, &freeze, control, options)?;
            cancellable(&freeze, control, memory, || saver.save_pages())?;
            Some(saver)
        }
        Saving::Stream(_) => None,
    };
    report.save_us = micros(saving.elapsed());

    let teardown = Instant::now();
    drop(frozen);
    report.teardown_us = micros(teardown.elapsed());
    report.free_at_ns = monotonic_ns();
    memory.set_written(freeze.written());

    if control.is_cancelled() {
        return Err(SnapshotError::Cancelled);
    }
    check_ram(memory, &mut stopped)?;
    control.advance(Status::Device);
    let finishing = Instant::now();
    let mut sections = vec![globalstate::section(state)?];
    sections.extend(devices);
    let facts = Facts {
        paguro_version: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at_unix_s: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        was_running,
        host_page_size_bytes: page_size() as u64,
    };
    let table_bytes = saver.as_ref().map_or(0, Saver::table_bytes);
    if let Some(saver) = saver {
        saver.write_rest(&sections, &facts)?;
    }
    if let Saving::Stream(stream) = &mut outlet {
        stream.write_rest(&sections, control)?;
    }
    count(&mut report, &freeze, table_bytes, control);
    if let Saving::File(file, _) = &outlet {
        file.settle()?;
        if control.is_cancelled() {
            return Err(SnapshotError::Cancelled);
        }
    }
    // What is wrong with a page may be noticed a little after it was read.
    check_ram(memory, &mut stopped)?;
    report.file_bytes = match &outlet {
        Saving::File(file, _) => file.len_bytes(),
        Saving::Stream(_) => report.written_bytes,
    };
    hold(&mut stopped, true);
    let completed = match outlet {
        Saving::File(file, _) => complete(file),
        Saving::Stream(stream) => stream.complete(),
    };
    report.warning = completed.inspect_err(|error| hold(&mut stopped, error.is_in_doubt()))?;
    report.finish_us = micros(finishing.elapsed());
    report.total_us = micros(begin.elapsed());
    Ok(report)
}

/// Of RAM that is not what it was nothing is to be loaded, and the guest is not to run in it.
fn check_ram(
    memory: &Memory,
    stopped: &mut Option<Box<dyn Paused + '_>>,
) -> Result<(), SnapshotError> {
    if memory.is_spoilt() {
        hold(stopped, true);
        return Err(SnapshotError::LostPages);
    }
    Ok(())
}

/// Whether a guest that was stopped stays so.
fn hold(stopped: &mut Option<Box<dyn Paused + '_>>, stay: bool) {
    if let Some(paused) = stopped {
        paused.stay(stay);
    }
}

/// Gives the file its name.
fn complete(file: PartialFile) -> Result<Option<String>, SnapshotError> {
    let what = file.complete()?.map(SnapshotError::from);
    Ok(what.map(|what| unconfirmed(&what)))
}

/// Where pages are still elsewhere, those who save may be waiting for them: a cancel then ends the
/// freeze at once, and with it their patience.
fn cancellable<T>(
    freeze: &Freeze,
    control: &Control,
    memory: &Memory,
    save: impl FnOnce() -> T,
) -> T {
    const LOOK: Duration = Duration::from_millis(20);
    if memory.unarrived().is_none() && memory.map_retry().is_zero() {
        return save();
    }
    let (saving, saved) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let listen = move || {
            while saved.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if control.is_cancelled() {
                    return freeze.abandon();
                }
            }
        };
        let listening = paguro_sys::NewThread::named("save/cancel".to_owned());
        if let Err(error) = listening.spawn_scoped(scope, listen) {
            tracing::warn!(%error, "a cancel may take a while");
        }
        let done = save();
        drop(saving);
        done
    })
}

/// Where a snapshot goes, opened before the guest notices anything.
enum Outlet {
    File(PartialFile),
    Stream(Box<StreamOutlet>),
}

/// The same once the lengths of the blocks are known.
enum Saving {
    File(PartialFile, Box<Layout>),
    Stream(Box<StreamOutlet>),
}

/// The pause, steps 1 to 6; dropping what it returns is step 7.
fn pause<'m>(
    machine: &'m dyn Machine,
    freeze: &Freeze,
    options: &SnapshotOptions,
    report: &mut SnapshotReport,
) -> Result<(Box<dyn Paused + 'm>, Vec<DeviceSection>), SnapshotError> {
    let start = Instant::now();
    if options.sabotage == Sabotage::RearmBeforeBarrier {
        freeze.arm_rest().map_err(SnapshotError::Freeze)?;
    }
    // 1 and 2: vCPUs out of the guest, devices quiet.
    let mut paused = machine.pause()?;
    report.pause_stop_us = micros(start.elapsed());
    // 3: device state, and what collecting it writes to RAM.
    let devices = paused.save_devices()?;
    report.pause_devices_us = micros(start.elapsed()) - report.pause_stop_us;
    // 4 to 6: readers stand still, the last look, the frozen epoch.
    let barrier = freeze.barrier();
    freeze.hold(barrier).map_err(SnapshotError::Freeze)?;
    if options.pause_sleep_us > 0 {
        std::thread::sleep(Duration::from_micros(options.pause_sleep_us));
    }
    report.pause_us = micros(start.elapsed());
    report.pause_freeze_us = report.pause_us - report.pause_stop_us - report.pause_devices_us;
    Ok((paused, devices))
}

fn check(options: &SnapshotOptions) -> Result<(), SnapshotError> {
    let chunk = options.chunk_bytes;
    if !chunk.is_power_of_two() || !(page_size()..=2 << 20).contains(&chunk) {
        return Err(SnapshotError::Option {
            option: "the chunk size",
            value: chunk as u64,
            rule: "a power of two from one page to 2 MiB",
        });
    }
    if !(1..=256).contains(&options.channels) {
        return Err(SnapshotError::Option {
            option: "the number of channels",
            value: options.channels as u64,
            rule: "1 to 256",
        });
    }
    Ok(())
}

/// Refuses what cannot be frozen, before anything is touched.
fn watch(machine: &dyn Machine) -> Result<Arc<Faults>, SnapshotError> {
    let unseen = machine
        .writers()
        .into_iter()
        .find(|writer| writer.class == WriterClass::Unseen);
    if let Some(writer) = unseen {
        return Err(SnapshotError::UnseenWriter {
            writer: writer.name,
        });
    }
    let host = machine.memory().host();
    let faults = machine.memory().faults();
    let faults = faults.map_err(SnapshotError::CannotFreeze)?;
    check_host(machine, &host)?;
    Ok(faults)
}

/// Whether this host could freeze the machine's RAM now. Who writes it is not asked, as that may change
/// until a snapshot begins; and nothing stays open.
///
/// # Errors
///
/// Why not, as a snapshot would fail: [`CannotFreeze`](SnapshotError::CannotFreeze),
/// [`NoKernelFaults`](SnapshotError::NoKernelFaults), [`NoWriteProtect`](SnapshotError::NoWriteProtect).
pub fn check_can_freeze(machine: &dyn Machine) -> Result<(), SnapshotError> {
    let host = machine.memory().host();
    if host.userfault == Userfault::None {
        // Only the attempt says why.
        let opened = host.open_uffd().map_err(FaultsError::Open);
        opened.map_err(SnapshotError::CannotFreeze)?;
    }
    check_host(machine, &host)
}

fn check_host(machine: &dyn Machine, host: &Host) -> Result<(), SnapshotError> {
    if host.userfault != Userfault::Full && machine.faults_in_kernel() {
        return Err(SnapshotError::NoKernelFaults);
    }
    if !host.can_freeze() {
        return Err(SnapshotError::NoWriteProtect {
            memory: "anonymous memory",
        });
    }
    let shared = |block: &Arc<paguro_ram::RamBlock>| {
        block.backing() == Backing::Memfd || block.page_kind() == PageKind::Huge
    };
    let ram = machine.memory().ram();
    if ram.blocks().iter().any(shared) && !host.can_freeze_shared() {
        return Err(SnapshotError::NoWriteProtect {
            memory: "shared memory",
        });
    }
    Ok(())
}

fn plan(machine: &dyn Machine, lengths: &[usize]) -> Result<Layout, SnapshotError> {
    let blocks = machine.memory().ram().blocks().iter().zip(lengths);
    let blocks: Vec<_> = blocks
        .map(|(block, &bytes)| BlockPlan {
            id: block.id().to_owned(),
            used_length_bytes: bytes as u64,
        })
        .collect();
    Ok(Layout::plan(machine.machine_name(), &blocks)?)
}

fn cancelled(control: &Control, error: FreezeError) -> SnapshotError {
    if control.is_cancelled() {
        SnapshotError::Cancelled
    } else {
        SnapshotError::Freeze(error)
    }
}

fn note(control: &Control, freeze: &Freeze, report: &SnapshotReport) {
    let counters = &control.counters;
    counters
        .total_pages
        .store(freeze.total_pages() as u64, Ordering::Relaxed);
    counters.setup_us.store(report.setup_us, Ordering::Relaxed);
    counters.pause_us.store(report.pause_us, Ordering::Relaxed);
}

fn count(report: &mut SnapshotReport, freeze: &Freeze, table_bytes: usize, control: &Control) {
    let stats = freeze.stats();
    let counters = &control.counters;
    counters
        .faults
        .store(stats.faults.load(Ordering::Relaxed), Ordering::Relaxed);
    report.total_pages = freeze.total_pages() as u64;
    report.normal_pages = counters.normal_pages.load(Ordering::Relaxed);
    report.zero_pages = counters.zero_pages.load(Ordering::Relaxed);
    report.written_bytes = counters.transferred_bytes.load(Ordering::Relaxed);
    report.arming_faults = stats.arming_faults.load(Ordering::Relaxed);
    report.faults = stats.faults.load(Ordering::Relaxed);
    report.fault_pages = stats.fault_pages.load(Ordering::Relaxed);
    report.arm_rounds = stats.rounds.load(Ordering::Relaxed);
    report.rearmed_pages = stats.rearmed_pages.load(Ordering::Relaxed);
    report.peak_buffer_bytes = freeze.peak_buffer_bytes() as u64;
    let waits = freeze.buffer_waits();
    control.note_waits(waits);
    report.buffer_waits = waits.count;
    report.buffer_wait_us = micros(waits.total);
    report.longest_buffer_wait_us = micros(waits.longest);
    report.set_bytes = (freeze.set_bytes() + table_bytes) as u64;
}
