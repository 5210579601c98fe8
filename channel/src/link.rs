//! A descriptor that bytes go through, in either direction, and that never blocks for ever.
//!
//! Every call tries first and waits then, for the descriptor and for the two stops (the channel's
//! own, and that of its whole migration). On sockets the wait is bounded by the *silence*: a peer
//! that neither sends nor takes bytes for that long is gone. A read counts what the other
//! direction did: a source that sends RAM for minutes while it waits for an answer has a peer that
//! is well. A write does not: who takes nothing for that long is stuck, whatever it says. Bytes
//! count as taken once the kernel has them, so the last few that a dead peer never took cost one
//! more silence.
//!
//! Pipes are not bounded: behind one is a command, which may well wait longer for its own peer. They are
//! while a guest stands still for it ([`Handle::set_guest_waits`](crate::Handle::set_guest_waits)).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paguro_sys::Places;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::wait::{Waited, wait_for};
use crate::{ChannelError, Options, Stop};

/// What the descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkKind {
    Socket,
    Pipe,
    /// Never waits, but for the disk.
    File,
}

#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    pub(crate) kind: LinkKind,
    /// Who is at the other end.
    pub(crate) peer: String,
    pub(crate) stop: Stop,
    pub(crate) shared_stop: Stop,
    /// In milliseconds; 0: no limit.
    silence_ms: AtomicU64,
    /// A guest stands still until bytes go.
    guest_waits: AtomicBool,
    born: Instant,
    /// Milliseconds from birth to when the last bytes went, in either direction.
    moved_ms: AtomicU64,
}

impl Link {
    /// Takes a descriptor over; it does not block from now on.
    pub(crate) fn new(
        fd: OwnedFd,
        kind: LinkKind,
        peer: String,
        options: &Options,
    ) -> io::Result<Self> {
        if kind != LinkKind::File {
            rustix::io::ioctl_fionbio(&fd, true)?;
        }
        Ok(Self {
            fd,
            kind,
            peer,
            stop: Stop::new()?,
            shared_stop: options.stop.clone(),
            silence_ms: AtomicU64::new(millis(options.silence)),
            guest_waits: AtomicBool::new(false),
            born: Instant::now(),
            moved_ms: AtomicU64::new(0),
        })
    }

    pub(crate) fn set_silence(&self, silence: Option<Duration>) {
        self.silence_ms.store(millis(silence), Ordering::Relaxed);
    }

    pub(crate) fn set_guest_waits(&self, waits: bool) {
        self.guest_waits.store(waits, Ordering::Relaxed);
    }

    /// Ends both directions, for this side and for the peer.
    pub(crate) fn shutdown(&self) {
        self.stop.stop();
        if self.kind == LinkKind::Socket {
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
        }
    }

    /// Ends the sending direction, and takes what the peer still sends until it ends too, for at most so
    /// long.
    ///
    /// A socket that is closed, or that reads no more, while bytes come makes the kernel (or a relay on
    /// the way) reset the connection, and what was just said to the peer may be lost with it.
    pub(crate) fn hang_up(&self, within: Duration) {
        self.stop.stop();
        if self.kind == LinkKind::Socket {
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
            self.drain(Instant::now() + within);
        }
        self.shutdown();
    }

