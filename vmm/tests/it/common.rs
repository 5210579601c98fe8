//! Machines for tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_migration::Memory;
use paguro_migration::machine::{Machine, Paused};
use paguro_oracle::{DeviceWriter, Report};
use paguro_ram::{GuestRam, RamBlock};
use paguro_stage2::{InitialLog, LogMode, LogOptions, SplitPolicy};
use paguro_sys::{Fallbacks, Host, Userfault};
pub use paguro_testkit::{ends, run, turn};
use paguro_vmm::{Accel, Config, DmaConfig, Stage2Config, Stage2Sabotage, Vm};
use paguro_wire::device::DeviceSection;
use paguro_workload::area::{DMA, DMA_DIRECT};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Long enough that only a test that fails gets there.
pub const IN_VAIN: Duration = Duration::from_secs(60);

/// The accelerators that can be tested here; says so if one is left out.
pub fn accels() -> Vec<Accel> {
    if kvm() {
        vec![Accel::Kvm, Accel::Threads]
    } else {
        vec![Accel::Threads]
    }
}

/// The accelerators whose page faults can be held back here.
pub fn accels_with_faults() -> Vec<Accel> {
    let host = Host::probe(&Fallbacks::default());
    let mut accels = accels();
    accels.retain(|accel| match (host.userfault, accel) {
        (Userfault::Full, _) | (Userfault::UserMode, Accel::Threads) => true,
        _ => {
            println!(
                "skipped with {}: no userfaultfd for its faults",
                accel.name()
            );
            false
        }
    });
    accels
}

/// Whether KVM can be used; says so if not.
pub fn kvm() -> bool {
    let missing = paguro_lab::host::no_kvm();
    if let Some(error) = &missing {
        println!("skipped without KVM: /dev/kvm: {error}");
    }
    missing.is_none()
}

/// A machine in no hurry: waiting for it costs the host little, and a write that was lost does not hide
/// behind the next one to its page.
pub fn config(accel: Accel, cpus: u32) -> Config {
    Config {
        memory_bytes: 16 << 20,
        cpus,
        accel,
        workload: "rate=20000".parse().unwrap(),
        ..Config::default()
    }
}

/// An error with its reasons, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// One whose guest writes as fast as it can.
pub fn hurried(config: Config) -> Config {
    Config {
        workload: "rate=unlimited".parse().unwrap(),
        ..config
    }
}

/// Threads behind stage-2 tables, with each way to log.
pub fn stage2_ways() -> Vec<(&'static str, Config)> {
    let default = LogOptions::default();
    let way = |log| Config {
        stage2: Some(Stage2Config {
            log,
            ..Stage2Config::default()
        }),
        ..config(Accel::Threads, 1)
    };
    vec![
        ("stage 2, lazy", way(default)),
        (
            "stage 2, eager",
            way(LogOptions {
                split: SplitPolicy::Eager,
                ..default
            }),
        ),
        (
            "stage 2, all dirty",
            way(LogOptions {
                initial: InitialLog::AllDirty,
                ..default
            }),
        ),
        (
            "stage 2, hardware",
            way(LogOptions {
                mode: LogMode::Hardware,
                ..default
            }),
        ),
    ]
}

/// Threads behind tables of which something is broken.
pub fn broken_stage2(sabotage: Stage2Sabotage) -> Config {
    Config {
        stage2: Some(Stage2Config {
            log: LogOptions::default(),
            sabotage,
        }),
        ..config(Accel::Threads, 2)
    }
}

pub fn ram(config: &Config) -> GuestRam {
    let blocks = config.ram_layout().unwrap();
    GuestRam::new(
        blocks
            .into_iter()
            .map(|block| RamBlock::new(block).unwrap())
            .collect(),
    )
}

/// The engine's side of such RAM, on this host.
pub fn memory(ram: GuestRam) -> Arc<Memory> {
    memory_on(&Fallbacks::default(), ram)
}

/// On a host that is not to use something.
pub fn memory_on(forced: &Fallbacks, ram: GuestRam) -> Arc<Memory> {
    Memory::new(Host::probe(forced), ram)
}

pub fn create(config: &Config) -> Arc<Vm> {
    Vm::create(config.clone(), memory(ram(config))).unwrap()
}

pub fn start(config: &Config) -> Arc<Vm> {
    start_on(&Fallbacks::default(), config)
}

/// As [`memory_on`].
pub fn start_on(forced: &Fallbacks, config: &Config) -> Arc<Vm> {
    let vm = Vm::create(config.clone(), memory_on(forced, ram(config))).unwrap();
    vm.boot().unwrap();
    vm.start().unwrap();
    vm
}

