//! What KVM knows of the pages that a guest wrote.
//!
//! There are two ways, and a VM has one of them for its whole life. The *log* ([`DirtySlots`]) is
//! a bitmap a memory slot, read and cleared by ioctls. The *ring* ([`DirtyRing`]) is a queue a
//! vCPU in shared memory, which must be chosen before the first vCPU is made, and excludes the log.
//! Both are switched on and off slot by slot with the same flag.
//!
//! Descriptors are those of KVM; which crate they were made with does not matter here.

mod ring;
mod slots;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use ring::{DirtyRing, RingCap, reset_rings};
pub use slots::{DirtySlots, LogCaps, ManualProtect, Slot};

/// `KVM_ENABLE_CAP`'s argument.
#[repr(C)]
#[derive(Clone, Copy)]
struct EnableCap {
    cap: u32,
    flags: u32,
    args: [u64; 4],
    pad: [u8; 64],
}

const CHECK_EXTENSION: libc::Ioctl = 0xAE03;
const ENABLE_CAP: libc::Ioctl = 0x4068_AEA3;
const _: () = assert!(size_of::<EnableCap>() == 0x68);

/// What KVM says of a capability: 0 if it has not got it.
fn check_extension(vm: BorrowedFd<'_>, cap: u32) -> u64 {
    // SAFETY: the capability is passed by value, and the answer is a number.
    let answer = unsafe { libc::ioctl(vm.as_raw_fd(), CHECK_EXTENSION, libc::c_ulong::from(cap)) };
    u64::try_from(answer).unwrap_or(0)
}

fn enable_cap(vm: BorrowedFd<'_>, cap: u32, arg: u64) -> io::Result<()> {
    let arg = EnableCap {
        cap,
        flags: 0,
        args: [arg, 0, 0, 0],
        pad: [0; 64],
    };
    // SAFETY: the kernel reads one `EnableCap`. Neither of the two capabilities that this room
    // enables makes KVM write to memory of this process.
    answer(unsafe { libc::ioctl(vm.as_raw_fd(), ENABLE_CAP, &raw const arg) }).map(drop)
}

fn answer(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
