//! Pages that come late, or never.

use std::sync::Arc;

use paguro_migration::machine::Machine;
use paguro_ram::{GuestRam, RamBlock};
use paguro_sys::{Event, Fallbacks, Features, Host, RegisterMode, Uffd, Userfault};
use paguro_vmm::{Accel, Config, RunState, Vm};

use crate::common::*;

/// Guest RAM above 2 MiB whose pages come when the test lets them.
struct Held {
    uffd: Uffd,
    block: Arc<RamBlock>,
}

impl Held {
    fn new(ram: &GuestRam) -> Self {
        let host = Host::probe(&Fallbacks::default());
        Self::of_mode(ram, host.userfault == Userfault::UserMode)
    }

    fn of_mode(ram: &GuestRam, user_mode_only: bool) -> Self {
        let uffd = Uffd::open(Features::empty(), user_mode_only).unwrap();
        let block = ram.blocks()[0].clone();
        uffd.register(Self::range(&block), RegisterMode::Missing)
            .unwrap();
        Self { uffd, block }
    }

    fn range(block: &RamBlock) -> std::ops::Range<usize> {
        block
            .mapping()
            .range(2 << 20, block.used_bytes() - (2 << 20))
    }

    /// Waits until so many threads wait for pages.
    fn wait_faults(&self, count: usize) {
        let mut seen = 0;
        wait_until("threads wait for pages", || {
            let mut events = [Event::Other(0); 16];
            seen += self.uffd.read(&mut events).unwrap();
            seen >= count
        });
    }

    fn release(&self) {
        self.uffd.unregister(Self::range(&self.block)).unwrap();
        // Unregistering wakes those that wait already. One that is on its way to wait at that
        // moment would miss it.
        self.uffd.wake(Self::range(&self.block)).unwrap();
    }
}

#[test]
fn a_vcpu_that_waits_for_a_page_can_be_paused() {
    let _turn = turn();
    for accel in accels_with_faults() {
        let config = config(accel, 2);
        let ram = ram(&config);
        let held = Held::new(&ram);
        let vm = Vm::create(config, memory(ram)).unwrap();
        vm.boot().unwrap();
        vm.start().unwrap();
        held.wait_faults(2);
        for _ in 0..20 {
            let mut paused = vm.pause().unwrap();
            paused.save_devices().unwrap();
            drop(paused);
        }
        vm.stop().unwrap();
        assert_eq!(writes(&vm), [0, 0]);
        vm.cont().unwrap();
        held.release();
        wait_writes(&vm, 1000);
        take(&vm).assert_right();
    }
}

#[test]
fn a_machine_can_end_while_its_vcpus_wait_for_pages() {
    let _turn = turn();
    for accel in accels_with_faults() {
        let config = config(accel, 2);
        let ram = ram(&config);
        let held = Held::new(&ram);
        let vm = Vm::create(config, memory(ram)).unwrap();
        vm.boot().unwrap();
        vm.start().unwrap();
        held.wait_faults(2);
        vm.fail("the pages will never come");
        assert_eq!(vm.run_state(), RunState::InternalError);
        drop(vm);
        // Whoever could not be ended has kept RAM, and ends when it can.
        held.release();
        wait_until("all threads are gone", || {
            Arc::strong_count(&held.block) == 1
        });
    }
}

#[test]
fn ram_that_cannot_be_read_is_a_failure_and_no_end() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let config = config(Accel::Kvm, 1);
    let file = rustix::fs::memfd_create("picture", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, config.memory_bytes).unwrap();
    let bytes = config.memory_bytes as usize;
    let file = std::os::fd::AsFd::as_fd(&file);
    let block = RamBlock::of_file("paguro.ram", 0, file, 0, bytes).unwrap();
    rustix::fs::ftruncate(file, 4 << 20).unwrap();
    let vm = Vm::create(Config { ..config }, memory(GuestRam::new(vec![block]))).unwrap();
    vm.boot().unwrap();
    vm.start().unwrap();
    wait_until("the guest meets a page that is not there", || {
        vm.failure().is_some()
    });
    let why = vm.failure().unwrap();
    assert!(
        why.contains("vCPU 0") && why.contains("cannot be reached"),
        "{why}"
    );
    assert_eq!(vm.run_state(), RunState::InternalError);
    assert_eq!(vm.ended(), None);
    vm.stop().unwrap_err();
}

#[test]
fn a_device_fills_pages_though_the_kernel_may_not_wait_for_them() {
    let _turn = turn();
    if Host::probe(&Fallbacks::default()).userfault == Userfault::None {
        return println!("skipped: no userfaultfd");
    }
    let config = with_dma(config(Accel::Threads, 1), true);
    let ram = ram(&config);
    let held = Held::of_mode(&ram, true);
    let vm = Vm::create(config, memory(ram)).unwrap();
    vm.boot().unwrap();
    vm.start().unwrap();
    // The vCPU, the reader, and direct readers: each waits in a copy of its own.
    held.wait_faults(3);
    held.release();
    wait_writes(&vm, 100);
    take(&vm).assert_right();
}
