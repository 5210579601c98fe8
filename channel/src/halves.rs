//! A channel and its two halves.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use paguro_sys::Places;
use parking_lot::Mutex;
use rustix::event::PollFlags;

use crate::command::{Direction, Running};
use crate::link::{Link, LinkKind};
use crate::stream_file::StreamFile;
use crate::tls::{Inbox, Session};
use crate::{ChannelError, Stop};

/// A way to the peer, made by [`Outgoing`](crate::Outgoing) or [`Listener`](crate::Listener).
///
/// Sockets go both ways, all else goes one way; the half of the other way then only gives errors.
/// Dropping a channel, or both halves, without [`Writer::finish`] is a failure as the other side
/// sees it: TLS is cut off, a command is killed, a file never gets its name.
#[derive(Debug)]
pub struct Channel {
    core: Arc<Core>,
    direction: Direction,
    inbox: Inbox,
    file: Option<StreamFile>,
}

/// What both halves share.
#[derive(Debug)]
struct Core {
    /// Before the link: it must not see the end of its input before it is ended itself.
    running: Mutex<Option<Running>>,
    peer: String,
    stop: Stop,
    shared_stop: Stop,
    /// All but a file that is written has one.
    link: Option<Link>,
    session: Option<Session>,
}

impl Channel {
    pub(crate) fn of_link(
        link: Link,
        tls: Option<(Session, Inbox)>,
        running: Option<Running>,
        direction: Direction,
    ) -> Self {
        let (session, inbox) = tls.unzip();
        let core = Core {
            running: Mutex::new(running),
            peer: link.peer.clone(),
            stop: link.stop.clone(),
            shared_stop: link.shared_stop.clone(),
            link: Some(link),
            session,
        };
        Self {
            core: Arc::new(core),
            direction,
            inbox: inbox.unwrap_or_default(),
            file: None,
        }
    }

    pub(crate) fn of_file(file: StreamFile, peer: String, shared_stop: Stop) -> io::Result<Self> {
        let core = Core {
            running: Mutex::new(None),
            peer,
            stop: Stop::new()?,
            shared_stop,
            link: None,
            session: None,
        };
        Ok(Self {
            core: Arc::new(core),
            direction: Direction::Out,
            inbox: Inbox::default(),
            file: Some(file),
        })
    }

    /// Whether it goes both ways, so that there can be a return path.
    pub fn can_return(&self) -> bool {
        self.core
            .link
            .as_ref()
            .is_some_and(|link| link.kind == LinkKind::Socket)
    }

    /// Whether it is secured by TLS.
    pub fn is_tls(&self) -> bool {
        self.core.session.is_some()
    }

    /// Who is at the other end, for messages: an address as [`Address`](crate::Address) prints it.
    pub fn peer(&self) -> &str {
        &self.core.peer
    }

    /// What kind it is, for messages: `tcp`, `tcp with TLS`, `file` ...
    pub fn kind(&self) -> String {
        let transport = self.core.peer.split(':').next().unwrap_or_default();
        if self.is_tls() {
            format!("{transport} with TLS")
        } else {
            transport.to_owned()
        }
    }

    /// To end it from any thread.
    pub fn handle(&self) -> Handle {
        Handle {
            core: Arc::downgrade(&self.core),
            stop: self.core.stop.clone(),
        }
    }

    /// Its two halves, for use in two threads.
    pub fn split(self) -> (Reader, Writer) {
        let both = self.can_return();
        let has = |direction| both || self.direction == direction;
        let core = |direction| has(direction).then(|| self.core.clone());
        let reader = Reader {
            core: core(Direction::In),
            inbox: self.inbox,
        };
        let writer = Writer {
            core: core(Direction::Out),
            file: self.file,
        };
        (reader, writer)
    }
}

/// Ends a channel from any thread; does not keep it open.
#[derive(Clone, Debug)]
pub struct Handle {
    core: Weak<Core>,
    stop: Stop,
}

impl Handle {
    /// Ends both directions for good: what blocks in a read or a write, here or at the peer, ends
    /// at once, here with [`Stopped`](ChannelError::Stopped).
    pub fn shutdown(&self) {
        self.stop.stop();
        self.with_link(Link::shutdown);
    }

