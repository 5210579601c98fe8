//! Where vCPUs start.
//!
//! The built-in guest needs no code in ring 0: `KVM_SET_SREGS` puts every vCPU into 64-bit mode in
//! ring 3 at once, with its tables in RAM already. A kernel is entered as PVH says: in 32-bit
//! protected mode without paging, `ebx` pointing to what it wants to know.

use std::fs::File;
use std::path::Path;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Cmdline, KernelLoader, load_cmdline};
use paguro_guest::EntryState;
use paguro_ram::GuestRam;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::refused;
use crate::VmError;

const START_INFO_GPA: u64 = 0x6000;
const MEMORY_MAP_GPA: u64 = 0x7000;
const CMDLINE_GPA: u64 = 0x2_0000;
const CMDLINE_MAX_BYTES: usize = 0x1_0000;
/// Below is what a PC keeps for itself, and the boot data.
const LOW_RAM_END_GPA: u64 = 0xa_0000;
const KERNEL_GPA: u64 = 0x10_0000;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const MEMORY_MAP_RAM: u32 = 1;

/// Puts a vCPU at the start of the built-in guest.
pub(super) fn builtin(fd: &VcpuFd, index: u64) -> Result<(), VmError> {
    let entry = EntryState::of_vcpu(index);
    let regs = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rdi: entry.rdi,
        rsi: entry.rsi,
        rflags: entry.rflags,
        ..Default::default()
    };
    let mut sregs = fd
        .get_sregs()
        .map_err(refused("give a vCPU's system registers"))?;
    sregs.cs = segment(&entry.cs);
    for data in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *data = segment(&entry.data);
    }
    sregs.tr = segment(&entry.tr);
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable {
        base: entry.gdt.base,
        limit: entry.gdt.limit,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = entry.cr0;
    sregs.cr3 = entry.cr3;
    sregs.cr4 = entry.cr4;
    sregs.efer = entry.efer;
    fd.set_sregs(&sregs)
        .map_err(refused("start a vCPU in ring 3"))?;
    fd.set_regs(&regs)
        .map_err(refused("take a vCPU's registers"))?;
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    fd.set_mp_state(runnable).map_err(refused("wake a vCPU"))
}

fn segment(from: &paguro_guest::Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.type_,
        present: from.present,
        dpl: from.dpl,
        db: from.db,
        s: from.s,
        l: from.l,
        g: from.g,
        ..Default::default()
    }
}

/// Loads an ELF kernel with a PVH entry and its command line, and puts a vCPU at the entry.
pub(super) fn pvh(fd: &VcpuFd, ram: &GuestRam, path: &Path, cmdline: &str) -> Result<(), VmError> {
    let wrong = |why: String| VmError::Kernel {
        path: path.to_owned(),
        why,
    };
    let mut image = File::open(path).map_err(|source| VmError::File {
        doing: "open the kernel",
        path: path.to_owned(),
        source,
    })?;
    let memory = view(ram)?;
    let lowest = Some(GuestAddress(KERNEL_GPA));
    let loaded =
        Elf::load(&memory, None, &mut image, lowest).map_err(|error| wrong(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(wrong(
            "it is an ELF file without a PVH entry (PHYS32_ENTRY note)".to_owned(),
        ));
    };
    let mut line = Cmdline::new(CMDLINE_MAX_BYTES).map_err(|error| wrong(error.to_string()))?;
    line.insert_str(cmdline)
        .map_err(|error| wrong(format!("command line: {error}")))?;
    load_cmdline(&memory, GuestAddress(CMDLINE_GPA), &line)
        .map_err(|error| wrong(error.to_string()))?;
    write_start_info(&memory, ram).map_err(wrong)?;
    enter_pvh(fd, entry.0)
}

fn write_start_info(memory: &GuestMemoryMmap<()>, ram: &GuestRam) -> Result<(), String> {
    let mut map = Vec::new();
    for block in ram.blocks() {
        let (addr, size) = (block.guest_address(), block.used_bytes() as u64);
        if addr == 0 {
            map.push((0, LOW_RAM_END_GPA));
            map.push((KERNEL_GPA, size - KERNEL_GPA));
        } else {
            map.push((addr, size));
        }
    }
    let map: Vec<_> = map
        .into_iter()
        .map(|(addr, size)| hvm_memmap_table_entry {
            addr,
            size,
            type_: MEMORY_MAP_RAM,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE_GPA,
        memmap_paddr: MEMORY_MAP_GPA,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO_GPA));
    params.set_sections(&map, GuestAddress(MEMORY_MAP_GPA));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|error| error.to_string())
}

fn enter_pvh(fd: &VcpuFd, entry: u64) -> Result<(), VmError> {
    let mut sregs = fd
        .get_sregs()
        .map_err(refused("give a vCPU's system registers"))?;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(8, 0xb);
    for data in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *data = flat(16, 3);
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 24,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    // Protected mode, no paging; the bit beside it is fixed.
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
    fd.set_sregs(&sregs)
        .map_err(refused("start a vCPU in protected mode"))?;
    let regs = kvm_regs {
        rip: entry,
        rbx: START_INFO_GPA,
        rflags: 2,
        ..Default::default()
    };
    fd.set_regs(&regs)
        .map_err(refused("take a vCPU's registers"))
}

/// The guest's RAM as linux-loader wants it.
fn view(ram: &GuestRam) -> Result<GuestMemoryMmap<()>, VmError> {
    let bug = |error: &dyn std::fmt::Display| {
        VmError::host("show guest RAM to the loader")(std::io::Error::other(error.to_string()))
    };
    let mut regions = Vec::new();
    for block in ram.blocks() {
        let builder = MmapRegionBuilder::new_with_bitmap(block.used_bytes(), ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: the pointer is that of the block's mapping, of at least `used_bytes`; the view
        // lives shorter than `ram`, and does not unmap what it did not map.
        let builder = unsafe { builder.with_raw_mmap_pointer(block.mapping().as_ptr()) };
        let region = builder.build().map_err(|error| bug(&error))?;
        let region = GuestRegionMmap::new(region, GuestAddress(block.guest_address()))
            .ok_or_else(|| bug(&"a block beyond the address space"))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| bug(&error))
}
