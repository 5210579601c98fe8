//! Memory slots, and what KVM tells of writes to them.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use paguro_dirty::tracker::{KvmLog, KvmRing, KvmRings, Tracker, TrackerError};
use paguro_migration::Memory;
use paguro_ram::GuestRam;
use paguro_sys::kvm::{DirtyRing, DirtySlots, RingCap, Slot};
use paguro_sys::{Fallbacks, Mapping};
use paguro_workload::layout::PROGRESS_GPA;

use super::refused;
use crate::{Config, VmError};

/// A slot for each RAM block, with its number, and one more for the progress memory, which is not
/// RAM.
pub(super) fn add(vm: &VmFd, ram: &GuestRam, progress: &Mapping) -> Result<(), VmError> {
    let blocks = ram.blocks().iter().map(|block| {
        (
            block.guest_address(),
            block.mapping().addr(),
            block.used_bytes(),
        )
    });
    let progress = (PROGRESS_GPA, progress.addr(), progress.len());
    for (slot, (guest_phys_addr, address, bytes)) in blocks.chain([progress]).enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr,
            memory_size: bytes as u64,
            userspace_addr: address as u64,
        };
        // SAFETY: the range is a mapping that every vCPU thread keeps alive (`vcpu::Thread`), so
        // it is there as long as anything can run in this VM; nobody holds references into it.
        unsafe { vm.set_user_memory_region(region) }.map_err(refused("take guest memory"))?;
    }
    Ok(())
}

/// How KVM tells which pages were written: chosen before the first vCPU is made.
pub(super) enum Tracking {
    Log(Arc<DirtySlots>),
    Ring { rings: Arc<KvmRings>, entries: u32 },
}

impl Tracking {
    /// For a VM that has its memory, and no vCPU yet.
    pub(super) fn new(config: &Config, vm: &VmFd, memory: &Memory) -> Result<Self, VmError> {
        let (fd, ram, forced) = (borrowed(vm), memory.ram(), memory.host().forced);
        let slots = ram.blocks().iter().enumerate().map(|(number, block)| Slot {
            number: number as u32,
            guest_address: block.guest_address(),
            mapping: block.mapping().clone(),
            bytes: block.used_bytes(),
        });
        // SAFETY: these are the slots that `add` made a moment ago, and none is changed or taken
        // away while the VM lives.
        let slots = unsafe { DirtySlots::new(fd, slots.collect(), &forced) };
        let slots = Arc::new(slots.map_err(VmError::host("keep the descriptor of a VM"))?);
        let Some(entries) = config.dirty_ring_entries else {
            return Ok(Self::Log(slots));
        };
        enable_ring(fd, entries, &forced)?;
        let rings = KvmRings::new(ram, slots).map_err(unusable)?;
        Ok(Self::Ring {
            rings: Arc::new(rings),
            entries,
        })
    }

    /// Takes the ring of a vCPU that was just made, and which are numbered in that order.
    pub(super) fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), VmError> {
        if let Self::Ring { rings, entries } = self {
            // SAFETY: the vCPU's descriptor is open as long as `vcpu` is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
            let ring = DirtyRing::map(fd, *entries);
            rings.add(ring.map_err(VmError::host("map a vCPU's ring of written pages"))?);
        }
        Ok(())
    }

    /// The rings, if that is how.
    pub(super) fn rings(&self) -> Option<&Arc<KvmRings>> {
        match self {
            Self::Log(_) => None,
            Self::Ring { rings, .. } => Some(rings),
        }
    }

    pub(super) fn tracker(&self, ram: &GuestRam) -> Result<Arc<dyn Tracker>, TrackerError> {
        Ok(match self {
            Self::Log(slots) => Arc::new(KvmLog::new(ram.clone(), slots.clone())?),
            Self::Ring { rings, .. } => Arc::new(KvmRing::new(ram.clone(), rings.clone())),
        })
    }
}

fn enable_ring(vm: BorrowedFd<'_>, entries: u32, forced: &Fallbacks) -> Result<(), VmError> {
    let cap = RingCap::of(vm, forced).ok_or_else(|| VmError::Kvm {
        doing: "keep rings of written pages",
        source: std::io::ErrorKind::Unsupported.into(),
    })?;
    if entries > cap.max_entries {
        return Err(VmError::Config(format!(
            "a dirty ring of {entries} entries; this host's KVM has at most {}",
            cap.max_entries
        )));
    }
    cap.enable(vm, entries).map_err(|source| VmError::Kvm {
        doing: "keep rings of written pages of that size (too small, perhaps)",
        source,
    })
}

fn unusable(error: TrackerError) -> VmError {
    VmError::host("track writes to guest RAM")(std::io::Error::other(error))
}

fn borrowed(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `vm` is borrowed.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}
