//! userfaultfd(2), as the kernel has it.
//!
//! This is a thin layer: one method an ioctl, kernel answers turned into meaning. Policy (which
//! answer is success, who waits) belongs to the crate `faults`. See the kernel's
//! `Documentation/admin-guide/mm/userfaultfd.rst`.
//!
//! Everything here concerns the memory of the process that *opened* the descriptor, whoever holds it:
//! with one that another process has sent ([`Uffd::adopt`]), that process' pages are placed.

mod adopting;
mod events;
mod opening;
mod waiting;

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as op;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

pub use adopting::{AdoptError, Handshake};
pub use events::{Event, Fault, FaultKind};
pub use waiting::Waiting;

/// Protect (1) or release (0) in `UFFDIO_WRITEPROTECT`. Not in linux-raw-sys.
const WRITEPROTECT_MODE_WP: u64 = 1;
/// Place protected, in `UFFDIO_CONTINUE`.
const CONTINUE_MODE_WP: u64 = 2;

const _: () = assert!(size_of::<raw::uffd_msg>() == 32);
const _: () = assert!(size_of::<raw::uffdio_copy>() == 40);

bitflags::bitflags! {
    /// Optional abilities of a userfaultfd, as bits of `UFFD_FEATURE_*`: those of the kernel's that have
    /// no name here are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// Write-protect faults on anonymous memory.
        const WP = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// Write-protect on hugetlbfs and shared memory.
        const WP_SHARED = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Absent anonymous pages can be protected too.
        const WP_UNPOPULATED = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// Missing faults on hugetlbfs.
        const MISSING_HUGETLB = raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing faults on shared memory.
        const MISSING_SHARED = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
        /// An event when a part is given back by `madvise`.
        const EVENT_REMOVE = raw::UFFD_FEATURE_EVENT_REMOVE as u64;
        /// A write takes the protection away by itself, and nobody is told (Linux 6.7).
        const WP_ASYNC = raw::UFFD_FEATURE_WP_ASYNC as u64;
        /// The thread id of who faulted.
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        /// An event when the process forks, and with it a descriptor for the child's memory.
        const EVENT_FORK = raw::UFFD_FEATURE_EVENT_FORK as u64;
        /// An event when a part is moved to other addresses.
        const EVENT_REMAP = raw::UFFD_FEATURE_EVENT_REMAP as u64;
        /// Who faults gets a SIGBUS instead of waiting.
        const SIGBUS = raw::UFFD_FEATURE_SIGBUS as u64;
        const _ = !0;
    }
}

/// What a range is registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterMode {
    /// Faults on absent pages.
    Missing,
    /// Faults on protected pages.
    WriteProtect,
    /// Both.
    Both,
}

/// The kernel's answer, as meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UffdError {
    /// Unread events or a changing address space are in the way: drain them and try again.
    #[error("the address space is changing: try again")]
    Again,
    /// Something is there already.
    #[error("the page is there already")]
    Exists,
    /// The range is not (or no more) registered, or not mapped.
    #[error("the range is not registered any more")]
    Gone,
    /// The process whose memory this is has ended.
    #[error("the process has ended")]
    Ended,
    /// Another userfaultfd watches this mapping.
    #[error("another userfaultfd watches this memory")]
    Busy,
    /// The right is missing.
    #[error("not allowed: {0}")]
    Denied(Errno),
    /// Something else.
    #[error("{call} failed: {errno}")]
    Other {
        /// The ioctl.
        call: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl UffdError {
    fn of(call: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::Again,
            Errno::EXIST => Self::Exists,
            Errno::NOENT | Errno::FAULT => Self::Gone,
            Errno::SRCH => Self::Ended,
            Errno::BUSY => Self::Busy,
            Errno::PERM | Errno::ACCESS => Self::Denied(errno),
            errno => Self::Other { call, errno },
        }
    }
}

/// A userfaultfd. Non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: Features,
    user_mode_only: bool,
}

impl Uffd {
    /// The features it was opened with. Of one that was [adopted](Uffd::adopt) see there.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether faults taken inside the kernel (KVM, read(2)) are *not* delivered.
    pub fn is_user_mode_only(&self) -> bool {
        self.user_mode_only
    }

    /// Registers a page-aligned range. Modes add up over calls.
    pub fn register(&self, range: Range<usize>, mode: RegisterMode) -> Result<(), UffdError> {
        let mode = match mode {
            RegisterMode::Missing => raw::UFFDIO_REGISTER_MODE_MISSING,
            RegisterMode::WriteProtect => raw::UFFDIO_REGISTER_MODE_WP,
            RegisterMode::Both => raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_WP,
        };
        let mut arg = raw::uffdio_register {
            range: raw_range(range),
            mode: u64::from(mode),
            ioctls: 0,
        };
        self.call::<{ op::UFFDIO_REGISTER as Opcode }, _>("UFFDIO_REGISTER", &mut arg)
    }

    /// Unregisters a range, whatever of it is still registered, and wakes who waits in it.
    pub fn unregister(&self, range: Range<usize>) -> Result<(), UffdError> {
        let mut arg = raw_range(range.clone());
        let answer =
            self.call::<{ op::UFFDIO_UNREGISTER as Opcode }, _>("UFFDIO_UNREGISTER", &mut arg);
        match answer {
            // No more mappings, or no process any more: the kernel says the same of both. What is
            // about to be unregistered may as well lose its protection.
            Err(UffdError::Other { errno, .. })
                if errno == Errno::NOMEM && self.release(range) == Err(UffdError::Ended) =>
            {
                Err(UffdError::Ended)
            }
            answer => answer,
        }
    }

