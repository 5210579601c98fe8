//! The machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use paguro_dirty::tracker::{MarkTracker, Marks, Tracker, TrackerError, Union};
use paguro_migration::Memory;
use paguro_migration::machine::{Stay, Writer, WriterClass};
use paguro_ram::GuestRam;
use paguro_sys::{Spool, SpoolCounts};
use paguro_wire::device::DeviceSection;
use paguro_workload::layout::PARAMS_GPA;
use paguro_workload::params::PARAMS_BYTES;
use paguro_workload::progress::Progress;
use paguro_workload::{Params, Setup};

use crate::control::{Control, Stages};
use crate::costs::Costs;
use crate::devices::{self, Sections};
use crate::dma::Dma;
use crate::progress::ProgressMemory;
use crate::state::{Ended, Event, RunState, ShutdownCause, StateError};
use crate::threads::{self, ThreadCpus};
use crate::throttle::Throttle;
use crate::{Accel, Config, VmError};

#[cfg(target_arch = "x86_64")]
use crate::kvm::KvmCpus;

/// How long the end of a machine waits for its threads before it leaves them behind.
const END: Duration = Duration::from_secs(1);

/// What is in a machine: nothing yet, not all, all that it needs to run.
const EMPTY: u8 = 0;
const PARTIAL: u8 = 1;
const COMPLETE: u8 = 2;

/// How long the steps of making a machine took. Steps that its kind has not got are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// Opening `/dev/kvm` and making an empty VM.
    pub vm_us: u64,
    /// Giving the VM its memory slots, which grows with the RAM.
    pub memslots_us: u64,
    /// Interrupt controller and timer.
    pub chips_us: u64,
    /// vCPUs and their threads.
    pub vcpus_us: u64,
    /// All of [`Vm::create`].
    pub total_us: u64,
}

/// How far the device `x-dma` is. While the machine runs, a moment's look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaCounters {
    /// Pages filled by `read(2)`, by writer [`DMA`](paguro_workload::area::DMA).
    pub done: u64,
    /// Pages filled by direct reads, by writer
    /// [`DMA_DIRECT`](paguro_workload::area::DMA_DIRECT), if it is there.
    pub direct_done: Option<u64>,
}

enum Cpus {
    #[cfg(target_arch = "x86_64")]
    Kvm(KvmCpus),
    Threads(ThreadCpus),
}

/// A machine. It is made empty and stopped; then it is either booted or loaded, once; then it may
/// run. Dropping it ends it.
///
/// All methods may be called from any thread, but not from a thread that serves its page faults
/// unless they say so: those that wait, wait for vCPUs that may be waiting for a page.
pub struct Vm {
    config: Config,
    control: Arc<Control>,
    cpus: Cpus,
    dma: Option<Dma>,
    marks: Marks,
    throttle: Throttle,
    progress: Arc<ProgressMemory>,
    timings: Timings,
    content: AtomicU8,
    costs: Costs,
    // Last: what runs above may still use it, and be served its pages.
    memory: Arc<Memory>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vm({}, {})", self.config.name, self.run_state().name())
    }
}

