//! A TLS connection whose two directions are used by two threads.
//!
//! rustls keeps one state for both. It is locked while bytes are encrypted, decrypted, or handed
//! to or taken from the kernel *as far as that goes without waiting*; who must wait for the socket
//! gives the lock back first. So a reader that waits for the peer never keeps the writer, and the
//! queue inside rustls keeps all outgoing bytes in order, whoever sends them.
//!
//! What a reader has to say itself (the answer to a change of keys, an alert) it sends if it goes
//! at once; otherwise the next write takes it along.

use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustls::Connection;

use super::TlsError;
use crate::ChannelError;
use crate::link::Link;
use crate::wait::Waited;

/// Encrypted bytes that came and were not looked at yet. Belongs to who reads.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    is_over: bool,
}

/// Read from the socket at once.
const INBOX_BYTES: usize = 256 << 10;
/// Encrypted at once: 16 records of the largest size.
const OUTBOX_BYTES: usize = 256 << 10;

impl Inbox {
    /// Reads what is there; only when all before was used.
    fn fill(&mut self, link: &Link) -> io::Result<()> {
        if self.bytes.is_empty() {
            self.bytes = vec![0; INBOX_BYTES];
        }
        let read = link.try_read(&mut self.bytes)?;
        (self.start, self.end, self.is_over) = (0, read, read == 0);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.start == self.end && !self.is_over
    }

    /// Hands the next bytes, or the end, to the connection.
    fn feed(&mut self, connection: &mut Connection) -> Result<(), TlsError> {
        let mut rest = &self.bytes[self.start..self.end];
        let used = connection
            .read_tls(&mut rest)
            .map_err(|error| TlsError::from(rustls::Error::General(error.to_string())))?;
        // Nothing is taken after the peer's orderly end; what it sent later does not count.
        self.start = if used == 0 {
            self.end
        } else {
            self.start + used
        };
        self.is_over = false;
        connection.process_new_packets()?;
        Ok(())
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Mutex<Connection>,
    /// Somebody reads, and may have bytes in his inbox.
    is_read: AtomicBool,
}

impl Session {
    /// Shakes hands before `until`; both sides have been checked then, the connecting one only as
    /// far as it can know: that the peer refuses its certificate it may learn by the first read.
    pub(crate) fn start(
        link: &Link,
        mut connection: Connection,
        until: Instant,
    ) -> io::Result<(Self, Inbox)> {
        connection.set_buffer_limit(None);
        let mut inbox = Inbox::default();
        let done = shake(link, &mut connection, &mut inbox, until);
        if let Err(error) = done {
            // The peer should learn why.
            let _ = send(link, &mut connection);
            let _ = link.end_writes();
            return Err(error);
        }
        let connection = Mutex::new(connection);
        let is_read = AtomicBool::new(false);
        Ok((
            Self {
                connection,
                is_read,
            },
            inbox,
        ))
    }