    /// Takes bytes until the peer ends, the time is over, or all of the migration is stopped.
    fn drain(&self, until: Instant) {
        let mut waste = vec![0; WASTE_BYTES];
        let stops = [&self.shared_stop; 2];
        while Instant::now() < until {
            let read = retry(|| rustix::net::recv(&self.fd, &mut *waste, RecvFlags::DONTWAIT));
            match read.map(|(_, bytes)| bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    let waited = wait_for(self.fd.as_fd(), PollFlags::IN, stops, Some(until));
                    if !matches!(waited, Ok(Waited::Ready)) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Ends the sending direction: the peer reads to the end.
    pub(crate) fn end_writes(&self) -> io::Result<()> {
        match self.kind {
            LinkKind::Socket => match rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write)
            {
                // The peer closed first.
                Ok(()) | Err(Errno::NOTCONN) => Ok(()),
                Err(error) => Err(error.into()),
            },
            LinkKind::File => self.sync(),
            LinkKind::Pipe => Ok(()),
        }
    }

    /// Waits until what was written to a file is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self.kind {
            LinkKind::File => Ok(rustix::fs::fsync(&self.fd)?),
            LinkKind::Socket | LinkKind::Pipe => Ok(()),
        }
    }

    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::IN, || self.try_read(into))
    }

    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.when_ready(PollFlags::OUT, || self.try_write(pieces))
    }

    /// Bytes in a pipe.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self.kind {
            LinkKind::Pipe => rustix::io::ioctl_fionread(&self.fd).unwrap_or(0),
            LinkKind::Socket | LinkKind::File => 0,
        }
    }

    /// Whether bytes can go to and from places in a mapping.
    pub(crate) fn is_socket(&self) -> bool {
        self.kind == LinkKind::Socket
    }

    /// As [`Places::receive`], but waits for the first byte.
    pub(crate) fn receive(&self, places: &mut Places<'_>, rest: &mut [u8]) -> io::Result<usize> {
        let mut receive = || places.receive(self.fd.as_fd(), rest).map_err(errno);
        self.when_ready(PollFlags::IN, || self.attempt(&mut receive))
    }

    /// As [`Places::send`], but waits until the first byte goes.
    ///
    /// What the kernel cannot read is touched first: that waits for a page that is served to programs
    /// only, and of memory that is lost it makes the signal that such memory is known by.
    pub(crate) fn send(&self, places: &mut Places<'_>, head: &mut &[u8]) -> io::Result<usize> {
        let mut touched = false;
        let mut send = || match places.send(self.fd.as_fd(), head).map_err(errno) {
            Err(Errno::FAULT) if !touched => {
                places.touch();
                touched = true;
                places.send(self.fd.as_fd(), head).map_err(errno)
            }
            done => done,
        };
        self.when_ready(PollFlags::OUT, || self.attempt(&mut send))
    }

    /// Reads what is there.
    pub(crate) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.attempt(|| match self.kind {
            LinkKind::Socket => {
                rustix::net::recv(&self.fd, &mut *into, RecvFlags::DONTWAIT).map(|(_, bytes)| bytes)
            }
            LinkKind::Pipe | LinkKind::File => rustix::io::read(&self.fd, &mut *into),
        })
    }

    /// Writes what goes. A peer that is gone is an error, never a signal.
    pub(crate) fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let pieces = &pieces[..pieces.len().min(MAX_PIECES)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.attempt(|| match self.kind {
            LinkKind::Socket => {
                let mut nothing = SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.fd, pieces, &mut nothing, flags)
            }
            LinkKind::Pipe | LinkKind::File => rustix::io::writev(&self.fd, pieces),
        })
    }

    /// One call that moves bytes or would have to wait.
    fn attempt(&self, call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
        self.check_stop()?;
        let bytes = retry(call).map_err(|error| self.ended(error))?;
        // The end that a shutdown makes is none of the peer's.
        if bytes == 0 {
            self.check_stop()?;
        }
        self.moved(bytes);
        Ok(bytes)
    }

    /// Attempts until one need not wait.
    fn when_ready(
        &self,
        flags: PollFlags,
        mut attempt: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(flags, started)?;
                }
                done => return done,
            }
        }
    }

    /// Until it is ready, for at most the silence since `started` (and, for reads, since bytes
    /// went in either direction).
    pub(crate) fn wait(&self, flags: PollFlags, started: Instant) -> io::Result<()> {
        loop {
            let silence = Duration::from_millis(self.silence_ms.load(Ordering::Relaxed));
            let since = if flags.contains(PollFlags::OUT) {
                started
            } else {
                started.max(self.moved_at())
            };
            let pressing = match self.kind {
                LinkKind::Socket => true,
                LinkKind::Pipe | LinkKind::File => self.guest_waits.load(Ordering::Relaxed),
            };
            let bounded = pressing && !silence.is_zero();
            if bounded && Instant::now() >= since + silence {
                return Err(self.silent(silence).into_io());
            }
            // Looked at again now and then: the limit may be set, and the other half may move
            // bytes, meanwhile.
            let look = Instant::now() + LOOK_AGAIN;
            let until = if bounded {
                look.min(since + silence)
            } else {
                look
            };
            if self.wait_until(flags, Some(until))? == Waited::Ready {
                return Ok(());
            }
        }
    }

    /// Until it is ready or the time is over.
    pub(crate) fn wait_until(
        &self,
        flags: PollFlags,
        until: Option<Instant>,
    ) -> io::Result<Waited> {
        let stops = [&self.stop, &self.shared_stop];
        wait_for(self.fd.as_fd(), flags, stops, until)
    }

    /// Notes that bytes went.
    pub(crate) fn moved(&self, bytes: usize) {
        if bytes != 0 {
            let now = self.born.elapsed().as_millis();
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            self.moved_ms.store(now, Ordering::Relaxed);
        }
    }

    fn moved_at(&self) -> Instant {
        self.born + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    fn check_stop(&self) -> io::Result<()> {
        if self.stop.is_stopped() || self.shared_stop.is_stopped() {
            Err(ChannelError::Stopped.into_io())
        } else {
            Ok(())
        }
    }

    fn silent(&self, silence: Duration) -> ChannelError {
        ChannelError::Silent {
            peer: self.peer.clone(),
            silence,
        }
    }

    /// What the kernel says, in the words of this room.
    fn ended(&self, error: Errno) -> io::Error {
        if self.stop.is_stopped() || self.shared_stop.is_stopped() {
            return ChannelError::Stopped.into_io();
        }
        match error {
            // The kernel's own look at the silence: TCP_USER_TIMEOUT, or keep-alive.
            Errno::TIMEDOUT => {
                let silence = self.silence_ms.load(Ordering::Relaxed);
                self.silent(Duration::from_millis(silence)).into_io()
            }
            Errno::FAULT => io::Error::other("guest memory could not be made present there"),
            other => other.into(),
        }
    }
}