impl Vm {
    /// Makes a machine over RAM, which must have the blocks of [`Config::ram_layout`], and keeps
    /// `memory` for as long as it lives.
    ///
    /// Guest RAM is not touched; where a pager serves it, the pager must be up before anything
    /// else is called.
    ///
    /// # Errors
    ///
    /// [`VmError::Config`] and [`VmError::File`] (the caller's), [`VmError::NoKvm`],
    /// [`VmError::Kvm`], [`VmError::Host`].
    pub fn create(config: Config, memory: Arc<Memory>) -> Result<Arc<Self>, VmError> {
        let start = Instant::now();
        let ram = memory.ram();
        config.check(ram)?;
        let control = Arc::new(Control::new());
        let progress = Arc::new(ProgressMemory::new(
            config.progress.as_deref(),
            config.cpus,
        )?);
        let mut timings = Timings::default();
        let cpus = match config.accel {
            #[cfg(target_arch = "x86_64")]
            Accel::Kvm => Cpus::Kvm(KvmCpus::new(
                &config,
                &memory,
                &progress,
                &control,
                &mut timings,
            )?),
            #[cfg(not(target_arch = "x86_64"))]
            Accel::Kvm => {
                return Err(VmError::Config(
                    "this machine needs an x86-64 host for KVM".to_owned(),
                ));
            }
            Accel::Threads => {
                let cpus = Instant::now();
                let threads = ThreadCpus::new(&config, ram, &progress, &control)?;
                timings.vcpus_us = cpus.elapsed().as_micros() as u64;
                Cpus::Threads(threads)
            }
        };
        let marks = Marks::default();
        let waits = !config.memory_retry.is_zero();
        let dma = config
            .dma
            .map(|dma| Dma::new(dma, ram, &marks, &control, waits))
            .transpose()?;
        control.set_stages(Stages {
            vcpus: cpus.holds(),
            devices: dma.iter().flat_map(Dma::gates).collect(),
        });
        timings.total_us = start.elapsed().as_micros() as u64;
        let content = AtomicU8::new(EMPTY);
        let throttle = Throttle::new(cpus.holds());
        Ok(Arc::new(Self {
            throttle,
            costs: Costs::default(),
            config,
            control,
            cpus,
            dma,
            marks,
            progress,
            timings,
            content,
            memory,
        }))
    }

