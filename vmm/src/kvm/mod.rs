//! vCPUs through `/dev/kvm`.
//!
//! Memory regions are created before the interrupt controller, and vCPUs last: with the
//! interrupt controller first, the first region costs 5-11 ms instead of 0.15-2 ms (it waits for
//! a grace period that the earlier step started), which is more than all the rest of a restore.
//! The costs are reported apart ([`crate::Timings`]).
//!
//! | part | is |
//! |---|---|
//! | [`vcpu`] | the thread of a vCPU: entering the guest, exits, leaving it at a kick |
//! | [`bus`] | what is at which I/O port |
//! | [`cpu_state`] | a vCPU's state, taken from KVM and given to it |
//! | [`cpu_section`] | the same as a device section |
//! | [`memory`] | memory slots, and how KVM tells of writes to them |
//! | [`chips`] | interrupt controllers, timer and clock as device sections |
//! | [`boot`] | the built-in guest, or a PVH kernel |

mod boot;
mod bus;
mod chips;
mod cpu_section;
mod cpu_state;
mod memory;
mod vcpu;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use paguro_dirty::tracker::{Tracker, TrackerError};
use paguro_migration::Memory;
use paguro_ram::{Backing, GuestRam, RamBlock};
use paguro_sys::Spool;
use paguro_wire::device::DeviceSection;
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use crate::control::{Control, Hold};
use crate::devices::Sections;
use crate::gate::Gate;
use crate::progress::ProgressMemory;
use crate::vm::Timings;
use crate::{Clock, Config, VmError, serial};

/// All vCPUs and what KVM emulates around them.
pub(crate) struct KvmCpus {
    vm: Arc<VmFd>,
    vcpus: Vec<Vcpu>,
    bus: Arc<bus::Bus>,
    msr_indices: Vec<u32>,
    xsave_bytes: usize,
    has_nested: bool,
    clock: Clock,
    ram: GuestRam,
    tracking: memory::Tracking,
}

struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    cpuid: Mutex<CpuId>,
    gate: Arc<Gate>,
    /// Whether the guest's kvmclock, if it has one, is to be told of a pause.
    paused: Arc<AtomicBool>,
}

/// Making a VM takes some milliseconds and gives up for any signal, a profiler's for one.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    const TRIES: usize = 20;
    let mut made = kvm.create_vm();
    for _ in 1..TRIES {
        match made {
            Err(error) if error.errno() == libc::EINTR => made = kvm.create_vm(),
            _ => break,
        }
    }
    made
}