/// Most pieces that the kernel takes at once.
const MAX_PIECES: usize = 1024;
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Taken at once of what nobody wants any more.
const WASTE_BYTES: usize = 64 << 10;

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn millis(silence: Option<Duration>) -> u64 {
    silence.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
    })
}

/// What the kernel said, as this room has it.
fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use paguro_sys::{Event, Fallbacks, Host, Mapping, RegisterMode};

    use super::*;

    /// Whoever may see to faults of programs only has pages that the kernel cannot read.
    #[test]
    fn what_the_kernel_cannot_read_is_touched_and_goes() {
        let _ends = paguro_testkit::must_end();
        const PAGE: usize = 4096;
        const PAGES: usize = 4;
        let host = Host::probe(&Fallbacks {
            user_mode_only: true,
            ..Fallbacks::default()
        });
        let uffd = match host.open_uffd() {
            Ok(uffd) => uffd,
            Err(error) => return println!("skipped: no userfaultfd: {error}"),
        };
        let mapping = Mapping::anonymous(PAGES * PAGE, false).unwrap();
        // The first is there; the rest comes when it is asked for.
        mapping.copy_in(0, &[0; PAGE]);
        let absent = mapping.range(PAGE, (PAGES - 1) * PAGE);
        uffd.register(absent.clone(), RegisterMode::Missing)
            .unwrap();
        let server = std::thread::spawn(move || {
            let mut events = [Event::Other(0); 1];
            for _ in absent.step_by(PAGE) {
                while uffd.read(&mut events).unwrap() == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
                let Event::Fault(fault) = events[0] else {
                    panic!("{events:?}");
                };
                let page = fault.address / PAGE * PAGE;
                uffd.copy(page, &[(page / PAGE) as u8; PAGE], false)
                    .answer
                    .unwrap();
            }
        });
        let (out, mut into) = UnixStream::pair().unwrap();
        let options = Options::new(Stop::new().unwrap());
        let link = Link::new(out.into(), LinkKind::Socket, "a test".to_owned(), &options).unwrap();
        let mut places = Places::new(&mapping);
        places.push(0, PAGES * PAGE);
        let mut head: &[u8] = b"head";
        while places.left_bytes() > 0 {
            link.send(&mut places, &mut head).unwrap();
        }
        server.join().unwrap();
        drop(link);
        let mut came = Vec::new();
        into.read_to_end(&mut came).unwrap();
        let numbers = (1..PAGES).map(|page| (mapping.addr() / PAGE + page) as u8);
        let expected: Vec<u8> = std::iter::once(0)
            .chain(numbers)
            .flat_map(|number| [number; PAGE])
            .collect();
        assert!(came[..4] == *b"head" && came[4..] == expected);
    }
}
