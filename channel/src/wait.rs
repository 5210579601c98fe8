//! Waiting for a descriptor, with an end in sight.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
    let [one, other] = stops.map(|stop| PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN));
    let mut fds = [PollFd::from_borrowed_fd(fd, flags), one, other];
    let ready = wait(&mut fds, stops, until)?;
    Ok(ready.map_or(Waited::Expired, |_| Waited::Ready))
}

/// As [`wait_for`], for any of several: which of them it is, none if the time is over.
pub(crate) fn wait_for_any(
    fds: &[OwnedFd],
    flags: PollFlags,
    stops: [&Stop; 2],
    until: Option<Instant>,
) -> io::Result<Option<usize>> {
    let ends = stops.map(|stop| PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN));
    let fds = fds.iter().map(|fd| PollFd::new(fd, flags));
    let mut fds: Vec<_> = fds.chain(ends).collect();
    wait(&mut fds, stops, until)
}

/// Which of `fds` but the last two is ready first; those are the descriptors of `stops`.
fn wait(
    fds: &mut [PollFd<'_>],
    stops: [&Stop; 2],
    until: Option<Instant>,
) -> io::Result<Option<usize>> {
    loop {
        if stops.iter().any(|stop| stop.is_stopped()) {
            return Err(ChannelError::Stopped.into_io());
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match poll(fds, left.map(timespec).as_ref()) {
            Ok(0) if left == Some(Duration::ZERO) => return Ok(None),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => {
                let mut wanted = fds[..fds.len() - stops.len()].iter();
                if let Some(at) = wanted.position(|fd| !fd.revents().is_empty()) {
                    return Ok(Some(at));
                }
            }
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
