//! The built-in guest: runs the workload on one vCPU, in ring 3.
//!
//! The VMM starts every vCPU at [`_start`] in 64-bit mode with paging on, memory mapped one to
//! one, its index in rdi, the address of the parameters in rsi, and the ports below open
//! through the TSS. There is no other code in the machine: no exception is handled, none is
//! expected.
#![no_std]
#![no_main]

use core::arch::asm;

use paguro_workload::layout::PAGE_BYTES;
use paguro_workload::params::PARAMS_BYTES;
use paguro_workload::{Bytes, Cpu, Op, Params};

/// Out of a u32 of microseconds: the VMM lets this vCPU wait.
const PORT_WAIT: u16 = 0x600;
/// Out of a u32: the guest cannot go on, and why.
const PORT_PANIC: u16 = 0x604;
const PORT_SERIAL: u16 = 0x3f8;
const PORT_I8042: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

const PANIC_PARAMS: u32 = 1;
const PANIC_VCPU: u32 = 2;
const PANIC_RUST: u32 = 3;

/// Entry of every vCPU.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text._start")]
extern "C" fn _start(vcpu: u64, params_gpa: u64) -> ! {
    // SAFETY: the VMM passes the address of the parameters; nothing writes them meanwhile.
    let bytes = unsafe { &*(params_gpa as *const [u8; PARAMS_BYTES]) };
    let Ok(params) = Params::from_bytes(bytes) else {
        die(PANIC_PARAMS)
    };
    if vcpu >= params.vcpus {
        die(PANIC_VCPU)
    }
    if vcpu == 0 {
        greet(&params);
    }
    let mut cpu = Vcpu {
        mailbox: params.mailbox_of(vcpu),
        progress: params.progress_of(vcpu),
    };
    paguro_workload::run(&mut cpu, &params, vcpu);
    loop {
        if vcpu == 0 {
            // SAFETY: a port write that ends the machine; it touches no memory.
            unsafe {
                asm!("out dx, al", in("dx") PORT_I8042, in("al") I8042_RESET, options(nomem, nostack));
            }
        }
        out_u32(PORT_WAIT, 1_000_000);
    }
}

/// This vCPU. Guest-physical addresses are its addresses.
struct Vcpu {
    mailbox: u64,
    progress: u64,
}

impl Cpu for Vcpu {
    type Page = u64;

    #[inline(always)]
    fn page(&mut self, gpa: u64) -> u64 {
        gpa
    }

    #[inline(always)]
    fn store(&mut self, page: u64, word: usize, value: u64) {
        store(page, 8 * word, value);
    }

    #[inline(always)]
    fn load(&mut self, page: u64, word: usize) -> u64 {
        load(page, 8 * word)
    }

    #[inline(always)]
    fn mailbox_load(&mut self, offset: usize) -> u64 {
        load(self.mailbox, offset)
    }

    #[inline(always)]
    fn mailbox_store(&mut self, offset: usize, value: u64) {
        store(self.mailbox, offset, value);
    }

    #[inline(always)]
    fn progress_load(&mut self, offset: usize) -> u64 {
        load(self.progress, offset)
    }

    #[inline(always)]
    fn progress_store(&mut self, offset: usize, value: u64) {
        store(self.progress, offset, value);
    }

    #[inline(always)]
    fn now_ticks(&mut self) -> u64 {
        // SAFETY: every x86-64 CPU has the instruction, and CR4.TSD is clear.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn wait_us(&mut self, us: u32) {
        out_u32(PORT_WAIT, us);
    }
}

#[inline(always)]
fn load(base: u64, offset: usize) -> u64 {
    // SAFETY: the loop passes word-aligned offsets within pages of the area, this vCPU's
    // mailbox or its progress memory, all mapped.
    unsafe { ((base as usize + offset) as *const u64).read_volatile() }
}

#[inline(always)]
fn store(base: u64, offset: usize, value: u64) {
    // SAFETY: as for `load`; none of these pages holds code, constants, stack or tables, so
    // no object of this program changes.
    unsafe { ((base as usize + offset) as *mut u64).write_volatile(value) }
}

fn out_u32(port: u16, value: u32) {
    // SAFETY: the VMM handles the port; it touches no memory of this program.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

fn die(code: u32) -> ! {
    loop {
        out_u32(PORT_PANIC, code);
    }
}

/// One line on the serial port. Without `core::fmt`, which would be most of this program.
#[cold]
#[inline(never)]
fn greet(params: &Params) {
    print("paguro guest: vcpu 0 of ");
    print_number(params.vcpus);
    print(", pattern ");
    print(params.pattern.name());
    print(match (params.op, params.bytes) {
        (Op::Read, _) => ", reads, ",
        (Op::Write, Bytes::Eight) => ", writes 8 bytes a page, ",
        (Op::Write, Bytes::SixtyFour) => ", writes 64 bytes a page, ",
        (Op::Write, Bytes::Page) => ", writes whole pages, ",
    });
    match params.rate_pages_per_s {
        0 => print("unlimited"),
        rate => {
            print_number(rate);
            print(" pages/s");
        }
    }
    print(", ");
    print_number((params.area.pages() * PAGE_BYTES) >> 20);
    print(" MiB\n");
}

fn print_number(number: u64) {
    let mut unit = 1;
    while number / unit >= 10 {
        unit *= 10;
    }
    while unit > 0 {
        print_byte(b'0' + (number / unit % 10) as u8);
        unit /= 10;
    }
}

fn print(text: &str) {
    for byte in text.bytes() {
        print_byte(byte);
    }
}

fn print_byte(byte: u8) {
    // SAFETY: the VMM handles the port; it touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") PORT_SERIAL, in("al") byte, options(nomem, nostack)) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    die(PANIC_RUST)
}

// What the compiler calls for large moves. String instructions, because a loop written in Rust
// could be compiled into a call of itself.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller gives two valid ranges of `count` bytes; the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: as the caller promises; copying upward does not overwrite what is to come.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: `count` is above 0 here, so both last bytes are in the ranges that the caller
    // promises; the direction flag is cleared again.
    unsafe {
        let (last_to, last_from) = (to.add(count - 1), from.add(count - 1));
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") last_to => _,
            inout("rsi") last_from => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller gives a valid range of `count` bytes; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for i in 0..count {
        // SAFETY: the caller gives two valid ranges of `count` bytes; volatile, so that this
        // loop is not itself compiled into a call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, count) }
}