    /// Does that with the link, if it is still there.
    fn with_link(&self, act: impl FnOnce(&Link)) {
        let core = self.core.upgrade();
        if let Some(link) = core.as_ref().and_then(|core| core.link.as_ref()) {
            act(link);
        }
    }

    /// Ends it after last words: here as [`Self::shutdown`] does, while the peer reads to the end of
    /// what was written, whatever it sends meanwhile. Blocks until it has ended its own direction, for
    /// at most so long.
    pub fn hang_up(&self, within: Duration) {
        self.stop.stop();
        self.with_link(|link| link.hang_up(within));
    }

    /// Changes how long the peer may be silent; none: for ever, as while an operator decides. The
    /// kernel's own look for dead hosts stays as it was set up.
    pub fn set_silence(&self, silence: Option<Duration>) {
        self.with_link(|link| link.set_silence(silence));
    }

    /// From now on a guest stands still until the peer takes bytes, or no longer. Meanwhile pipes are
    /// bounded by the silence as sockets are: a command may wait as long as it likes, a guest not for
    /// a command.
    pub fn set_guest_waits(&self, waits: bool) {
        self.with_link(|link| link.set_guest_waits(waits));
    }
}

impl Core {
    fn stops(&self) -> [&Stop; 2] {
        [&self.stop, &self.shared_stop]
    }

    fn take_running(&self) -> Option<Running> {
        self.running.lock().take()
    }

    /// Closes the link, then waits for the command, if there is one.
    fn close(self: Arc<Self>) -> io::Result<()> {
        let running = self.take_running();
        let (stop, shared_stop) = (self.stop.clone(), self.shared_stop.clone());
        drop(self);
        match running {
            Some(running) => running.finish([&stop, &shared_stop]),
            None => Ok(()),
        }
    }
}

/// The half that reads.
#[derive(Debug)]
pub struct Reader {
    core: Option<Arc<Core>>,
    inbox: Inbox,
}

impl Reader {
    /// Ends reading: an `exec:` command is waited for, and that it failed is an error (but not
    /// that it had more to say).
    ///
    /// # Errors
    ///
    /// [`Command`](ChannelError::Command), [`Stopped`](ChannelError::Stopped).
    pub fn finish(mut self) -> io::Result<()> {
        self.core.take().map_or(Ok(()), Core::close)
    }

    /// The descriptor, where its bytes are those of the stream (not with TLS). It does not block:
    /// on `EAGAIN`, [`Self::wait`].
    pub fn plain_fd(&self) -> Option<BorrowedFd<'_>> {
        plain_fd(self.core.as_deref())
    }

    /// Whether bytes can come straight to where they belong: it is a socket, without TLS.
    pub fn is_direct(&self) -> bool {
        is_direct(self.core.as_deref())
    }

    /// As a read, straight to `places`, and to `rest` what comes behind; only if it
    /// [`is_direct`](Self::is_direct).
    ///
    /// # Errors
    ///
    /// As of a read; `Unsupported` if it is not direct.
    pub fn receive(&mut self, places: &mut Places<'_>, rest: &mut [u8]) -> io::Result<usize> {
        bare_link(self.core.as_deref())?.receive(places, rest)
    }

    /// Waits until there is something to read, as a read does.
    ///
    /// # Errors
    ///
    /// As of a read.
    pub fn wait(&self) -> io::Result<()> {
        link(self.core.as_deref())?
            .0
            .wait(PollFlags::IN, Instant::now())
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (link, session) = link(self.core.as_deref())?;
        match session {
            Some(session) => session.read(link, &mut self.inbox, into),
            None => link.read(into),
        }
    }
}

/// The half that writes. Nothing is buffered: give it large pieces, 64 KiB or more with TLS.
#[derive(Debug)]
pub struct Writer {
    core: Option<Arc<Core>>,
    file: Option<StreamFile>,
}

