//! Where things are in the guest-physical memory of the built-in guest, and its ports.
//!
//! ```text
//! 0x000000  nothing
//! 0x001000  workload parameters
//! 0x002000  GDT
//! 0x003000  TSS with the I/O permission bitmap
//! 0x010000  mailboxes, a page a vCPU (64)
//! 0x050000  stacks, a page a vCPU (64)
//! 0x090000  nothing
//! 0x100000  program: code, constants
//! 0x140000  page tables: PML4, PDPT, a page directory a GiB
//! 0x200000  the workload area: all RAM from here
//! 0xd0000000  progress memory, 64 KiB a vCPU: not RAM
//! ```
//!
//! Everything below 2 MiB is fixed and never changes but for mailboxes and stacks.

pub use paguro_workload::layout::{
    AREA_START, HIGH_RAM_GPA, LOW_RAM_END, MAILBOX_GPA, MAX_VCPUS, PAGE_BYTES, PARAMS_GPA,
    PROGRESS_GPA,
};
pub use paguro_workload::progress::PROGRESS_BYTES;

/// The GDT: one page, a few entries of it used.
pub const GDT_GPA: u64 = 0x2000;
/// The TSS, the same for all vCPUs: they never change rings, so none writes it.
pub const TSS_GPA: u64 = 0x3000;
/// Limit of the TSS: the I/O bitmap in it reaches to port 0xcb7.
pub const TSS_LIMIT: u32 = 0x1ff;

/// The stack page of vCPU 0; one page a vCPU follows.
pub const STACKS_GPA: u64 = MAILBOX_GPA + MAX_VCPUS * PAGE_BYTES;
/// Bytes at the top of a stack page that the program never touches.
pub const STACK_GUARD_BYTES: u64 = 64;
/// Bytes below the guard that the program may use. All else in a stack page never changes.
pub const STACK_WINDOW_BYTES: u64 = 3072;

/// Where the program is loaded; it ends before the page tables.
pub const PROGRAM_GPA: u64 = 0x10_0000;

/// The page tables: PML4, PDPT, then a page directory for each GiB mapped.
pub const PML4_GPA: u64 = 0x14_0000;
/// See [`PML4_GPA`].
pub const PDPT_GPA: u64 = PML4_GPA + PAGE_BYTES;
/// The page directory of the first GiB.
pub const DIRECTORIES_GPA: u64 = PDPT_GPA + PAGE_BYTES;

/// The guest writes a u32 of microseconds here: let this vCPU wait so long, or less.
pub const PORT_WAIT: u16 = 0x600;
/// The guest writes a u32 here when it cannot go on: 1 bad parameters, 2 a vCPU too many,
/// 3 a panic.
pub const PORT_PANIC: u16 = 0x604;
/// Serial port, a byte at a time.
pub const PORT_SERIAL: u16 = 0x3f8;
/// i8042 command port.
pub const PORT_I8042: u16 = 0x64;
/// The i8042 command that resets the machine.
pub const I8042_RESET: u8 = 0xfe;

/// The stack page of vCPU `vcpu`.
pub const fn stack_of(vcpu: u64) -> u64 {
    STACKS_GPA + vcpu * PAGE_BYTES
}

const _: () = {
    assert!(stack_of(MAX_VCPUS) <= PROGRAM_GPA);
    let tables = 2 + paguro_workload::params::MAX_MAPPED_GIB;
    assert!(PML4_GPA + tables * PAGE_BYTES <= AREA_START);
    assert!(STACK_GUARD_BYTES + STACK_WINDOW_BYTES < PAGE_BYTES);
};
