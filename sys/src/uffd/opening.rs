//! A userfaultfd of this process' own memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as op;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

use super::{Features, Uffd, UffdError};
use crate::held;

impl Uffd {
    /// Opens one through `/dev/userfaultfd`, then the system call, then (only faults taken in user
    /// mode) the unprivileged form, and asks for no features: only [`Uffd::supported`] is of use
    /// on the result. With `user_mode_only` the last form is used at once.
    fn open_raw(user_mode_only: bool) -> Result<(OwnedFd, bool), UffdError> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if !user_mode_only {
            if let Some(fd) = open_device(flags) {
                return Ok((fd, false));
            }
            if let Ok(fd) = open_syscall(flags) {
                return Ok((fd, false));
            }
        }
        open_syscall(flags | raw::UFFD_USER_MODE_ONLY as i32)
            .map(|fd| (fd, true))
            .map_err(|errno| UffdError::of("userfaultfd", errno))
    }

    /// Which features this kernel has, and whether only faults in user mode can be handled.
    pub(crate) fn supported(user_mode_only: bool) -> Result<(Features, bool), UffdError> {
        let (fd, user_mode_only) = Self::open_raw(user_mode_only)?;
        let features = handshake(fd.as_fd(), Features::empty())?;
        Ok((features, user_mode_only))
    }

    /// Opens one with exactly these features (ask [`crate::Host`] which there are).
    ///
    /// # Errors
    ///
    /// [`UffdError::Denied`] without the right, `Other(EINVAL)` for a feature that is not there.
    pub fn open(features: Features, user_mode_only: bool) -> Result<Self, UffdError> {
        let (fd, user_mode_only) = Self::open_raw(user_mode_only)?;
        handshake(fd.as_fd(), features)?;
        Ok(Self {
            fd,
            features,
            user_mode_only,
        })
    }
}

fn handshake(fd: BorrowedFd<'_>, features: Features) -> Result<Features, UffdError> {
    let mut api = raw::uffdio_api {
        api: u64::from(raw::UFFD_API),
        features: features.bits(),
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
    unsafe {
        ioctl(
            fd,
            Updater::<{ op::UFFDIO_API as Opcode }, _>::new(&mut api),
        )
    }
    .map_err(|errno| UffdError::of("UFFDIO_API", errno))?;
    Ok(Features::from_bits_retain(api.features))
}

fn open_device(flags: i32) -> Option<OwnedFd> {
    /// `_IO(0xAA, 0)`: a new userfaultfd from the device. Not in linux-raw-sys.
    const NEW: libc::c_ulong = 0xAA00;
    let device = held::file(held::USERFAULTFD).ok()?;
    // SAFETY: the ioctl takes flags by value and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW as _, flags as libc::c_ulong) };
    // SAFETY: a descriptor that is not negative was just made for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open_syscall(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd(2) takes flags by value.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS));
    }
    // SAFETY: just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