    pub(crate) fn read(
        &self,
        link: &Link,
        inbox: &mut Inbox,
        into: &mut [u8],
    ) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        self.is_read.store(true, Ordering::Relaxed);
        let started = Instant::now();
        loop {
            // The first one, under the lock, comes before all that is read of the socket.
            let taken = self.take(link, inbox, into)?;
            if let Some(bytes) = taken {
                return Ok(bytes);
            }
            while let Err(error) = inbox.fill(link) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
                link.wait(PollFlags::IN, started)?;
            }
        }
    }

    /// Encrypts and sends up to [`OUTBOX_BYTES`].
    pub(crate) fn write(&self, link: &Link, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        // What an earlier reader could not send goes first, so that nothing piles up.
        self.send_all(link, |_| Ok(()))?;
        let mut taken = 0;
        self.send_all(link, |connection| {
            taken = connection.writer().write_vectored(&bounded(pieces))?;
            Ok(())
        })?;
        Ok(taken)
    }

    /// Tells the peer that this was all.
    pub(crate) fn close(&self, link: &Link) -> io::Result<()> {
        self.send_all(link, |connection| {
            connection.send_close_notify();
            Ok(())
        })
    }

    /// Plain bytes out of what came so far; none if more must come first.
    fn take(&self, link: &Link, inbox: &mut Inbox, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = self.connection.lock();
        let mut taken = 0;
        while taken < into.len() {
            match connection.reader().read(&mut into[taken..]) {
                // The peer's orderly end.
                Ok(0) => break,
                Ok(bytes) => taken += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if inbox.is_empty() {
                        match taken {
                            0 => return Ok(None),
                            _ => break,
                        }
                    }
                    if let Err(error) = inbox.feed(&mut connection) {
                        let _ = send(link, &mut connection);
                        return Err(failed(link, error));
                    }
                    let _ = send(link, &mut connection);
                }
                Err(_) if taken != 0 => break,
                Err(_) => return Err(failed(link, TlsError::Truncated)),
            }
        }
        Ok(Some(taken))
    }

    /// Does something that makes bytes to be sent, and sends all.
    fn send_all(
        &self,
        link: &Link,
        mut first: impl FnMut(&mut Connection) -> io::Result<()>,
    ) -> io::Result<()> {
        first(&mut self.connection.lock())?;
        let mut moved = Instant::now();
        loop {
            let sent = send(link, &mut self.connection.lock());
            match sent {
                Ok(0) => return Ok(()),
                Ok(_) => moved = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    link.wait(PollFlags::OUT, moved)?;
                }
                Err(error) => return Err(self.explained(link, error)),
            }
        }
    }

    /// A peer that closes on this side has perhaps said why.
    fn explained(&self, link: &Link, error: io::Error) -> io::Error {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        if !matches!(error.kind(), BrokenPipe | ConnectionReset) {
            return error;
        }
        let mut connection = self.connection.lock();
        let mut inbox = Inbox::default();
        // Who reads finds it himself. Bytes that are taken away from him would come out of order, and
        // the peer's last words be lost.
        let is_read = self.is_read.load(Ordering::Relaxed);
        while !is_read && inbox.fill(link).is_ok() && inbox.end != 0 {
            while !inbox.is_empty() {
                if let Err(refused @ TlsError::Refused { .. }) = inbox.feed(&mut connection) {
                    return failed(link, refused);
                }
            }
        }
        // Or the reader has seen it before.
        match connection.process_new_packets().map_err(TlsError::from) {
            Err(refused @ TlsError::Refused { .. }) => failed(link, refused),
            _ => error,
        }
    }
}

fn shake(
    link: &Link,
    connection: &mut Connection,
    inbox: &mut Inbox,
    until: Instant,
) -> io::Result<()> {
    let wait = |flags| match link.wait_until(flags, Some(until))? {
        Waited::Ready => Ok(()),
        Waited::Expired => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    loop {
        match send(link, connection) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(PollFlags::OUT)?,
            Err(error) => return Err(error),
            Ok(sent) if sent != 0 => {}
            Ok(_) if !connection.is_handshaking() => return Ok(()),
            Ok(_) => match inbox.fill(link) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(PollFlags::IN)?,
                Err(error) => return Err(error),
                Ok(()) if inbox.is_over => return Err(failed(link, TlsError::Truncated)),
                Ok(()) => {
                    while connection.is_handshaking() && !inbox.is_empty() {
                        inbox
                            .feed(connection)
                            .map_err(|error| failed(link, error))?;
                    }
                }
            },
        }
    }
}

/// Sends of what waits in the connection as much as goes at once.
fn send(link: &Link, connection: &mut Connection) -> io::Result<usize> {
    if connection.wants_write() {
        connection.write_tls(&mut Socket(link))
    } else {
        Ok(0)
    }
}

/// As rustls wants it.
struct Socket<'a>(&'a Link);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first pieces, [`OUTBOX_BYTES`] at most.
fn bounded<'a>(pieces: &'a [IoSlice<'a>]) -> Vec<IoSlice<'a>> {
    let mut left = OUTBOX_BYTES;
    let mut some = Vec::with_capacity(pieces.len().min(64));
    for piece in pieces {
        let part = &piece[..piece.len().min(left)];
        some.push(IoSlice::new(part));
        left -= part.len();
        if left == 0 {
            break;
        }
    }
    some
}

fn failed(link: &Link, source: TlsError) -> io::Error {
    ChannelError::Tls {
        peer: link.peer.clone(),
        source,
    }
    .into_io()
}
