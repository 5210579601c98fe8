//! Waiting for a descriptor, with an end in sight.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::{ChannelError, Stop};

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The descriptor is ready, or broken: trying says which.
    Ready,
    /// The time is over.
    Expired,
}

/// Until `fd` is ready for `flags`, one of `stops` was stopped (an error), or the time is over.
pub(crate) fn wait_for(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    stops: [&Stop; 2],
    until: Option<Instant>,
) -> io::Result<Waited> {
    loop {
        if stops.iter().any(|stop| stop.is_stopped()) {
            return Err(ChannelError::Stopped.into_io());
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds = [
            PollFd::from_borrowed_fd(fd, flags),
            PollFd::from_borrowed_fd(stops[0].as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stops[1].as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, left.map(timespec).as_ref()) {
            Ok(0) if left == Some(Duration::ZERO) => return Ok(Waited::Expired),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if fds[0].revents().is_empty() => {}
            Ok(_) => return Ok(Waited::Ready),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for nothing but the time, or a stop (an error).
pub(crate) fn pause(stops: [&Stop; 2], time: Duration) -> io::Result<()> {
    let until = Some(Instant::now() + time);
    wait_for(stops[0].as_fd(), PollFlags::IN, stops, until).map(drop)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
