//! Descriptors that this process was started with.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::{Errno, FdFlags};

/// Takes over a socket, pipe, device or file that was inherited, by its number.
///
/// One that something in this process owns is close-on-exec: the standard library and the crates
/// used here open none otherwise (event descriptors they do, and those are refused). One that is
/// not has come from the parent, and nobody owns it. It is made close-on-exec, so it can be taken
/// once.
///
/// # Errors
///
/// `EBADF`: there is none, it is one of the first three, or it is not an inherited one (any more).
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKING: Mutex<()> = Mutex::new(());
    if number <= 2 {
        return Err(Errno::BADF.into());
    }
    let _one_at_a_time = TAKING.lock();
    // SAFETY: it is only asked for its flags, which for a number without descriptor is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(fd)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF.into());
    }
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if !matches!(
        kind,
        FileType::Socket | FileType::Fifo | FileType::CharacterDevice | FileType::RegularFile
    ) {
        return Err(Errno::BADF.into());
    }
    rustix::io::fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it exists and, not being close-on-exec until just now, was inherited: no value in
    // this process owns it, and under the lock nobody else takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a descriptor is a socket; for one that was inherited and not taken over yet.
pub fn is_inherited_socket(number: RawFd) -> bool {
    if number <= 2 {
        return false;
    }
    // SAFETY: it is only asked what it is, which for a number without descriptor is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn only_what_nobody_owns_can_be_taken_and_only_once() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(!is_inherited_socket(reader.as_raw_fd()));
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_inherited_socket(socket.as_raw_fd()) && !is_inherited_socket(-1));
        assert!(take_inherited(reader.as_raw_fd()).is_err(), "it is owned");
        let writer = OwnedFd::from(writer);
        rustix::io::fcntl_setfd(&writer, FdFlags::empty()).unwrap();
        let number = writer.into_raw_fd();
        let taken = take_inherited(number).unwrap();
        assert!(take_inherited(number).is_err(), "it is taken");
        drop(taken);
        assert!(take_inherited(number).is_err() && take_inherited(0).is_err());
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        assert!(take_inherited(event.as_raw_fd()).is_err(), "an event");
    }
}