/// Waits until `done`, for long enough that only a test that fails gets there.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        // Whoever is waited for needs the core.
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Does it in a thread that gets one signal after the other, at least so long apart.
pub fn signalled(pause: Duration, work: impl FnOnce() + Send + 'static) {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let signal = SIGRTMIN() + 7;
    register_signal_handler(signal, nothing).unwrap();
    let working = std::thread::spawn(work);
    while !working.is_finished() {
        working.kill(signal).unwrap();
        std::thread::sleep(pause);
    }
    working.join().unwrap();
}

/// Writes of each vCPU, as the host sees them.
pub fn writes(vm: &Vm) -> Vec<u64> {
    (0..vm.config().cpus)
        .map(|vcpu| vm.progress(vcpu).unwrap().writes)
        .collect()
}

/// Waits until each vCPU (and each writer of the device) has made `count` more writes.
#[track_caller]
pub fn wait_writes(vm: &Vm, count: u64) {
    assert_eq!(more_writes(vm, count), Ok(()));
}

/// The same of a machine that may fail: why it did.
#[track_caller]
pub fn more_writes(vm: &Vm, count: u64) -> Result<(), String> {
    let before = writes(vm);
    let filled = fills(vm);
    wait_unless_failed(vm, "the guest writes", || {
        let more = |(now, before): (u64, &u64)| now >= before + count;
        writes(vm).into_iter().zip(&before).all(more)
            && fills(vm).into_iter().zip(&filled).all(more)
    })
}

/// Waits as [`wait_until`]; a machine that failed is waited for no longer.
#[track_caller]
pub fn wait_unless_failed(
    vm: &Vm,
    what: &str,
    mut done: impl FnMut() -> bool,
) -> Result<(), String> {
    let mut failure = None;
    wait_until(what, || {
        failure = vm.failure();
        failure.is_some() || done()
    });
    failure.map_or(Ok(()), Err)
}

fn fills(vm: &Vm) -> Vec<u64> {
    let counters = vm.dma_counters();
    counters.map_or(Vec::new(), |dma| {
        [Some(dma.done), dma.direct_done]
            .into_iter()
            .flatten()
            .collect()
    })
}

/// A picture taken by hand: RAM and devices of one pause.
pub struct Picture {
    pub ram: Vec<(u64, Vec<u8>)>,
    pub devices: Vec<DeviceSection>,
    pub writers: Vec<DeviceWriter>,
    segments: Vec<(u64, u64)>,
}

pub fn take(vm: &Vm) -> Picture {
    let mut paused = vm.pause().unwrap();
    take_paused(vm, &mut *paused)
}

pub fn take_paused(vm: &Vm, paused: &mut dyn Paused) -> Picture {
    let devices = paused.save_devices().unwrap();
    let mut ram = Vec::new();
    for block in vm.guest_ram().blocks() {
        let mut bytes = vec![0; block.used_bytes()];
        block.mapping().copy_out(0, &mut bytes);
        ram.push((block.guest_address(), bytes));
    }
    let mut writers = Vec::new();
    if let Some(dma) = vm.dma_counters() {
        writers.push(DeviceWriter {
            writer: DMA,
            done: dma.done,
        });
        writers.extend(dma.direct_done.map(|done| DeviceWriter {
            writer: DMA_DIRECT,
            done,
        }));
    }
    let segments = ram
        .iter()
        .map(|(gpa, bytes)| (*gpa, bytes.len() as u64))
        .collect();
    Picture {
        ram,
        devices,
        writers,
        segments,
    }
}

impl paguro_oracle::Memory for Picture {
    fn ram(&self) -> &[(u64, u64)] {
        &self.segments
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let inside = |(start, bytes): &&(u64, Vec<u8>)| {
            *start <= gpa && gpa + buffer.len() as u64 <= start + bytes.len() as u64
        };
        let (start, bytes) = self
            .ram
            .iter()
            .find(inside)
            .ok_or(std::io::ErrorKind::NotFound)?;
        let at = (gpa - start) as usize;
        buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
        Ok(())
    }
}

impl Picture {
    pub fn check(&self) -> Report {
        paguro_oracle::check(self, &self.writers).unwrap()
    }

    #[track_caller]
    pub fn assert_right(&self) -> Report {
        let report = self.check();
        assert!(report.is_right(), "{report:#?}");
        report
    }

    /// A machine on a copy of this picture's RAM, its devices not loaded.
    pub fn copy_ram(&self, config: &Config) -> Arc<Vm> {
        let ram = ram(config);
        for (block, (_, bytes)) in ram.blocks().iter().zip(&self.ram) {
            block.mapping().copy_in(0, bytes);
        }
        Vm::create(config.clone(), memory(ram)).unwrap()
    }
}

pub fn with_dma(config: Config, direct: bool) -> Config {
    Config {
        dma: Some(DmaConfig {
            rate_pages_per_s: 0,
            direct,
        }),
        ..config
    }
}