impl KvmCpus {
    /// Makes the VM over this memory, with its vCPU threads waiting at their gates.
    pub(crate) fn new(
        config: &Config,
        memory: &Memory,
        progress: &Arc<ProgressMemory>,
        control: &Arc<Control>,
        timings: &mut Timings,
    ) -> Result<Self, VmError> {
        let start = Instant::now();
        let kvm = Kvm::new().map_err(|error| VmError::NoKvm(error.into()))?;
        let vm = create_vm(&kvm).map_err(refused("make a VM"))?;
        timings.vm_us = us_since(start);

        let start = Instant::now();
        let ram = memory.ram();
        memory::add(&vm, ram, progress.mapping())?;
        let tracking = memory::Tracking::new(config, &vm, memory)?;
        timings.memslots_us = us_since(start);

        let start = Instant::now();
        // Only old VMX processors use it, and only they can refuse.
        let _ = vm.set_tss_address(0xfffb_d000);
        vm.create_irq_chip()
            .map_err(refused("make an interrupt controller"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(refused("make a timer"))?;
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(VmError::host("make an eventfd"))?;
        vm.register_irqfd(&line, serial::IRQ)
            .map_err(refused("listen to an interrupt line"))?;
        timings.chips_us = us_since(start);

        let start = Instant::now();
        let uart =
            vm_superio::Serial::new(serial::Line(line), serial::Output::open(&config.serial)?);
        let bus = Arc::new(bus::Bus::new(uart));
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("say what its CPUs can do"))?;
        let vm = Arc::new(vm);
        vcpu::install_kick();
        let mut cpus = Self {
            msr_indices: cpu_state::msr_indices(&kvm)?,
            xsave_bytes: usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
            has_nested: vm.check_extension_int(Cap::NestedState) > 0,
            clock: config.clock,
            vm,
            vcpus: Vec::new(),
            bus,
            ram: ram.clone(),
            tracking,
        };
        // Memory of any other kind that cannot be reached is gone for good.
        let mapped = |block: &Arc<RamBlock>| block.backing() == Backing::PrivateFile;
        let memory_retry = if cpus.ram.blocks().iter().any(mapped) {
            config.memory_retry
        } else {
            Duration::ZERO
        };
        for index in 0..config.cpus {
            cpus.add_vcpu(index, &cpuid, progress, control, memory_retry)?;
        }
        for pair in cpus.vcpus.windows(2) {
            pair[0].gate.chain(pair[1].gate.clone());
        }
        timings.vcpus_us = us_since(start);
        Ok(cpus)
    }

    fn add_vcpu(
        &mut self,
        index: u32,
        cpuid: &CpuId,
        progress: &Arc<ProgressMemory>,
        control: &Arc<Control>,
        memory_retry: Duration,
    ) -> Result<(), VmError> {
        let fd = self
            .vm
            .create_vcpu(index.into())
            .map_err(refused("make a vCPU"))?;
        self.tracking.add_vcpu(&fd)?;
        let cpuid = cpu_state::cpuid_of(cpuid, index)?;
        fd.set_cpuid2(&cpuid)
            .map_err(refused("accept the CPU's features"))?;
        let vcpu = Vcpu {
            fd: Arc::new(Mutex::new(fd)),
            cpuid: Mutex::new(cpuid),
            gate: Arc::new(Gate::with_signal(vcpu::kick_signal())),
            paused: Arc::default(),
        };
        let thread = vcpu::Thread {
            index,
            fd: vcpu.fd.clone(),
            gate: vcpu.gate.clone(),
            paused: vcpu.paused.clone(),
            bus: self.bus.clone(),
            control: control.clone(),
            rings: self.tracking.rings().cloned(),
            memory_retry,
            _vm: self.vm.clone(),
            _ram: self.ram.clone(),
            _progress: progress.clone(),
        };
        self.vcpus.push(vcpu);
        thread
            .spawn()
            .map_err(VmError::host("start a vCPU's thread"))
    }

    /// Ticks a second of the TSC as the guest sees it.
    pub(crate) fn ticks_per_s(&self) -> Result<u64, VmError> {
        let khz = self
            .lock(0)
            .get_tsc_khz()
            .map_err(refused("say how fast its TSC is"))?;
        Ok(u64::from(khz) * 1000)
    }

    pub(crate) fn gates(&self) -> Vec<Arc<dyn Hold>> {
        self.vcpus
            .iter()
            .map(|vcpu| vcpu.gate.clone() as Arc<dyn Hold>)
            .collect()
    }

    /// A tracker of the vCPUs' writes, and KVM's.
    pub(crate) fn tracker(&self) -> Result<Arc<dyn Tracker>, TrackerError> {
        self.tracking.tracker(&self.ram)
    }

    /// The way out of the serial line, if it has one.
    pub(crate) fn serial_spool(&self) -> Option<Arc<Spool>> {
        self.bus.serial_spool()
    }

    /// How often vCPUs waited for room in a ring of written pages.
    pub(crate) fn ring_full_exits(&self) -> u64 {
        self.tracking.rings().map_or(0, |rings| rings.full_exits())
    }

    /// Puts the built-in guest, whose RAM is in place, at its start.
    pub(crate) fn boot_builtin(&self) -> Result<(), VmError> {
        for index in 0..self.vcpus.len() {
            boot::builtin(&self.lock(index), index as u64)?;
        }
        Ok(())
    }

    /// Loads a PVH kernel and puts the first vCPU at its entry; the others wait to be woken.
    pub(crate) fn boot_kernel(&self, config: &Config) -> Result<(), VmError> {
        let Some(path) = &config.kernel else {
            return Ok(());
        };
        boot::pvh(&self.lock(0), &self.ram, path, &config.cmdline)
    }

    /// The state of all, which are at rest.
    pub(crate) fn save(&self) -> Result<Vec<DeviceSection>, VmError> {
        let mut sections = Vec::new();
        for index in 0..self.vcpus.len() {
            self.vcpus[index].paused.store(true, Ordering::Release);
            sections.push(self.save_vcpu(index)?);
        }
        sections.push(chips::save_irqchip(&self.vm)?);
        sections.push(chips::save_clock(&self.vm)?);
        sections.push(serial::save(&self.bus.serial())?);
        Ok(sections)
    }

    /// Takes over a state. What lets KVM write to guest RAM by itself comes last of all.
    pub(crate) fn load(&self, sections: &mut Sections<'_>) -> Result<(), VmError> {
        let mut states = Vec::new();
        for index in 0..self.vcpus.len() {
            states.push(cpu_section::read(
                sections.take(cpu_section::SECTION, index as u32)?,
            )?);
        }
        let irqchip = chips::read_irqchip(sections.take(chips::IRQCHIP, 0)?)?;
        let clock = chips::read_clock(sections.take(chips::CLOCK, 0)?)?;
        clock.check(self.clock)?;
        let uart = serial::load(sections.take(serial::SECTION, 0)?)?;
        for (index, state) in states.iter().enumerate() {
            self.load_vcpu(index, state)?;
        }
        chips::load_irqchip(&self.vm, &irqchip)?;
        chips::load_clock(&self.vm, clock, self.clock)?;
        self.bus.load_serial(&uart)?;
        for (index, state) in states.iter().enumerate() {
            cpu_state::load_late_msrs(&self.lock(index), index, state)?;
        }
        Ok(())
    }

    /// Ends all threads; one that a page fault holds is left behind.
    pub(crate) fn end(&self, most: Duration) {
        let deadline = Instant::now() + most;
        self.vcpus.iter().for_each(|vcpu| vcpu.gate.end());
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            if !vcpu.gate.wait_gone(deadline) {
                tracing::warn!(
                    vcpu = index,
                    "a vCPU does not end; its thread is left behind"
                );
            }
        }
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, VcpuFd> {
        self.vcpus[index].fd.lock()
    }
}

impl Drop for KvmCpus {
    fn drop(&mut self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.gate.end());
    }
}

/// An error of KVM's, named by what it was asked to do.
fn refused(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |error| VmError::Kvm {
        doing,
        source: io::Error::from(error),
    }
}

fn us_since(start: Instant) -> u64 {
    start.elapsed().as_micros() as u64
}