impl Writer {
    /// Waits until what was written so far is on the disk, where a file is written; so that a disk
    /// that fails does so before the last bytes, which make the stream a whole one.
    ///
    /// # Errors
    ///
    /// [`File`](ChannelError::File), [`Stopped`](ChannelError::Stopped), or the host's.
    pub fn settle(&mut self) -> io::Result<()> {
        match (&self.file, self.core.as_deref()) {
            (Some(file), Some(core)) => file.settle(core.stops()),
            (
                None,
                Some(Core {
                    link: Some(link), ..
                }),
            ) => link.sync(),
            _ => Ok(()),
        }
    }

    /// Ends the stream as a whole one: the peer reads to its end, TLS says that it is the end; a
    /// file is synced and gets its name; a command is waited for, and its failure is an error.
    ///
    /// A file that has its name is there, whatever fails then: it is no error, but given back, if
    /// it is not sure that the name outlives a crash of the host.
    ///
    /// # Errors
    ///
    /// [`Command`](ChannelError::Command); [`File`](ChannelError::File), if there is none, and
    /// [`FileInDoubt`](ChannelError::FileInDoubt), if there may be one; and those of a write.
    pub fn finish(mut self) -> io::Result<Option<ChannelError>> {
        let Some(core) = self.core.take() else {
            return Err(one_way());
        };
        if let Some(file) = self.file.take() {
            return file.finish(core.stops());
        }
        if let Some(link) = &core.link {
            if let Some(session) = &core.session {
                session.close(link)?;
            }
            link.end_writes()?;
        }
        core.close().map(|()| None)
    }

    /// The descriptor, where its bytes are those of the stream (not with TLS, not that of a file
    /// without a name). It does not block: on `EAGAIN`, [`Self::wait`].
    pub fn plain_fd(&self) -> Option<BorrowedFd<'_>> {
        plain_fd(self.core.as_deref())
    }

    /// Whether it is a file that is synced at its end: what is written lies in memory until then.
    pub fn is_file(&self) -> bool {
        let link = self.core.as_deref().and_then(|core| core.link.as_ref());
        self.file.is_some() || link.is_some_and(|link| link.kind == LinkKind::File)
    }

    /// Bytes that are written and that nobody has taken yet, where that can be known: those in a pipe.
    pub fn held_bytes(&self) -> u64 {
        let pipe = self.core.as_deref().and_then(|core| core.link.as_ref());
        pipe.map_or(0, Link::held_bytes)
    }

    /// Whether bytes can go straight from where they lie: it is a socket, without TLS.
    pub fn is_direct(&self) -> bool {
        is_direct(self.core.as_deref())
    }

    /// As a write of `head` and the places behind it, which are shortened by what went; only if it
    /// [`is_direct`](Self::is_direct).
    ///
    /// # Errors
    ///
    /// As of a write; `Unsupported` if it is not direct.
    pub fn send(&mut self, places: &mut Places<'_>, head: &mut &[u8]) -> io::Result<usize> {
        bare_link(self.core.as_deref())?.send(places, head)
    }

    /// Waits until something can be written, as a write does.
    ///
    /// # Errors
    ///
    /// As of a write.
    pub fn wait(&self) -> io::Result<()> {
        link(self.core.as_deref())?
            .0
            .wait(PollFlags::OUT, Instant::now())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if let (Some(file), Some(core)) = (&mut self.file, &self.core) {
            return file.write(pieces, core.stops());
        }
        let (link, session) = link(self.core.as_deref())?;
        match session {
            Some(session) => session.write(link, pieces),
            None => link.write(pieces),
        }
    }

    /// Nothing to do.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn link(core: Option<&Core>) -> io::Result<(&Link, Option<&Session>)> {
    let core = core.ok_or_else(one_way)?;
    let link = core.link.as_ref().ok_or_else(one_way)?;
    Ok((link, core.session.as_ref()))
}

fn plain_fd(core: Option<&Core>) -> Option<BorrowedFd<'_>> {
    match core? {
        core if core.session.is_some() => None,
        core => Some(core.link.as_ref()?.as_fd()),
    }
}

fn is_direct(core: Option<&Core>) -> bool {
    bare_link(core).is_ok()
}

/// The socket, where nothing is between it and the stream.
fn bare_link(core: Option<&Core>) -> io::Result<&Link> {
    match link(core)? {
        (link, None) if link.is_socket() => Ok(link),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn one_way() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this channel goes the other way only",
    )
}