    /// Puts the built-in guest, or the kernel, into RAM (which must be all zero) and the vCPUs at
    /// its start.
    ///
    /// # Errors
    ///
    /// [`VmError::Workload`], [`VmError::Kernel`], [`VmError::File`] (the caller's),
    /// [`VmError::Kvm`], and [`VmError::State`] if it was booted or loaded before.
    pub fn boot(&self) -> Result<(), VmError> {
        self.begin()?;
        match &self.cpus {
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) if self.config.kernel.is_some() => cpus.boot_kernel(&self.config)?,
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) => {
                self.write_workload(cpus.ticks_per_s()?)?;
                cpus.boot_builtin()?;
            }
            Cpus::Threads(_) => self.write_workload(threads::TICKS_PER_S)?,
        }
        self.content.store(COMPLETE, Ordering::Release);
        Ok(())
    }

    fn write_workload(&self, ticks_per_s: u64) -> Result<(), VmError> {
        let blocks = self.guest_ram().blocks().iter();
        let ram: Vec<_> = blocks
            .map(|block| (block.guest_address(), block.used_bytes() as u64))
            .collect();
        let params = Params::new(&Setup {
            spec: self.config.workload,
            vcpus: self.config.cpus.into(),
            ram: &ram,
            ticks_per_s,
            gap_threshold_us: self.config.gap_threshold_us,
            threads: self.config.accel == Accel::Threads,
            dma: self.config.dma.is_some(),
            dma_direct: self.config.dma.is_some_and(|dma| dma.direct),
        })
        .map_err(VmError::Workload)?;
        let image = paguro_guest::image(&params)
            .map_err(|error| VmError::Config(format!("the built-in guest: {error}")))?;
        let Some(low) = self.guest_ram().blocks().first() else {
            return Err(VmError::Config("there is no RAM".to_owned()));
        };
        for piece in image {
            // Pieces lie below 2 MiB, which the first block covers (`ram_layout`).
            low.mapping().copy_in(piece.gpa as usize, &piece.bytes);
        }
        Ok(())
    }

    /// Takes over the devices of a picture, instead of [`Vm::boot`]; RAM is the caller's
    /// business. The engine's own sections (`globalstate`) may be among them and are passed over.
    ///
    /// KVM may touch guest RAM from here on, so it must be there, or a pager must serve it.
    ///
    /// # Errors
    ///
    /// [`VmError::Section`], [`VmError::MissingSection`], [`VmError::UnknownSection`],
    /// [`VmError::OtherMachine`]: the picture is damaged or of another machine.
    /// [`VmError::Kvm`]: this host does not take the state. [`VmError::State`]: the machine was
    /// booted or loaded before. After any of them it cannot run.
    pub fn load_devices(&self, sections: &[DeviceSection]) -> Result<(), VmError> {
        let mut sections = Sections::new(sections, &self.config)?;
        self.begin()?;
        let dma = match &self.dma {
            Some(dma) => Some((dma, sections.take(crate::dma::SECTION, 0)?)),
            None => None,
        };
        match &self.cpus {
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) => cpus.load(&mut sections)?,
            Cpus::Threads(cpus) => cpus.load(&mut sections)?,
        }
        if let Some((dma, section)) = dma {
            dma.load(section)?;
        }
        self.control.set_stopped_state(RunState::Paused);
        self.content.store(COMPLETE, Ordering::Release);
        Ok(())
    }

    fn begin(&self) -> Result<(), StateError> {
        let begun =
            self.content
                .compare_exchange(EMPTY, PARTIAL, Ordering::AcqRel, Ordering::Acquire);
        begun
            .map(drop)
            .map_err(|_| StateError::Load("was booted or loaded already"))
    }

    /// The state of vCPUs and devices, all at rest.
    pub(crate) fn save(&self) -> Result<Vec<DeviceSection>, VmError> {
        let mut sections = vec![devices::save(&self.config)?];
        sections.extend(match &self.cpus {
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) => cpus.save()?,
            Cpus::Threads(cpus) => cpus.save()?,
        });
        if let Some(dma) = &self.dma {
            sections.push(dma.save()?);
        }
        Ok(sections)
    }

    /// Takes that share of the vCPUs' time, in percent.
    pub(crate) fn slow_down(&self, percent: impl Fn(usize) -> u8) {
        self.throttle.set(percent);
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// What its state costs it.
    pub(crate) fn costs(&self) -> &Costs {
        &self.costs
    }

    /// What it is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its RAM and the engine's side of it.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Its RAM.
    pub fn guest_ram(&self) -> &GuestRam {
        self.memory.ram()
    }

    /// How long making it took.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// All who write its RAM.
    pub fn all_writers(&self) -> Vec<Writer> {
        let vcpus = (0..self.config.cpus).map(|index| Writer {
            name: format!("vCPU {index}"),
            class: WriterClass::Seen,
        });
        let devices = self.dma.iter().flat_map(Dma::writers);
        let unseen = self.config.unseen_writer.iter();
        let unseen = unseen.map(|name| Writer {
            name: name.clone(),
            class: WriterClass::Unseen,
        });
        vcpus.chain(devices).chain(unseen).collect()
    }

    /// A tracker of all who write its RAM: KVM's log, or its ring, for the vCPUs and for KVM itself,
    /// or for threads protection that tells nobody or the log of their stage-2 tables, together with
    /// what the device `x-dma` marks.
    /// Booting and loading come before any migration. One tracker can be started at a time.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Slot`].
    pub fn tracker(&self) -> Result<Arc<dyn Tracker>, TrackerError> {
        let vcpus: Arc<dyn Tracker> = match &self.cpus {
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) => cpus.tracker()?,
            Cpus::Threads(cpus) => cpus.tracker(&self.config, &self.memory),
        };
        let marked = MarkTracker::new(self.guest_ram().clone(), self.marks.clone());
        Ok(Arc::new(Union::new(vec![vcpus, Arc::new(marked)])))
    }

    /// How often vCPUs had to empty KVM's rings of written pages because one was full.
    pub fn ring_full_exits(&self) -> u64 {
        match &self.cpus {
            #[cfg(target_arch = "x86_64")]
            Cpus::Kvm(cpus) => cpus.ring_full_exits(),
            Cpus::Threads(_) => 0,
        }
    }

    /// What became of the output of its serial line so far. Any thread, never waits.
    pub fn serial_counts(&self) -> SpoolCounts {
        let spool = self.cpus.serial_spool();
        spool.map(|spool| spool.counts()).unwrap_or_default()
    }

    /// Waits until the output of its serial line so far is written, but not for ever: nobody may be
    /// reading it. Whether it is.
    pub fn flush_serial(&self, at_most: Duration) -> bool {
        let spool = self.cpus.serial_spool();
        spool.is_none_or(|spool| spool.flush(at_most))
    }

    /// Lets it run, for the first time or again. During a held pause this takes effect at its
    /// end.
    ///
    /// # Errors
    ///
    /// [`StateError`]: it has ended, failed, or was neither booted nor loaded.
    pub fn cont(&self) -> Result<(), StateError> {
        if self.content.load(Ordering::Acquire) != COMPLETE {
            return Err(StateError::Load(
                "was neither booted nor loaded, or not wholly",
            ));
        }
        self.control.cont()
    }

    /// The same as [`Vm::cont`].
    ///
    /// # Errors
    ///
    /// As [`Vm::cont`].
    pub fn start(&self) -> Result<(), StateError> {
        self.cont()
    }

    /// Stops it; returns when all vCPUs and devices are at rest. During a held pause it is at
    /// rest already, and stays so.
    ///
    /// # Errors
    ///
    /// [`StateError`]: it has ended or failed.
    pub fn stop(&self) -> Result<(), StateError> {
        self.control.stop()
    }

    /// Its state. Any thread, never waits.
    pub fn run_state(&self) -> RunState {
        self.control.run_state()
    }

    /// Why it was left at rest, until it is told to run again. One that was handed over or whose pages are
    /// lost cannot run or be saved here any more; any other one runs at the word of its operator. Any
    /// thread, never waits.
    pub fn stays(&self) -> Option<Stay> {
        self.control.stays()
    }

    /// Which state to show while it does not run, until it runs again. Any thread, never waits.
    pub fn set_stopped_state(&self, state: RunState) {
        self.control.set_stopped_state(state);
    }

    /// Events from now on. They are sent as things happen and wait for nobody.
    pub fn subscribe(&self) -> Receiver<Event> {
        self.control.subscribe()
    }

    /// Stops it for good because it cannot go on, e.g. because a page of its RAM is lost. The
    /// first reason stays. Any thread, those that serve page faults too; never waits.
    pub fn fail(&self, reason: impl Into<String>) {
        self.control.fail(reason.into());
    }

    /// Stops it because something that it needs cannot be had for now, e.g. a page of its RAM; the next
    /// [`Vm::cont`] lets it try again. The first reason stays until then, and a machine that shall not
    /// run is left as it is. Any thread, those that serve page faults too; never waits.
    pub fn halt(&self, reason: impl Into<String>) {
        self.control.halt(reason.into());
    }

    /// Why it was halted and did not go on since, if that is so.
    pub fn halted(&self) -> Option<String> {
        self.control.halted()
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.control.failure()
    }

    /// Ends it. The first cause stays. Any thread, never waits.
    pub fn quit(&self, cause: ShutdownCause) {
        self.control.shut_down(cause, None);
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<Ended> {
        self.control.ended()
    }

    /// Waits until it has ended.
    pub fn wait_ended(&self) -> Ended {
        self.control.wait_ended()
    }

    /// The workload that RAM says it runs; `None` if there is none (a kernel runs). Reads guest
    /// RAM, so it may wait for a page.
    pub fn params(&self) -> Option<Params> {
        let block = self.guest_ram().blocks().first()?;
        let mut bytes = [0; PARAMS_BYTES];
        block.mapping().copy_out(PARAMS_GPA as usize, &mut bytes);
        Params::from_bytes(&bytes).ok()
    }

    /// What a vCPU of the built-in guest posted of its progress. `None` beyond the last vCPU.
    pub fn progress(&self, vcpu: u32) -> Option<Progress> {
        (vcpu < self.config.cpus).then(|| self.progress.read(vcpu))
    }

    /// How far the device `x-dma` is, if there is one.
    pub fn dma_counters(&self) -> Option<DmaCounters> {
        self.dma.as_ref().map(Dma::counters)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.control
            .shut_down(ShutdownCause::HostError, Some("it was dropped".to_owned()));
        self.cpus.end();
        self.flush_serial(END);
        if let Some(dma) = &self.dma {
            dma.end(END);
        }
    }
}

impl Cpus {
    fn holds(&self) -> Vec<Arc<dyn crate::control::Hold>> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Kvm(cpus) => cpus.gates(),
            Self::Threads(cpus) => cpus.parks(),
        }
    }

    fn serial_spool(&self) -> Option<Arc<Spool>> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Kvm(cpus) => cpus.serial_spool(),
            Self::Threads(_) => None,
        }
    }

    fn end(&self) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Kvm(cpus) => cpus.end(END),
            Self::Threads(cpus) => cpus.end(END),
        }
    }
}
