//! A guest CPU: its registers, the list of accesses that it makes, and the loop that serves its faults.

use crate::Vm;
use core::arch::asm;
use core::cell::UnsafeCell;
use paguro_stage2::el2::read_syndrome;
use paguro_stage2::{Cpu, FaultKind, Resolution, Syndrome, TableCache};

use crate::boot::CORES;
use crate::memory::PoolMemory;

/// The order is known to the assembly.
#[repr(C)]
struct Registers {
    x: [u64; 5],
    elr: u64,
    spsr: u64,
}

unsafe extern "C" {
    fn enter_guest(registers: *mut Registers);
    static guest_entry: u8;
}

pub const LIST_MAX: usize = 4096;

/// What the guest of one core does next; it reads this through a read-only mapping.
pub struct List(UnsafeCell<[[u64; 2]; LIST_MAX + 1]>, UnsafeCell<usize>);

// SAFETY: each core touches its own list only, and not while its guest runs.
unsafe impl Sync for List {}

static LISTS: [List; CORES] =
    [const { List(UnsafeCell::new([[0; 2]; LIST_MAX + 1]), UnsafeCell::new(0)) }; CORES];

pub struct Vcpu<'v, C: Cpu> {
    vm: &'v Vm<C>,
    core: usize,
    cache: TableCache<'v, PoolMemory>,
    pub faults: u64,
    pub pages_logged: u64,
}

impl<'v, C: Cpu> Vcpu<'v, C> {
    /// Loads the VM's translation on this core.
    pub fn new(vm: &'v Vm<C>, core: usize, vttbr: u64, vtcr: u64) -> Self {
        // RW, VM, and DC: the guest has no stage 1, and its memory is normal all the same.
        let hcr: u64 = 1 << 31 | 1 << 12 | 1;
        // SAFETY: stage 2 does not translate for EL2; the tables are complete.
        unsafe {
            asm!("msr vtcr_el2, {}", "msr vttbr_el2, {}", "msr hcr_el2, {}", "msr sctlr_el1, {}", "isb",
                in(reg) vtcr, in(reg) vttbr, in(reg) hcr, in(reg) 0x30d0_0800u64, options(nostack));
        }
        Self {
            vm,
            core,
            cache: vm.table_cache(),
            faults: 0,
            pages_logged: 0,
        }
    }

    pub fn store(&mut self, ipa: u64, value: u64) {
        self.push(ipa | 1, value);
    }

    /// The guest stops the test if it finds something else.
    pub fn expect(&mut self, ipa: u64, value: u64) {
        self.push(ipa | 2, value);
    }

    pub fn load(&mut self, ipa: u64) {
        self.push(ipa | 3, 0);
    }

    fn push(&mut self, what: u64, value: u64) {
        let List(list, len) = &LISTS[self.core];
        // SAFETY: this core's list, and its guest is not running.
        unsafe {
            let at = *len.get();
            assert!(at < LIST_MAX);
            (*list.get())[at] = [what, value];
            *len.get() = at + 1;
        }
    }

    /// Runs the guest through its list, then empties the list.
    pub fn run(&mut self) {
        let List(list, len) = &LISTS[self.core];
        // SAFETY: this core's list, and its guest is not running yet.
        let start = unsafe {
            (*list.get())[core::mem::take(&mut *len.get())] = [0; 2];
            list.get() as u64
        };
        // EL1 with its own stack pointer, everything masked.
        let elr = &raw const guest_entry as u64;
        let mut registers = Registers {
            x: [start, 0, 0, 0, 0],
            elr,
            spsr: 0x3c5,
        };
        loop {
            // SAFETY: registers of a guest that uses x0 to x4 only; host state is saved by the callee.
            unsafe { enter_guest(&mut registers) };
            let esr: u64;
            // SAFETY: reads a register.
            unsafe { asm!("mrs {}, esr_el2", out(reg) esr, options(nomem, nostack)) };
            match (esr >> 26, esr & 0xffff) {
                (0x16, 0) => return,
                (0x16, _) => panic!(
                    "the guest read {:#x} at {:#x}, expected {:#x}",
                    registers.x[4], registers.x[1], registers.x[2]
                ),
                _ => self.fault(esr, registers.elr),
            }
        }
    }

    fn fault(&mut self, esr: u64, elr: u64) {
        let fault = match read_syndrome() {
            Syndrome::Fault(fault) => fault,
            other => panic!("unexpected exit: {other:?}, esr {esr:#x}, elr {elr:#x}"),
        };
        match self.vm.handle_fault(&fault, &mut self.cache) {
            Resolution::Logged { pages } => {
                self.faults += 1;
                self.pages_logged += pages;
            }
            // What break-before-make takes away for a moment is no fault of the log's.
            Resolution::Retry => self.faults += u64::from(fault.kind != FaultKind::Translation),
            other => panic!("{other:?} for {fault:x?}, elr {elr:#x}"),
        }
    }
}