    /// Protects a registered range against writing.
    pub fn protect(&self, range: Range<usize>) -> Result<(), UffdError> {
        self.write_protect(range, WRITEPROTECT_MODE_WP)
    }

    /// Takes the protection away and wakes who waits in the range.
    pub fn release(&self, range: Range<usize>) -> Result<(), UffdError> {
        self.write_protect(range, 0)
    }

    fn write_protect(&self, range: Range<usize>, mode: u64) -> Result<(), UffdError> {
        let mut arg = raw::uffdio_writeprotect {
            range: raw_range(range),
            mode,
        };
        self.call::<{ op::UFFDIO_WRITEPROTECT as Opcode }, _>("UFFDIO_WRITEPROTECT", &mut arg)
    }

    /// Places `content` on an absent range at `to` and wakes who waits there; with `protected`,
    /// write-protected from its first moment. Returns the bytes placed before an error, with it.
    pub fn copy(&self, to: usize, content: &[u8], protected: bool) -> Placed {
        let mut arg = raw::uffdio_copy {
            dst: to as u64,
            src: content.as_ptr() as u64,
            len: content.len() as u64,
            mode: if protected {
                u64::from(raw::UFFDIO_COPY_MODE_WP)
            } else {
                0
            },
            copy: 0,
        };
        let answer = self.call::<{ op::UFFDIO_COPY as Opcode }, _>("UFFDIO_COPY", &mut arg);
        Placed {
            bytes: arg.copy.max(0) as usize,
            answer,
        }
    }

    /// Places zeros on an absent range, unprotected.
    pub fn zero(&self, range: Range<usize>) -> Placed {
        let mut arg = raw::uffdio_zeropage {
            range: raw_range(range),
            mode: 0,
            zeropage: 0,
        };
        let answer = self.call::<{ op::UFFDIO_ZEROPAGE as Opcode }, _>("UFFDIO_ZEROPAGE", &mut arg);
        Placed {
            bytes: arg.zeropage.max(0) as usize,
            answer,
        }
    }

    /// Maps what is in the page cache already.
    pub fn map_cached(&self, range: Range<usize>, protected: bool) -> Placed {
        let mut arg = raw::uffdio_continue {
            range: raw_range(range),
            mode: if protected { CONTINUE_MODE_WP } else { 0 },
            mapped: 0,
        };
        let answer = self.call::<{ op::UFFDIO_CONTINUE as Opcode }, _>("UFFDIO_CONTINUE", &mut arg);
        Placed {
            bytes: arg.mapped.max(0) as usize,
            answer,
        }
    }

    /// Wakes who waits in the range; they look again.
    pub fn wake(&self, range: Range<usize>) -> Result<(), UffdError> {
        let mut arg = raw_range(range);
        self.call::<{ op::UFFDIO_WAKE as Opcode }, _>("UFFDIO_WAKE", &mut arg)
    }

    /// Reads up to `events.len()` events without waiting; the number read.
    pub fn read(&self, events: &mut [Event]) -> Result<usize, UffdError> {
        const MOST: usize = 16;
        let mut bytes = [0u8; MOST * size_of::<raw::uffd_msg>()];
        let want = events.len().min(MOST) * size_of::<raw::uffd_msg>();
        let got = match rustix::io::read(&self.fd, &mut bytes[..want]) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(UffdError::of("read", errno)),
        };
        let messages = bytes[..got].chunks_exact(size_of::<raw::uffd_msg>());
        let count = messages.len();
        for (event, message) in events.iter_mut().zip(messages) {
            *event = events::decode(message);
        }
        Ok(count)
    }

    fn call<const OP: Opcode, T>(&self, name: &'static str, arg: &mut T) -> Result<(), UffdError> {
        loop {
            // SAFETY: every caller pairs the opcode with the structure that the kernel reads and
            // writes for it. The addresses inside name memory of the process that opened the
            // descriptor: a range that is registered guest RAM (which this process, if it is that
            // one, reaches by raw copies only, so that pages may appear or become writable at any
            // time). A source is a slice of ours that outlives the call.
            match unsafe { ioctl(self.fd.as_fd(), Updater::<OP, T>::new(arg)) } {
                Err(Errno::INTR) => {}
                answer => return answer.map_err(|errno| UffdError::of(name, errno)),
            }
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// How a placement went: `bytes` are there even if `answer` is an error.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Placed {
    /// Bytes placed from the start of the range.
    pub bytes: usize,
    /// The kernel's answer for the rest.
    pub answer: Result<(), UffdError>,
}

fn raw_range(range: Range<usize>) -> raw::uffdio_range {
    raw::uffdio_range {
        start: range.start as u64,
        len: range.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A later kernel has more of them, and an adopted descriptor may have been opened with them.
    #[test]
    fn features_without_a_name_are_kept() {
        let unknown = Features::from_bits_retain(1 << 62);
        let all = Features::WP | unknown;
        assert!(all.contains(unknown) && !Features::WP.contains(all));
        assert_eq!((all - Features::WP).bits(), 1 << 62);
        assert_eq!(all & !Features::WP, unknown);
        assert!(Features::empty().is_empty() && Features::all().contains(all));
    }
}
