//! A slot may begin inside a block: its pages are numbered from where it begins, and found in the block.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use paguro_dirty::tracker::{KvmLog, KvmRing, KvmRings, Tracker};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::kvm::{DirtyRing, DirtySlots, RingCap, Slot};
use paguro_sys::{Fallbacks, Mapping};

use super::destination::{PAGE, sets};
use crate::common::*;

/// Entries of a ring.
const ENTRIES: u32 = 4096;
/// Pages of the block in front of the slot.
const BEFORE: usize = 128;
/// Of 16 bits: writes a byte to page 5 of the slot, and halts.
const PROGRAM: [u8; 6] = [0xc6, 0x06, 0x00, 0x50, 0x07, 0xf4];

#[test]
fn a_page_of_a_slot_that_begins_inside_a_block_is_found_in_the_block() {
    if !kvm() {
        return;
    }
    let block = RamBlock::new(BlockConfig {
        id: "ram".into(),
        guest_address: 0,
        bytes: 256 * PAGE,
        backing: Backing::Anonymous,
        pages: PageKind::Small,
    });
    let ram = GuestRam::new(vec![block.unwrap()]);
    ram.blocks()[0].mapping().copy_in(BEFORE * PAGE, &PROGRAM);
    for has_ring in [false, true] {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        let slots = slots(&vm, &ram.blocks()[0]);
        let ring = RingCap::of(borrowed(&vm), &Fallbacks::default());
        let (tracker, mut vcpu): (Arc<dyn Tracker>, _) = match (has_ring, ring) {
            (false, _) => {
                let tracker = KvmLog::new(ram.clone(), slots).unwrap();
                (Arc::new(tracker), vm.create_vcpu(0).unwrap())
            }
            (true, Some(ring)) => {
                ring.enable(borrowed(&vm), ENTRIES).unwrap();
                let vcpu = vm.create_vcpu(0).unwrap();
                let rings = Arc::new(KvmRings::new(&ram, slots).unwrap());
                rings.add(DirtyRing::map(borrowed(&vcpu), ENTRIES).unwrap());
                (Arc::new(KvmRing::new(ram.clone(), rings)), vcpu)
            }
            (true, None) => return println!("skipped: KVM has no rings here"),
        };
        let dirty = sets(&ram);
        tracker.start().unwrap();
        // All may begin as written.
        tracker.sync(&dirty).unwrap();
        tracker.clear(0, BEFORE..256).unwrap();
        dirty[0].remove_range(0..256);
        run(&mut vcpu, 0, 0);
        tracker.sync(&dirty).unwrap();
        tracker.stop();
        let mut written = Vec::new();
        dirty[0].runs(0..256, |run| written.extend(run));
        assert_eq!(written, [BEFORE + 5], "with a ring: {has_ring}");
    }
}

/// One slot, all of a block but what is in front of it.
fn slots(vm: &VmFd, block: &RamBlock) -> Arc<DirtySlots> {
    let bytes = block.used_bytes() - BEFORE * PAGE;
    let address = block.mapping().as_ptr().wrapping_add(BEFORE * PAGE);
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes as u64,
        userspace_addr: address as u64,
    };
    // SAFETY: the block outlives the VM, and is accessed raw only.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    // SAFETY: a part of the block, which it keeps mapped; accessed raw only.
    let part =
        unsafe { Mapping::foreign(address as usize, bytes, block.mapping().clone()) }.unwrap();
    let slot = Slot {
        number: 0,
        guest_address: 0,
        mapping: Arc::new(part),
        bytes,
    };
    // SAFETY: the VM is open, and the slot was made above.
    let slots = unsafe { DirtySlots::new(borrowed(vm), vec![slot], &Fallbacks::default()) };
    Arc::new(slots.unwrap())
}

/// From address 0 on, until it halts, with its data from there on, and a number in bx.
pub(super) fn run(vcpu: &mut VcpuFd, data: u64, bx: u16) {
    let mut sregs = vcpu.get_sregs().unwrap();
    for (segment, base) in [(&mut sregs.cs, 0), (&mut sregs.ds, data)] {
        (segment.base, segment.selector) = (base, 0);
    }
    vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_bindings::kvm_regs {
        rip: 0,
        rbx: bx.into(),
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).unwrap();
    let exit = vcpu.run().unwrap();
    assert!(matches!(exit, VcpuExit::Hlt), "{exit:?}");
}

pub(super) fn borrowed(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
