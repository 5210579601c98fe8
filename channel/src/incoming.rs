//! Channels from a source.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::command::{Direction, Running};
use crate::halves::Channel;
use crate::link::{Link, LinkKind};
use crate::listening::UnixName;
use crate::outgoing::{refuse_tls, secure, tls_error};
use crate::wait::wait_for_any;
use crate::{Address, ChannelError, Options, Stop, fd, listening, socket, tls};

/// Opens what a source connects to.
#[derive(Debug)]
pub enum Incoming {}

impl Incoming {
    /// Listens; for what cannot be listened to, takes it as the one channel there will be. The
    /// certificates are read now.
    ///
    /// # Errors
    ///
    /// [`ChannelError`].
    pub fn listen(address: &Address, options: &Options) -> Result<Listener, ChannelError> {
        refuse_tls(address, options)?;
        let text = address.to_string();
        let failed = |error| ChannelError::of_io("listen at", &text, error);
        let tls = match &options.tls {
            Some(tls) => Some(tls::Server::new(tls).map_err(|source| tls_error(&text, source))?),
            None => None,
        };
        let (door, local) = match address {
            Address::Tcp { .. } | Address::Vsock { .. } => {
                let (sockets, local) = listening::listen(address, options)?;
                (Door::Sockets(sockets, None), local)
            }
            Address::Unix(path) => {
                let (sockets, local) = listen_unix(path, address, options)?;
                let name = Name::of(path).map_err(failed)?;
                (Door::Sockets(sockets, Some(name)), local)
            }
            Address::Fd(number) => match fd::take(*number, Direction::In)? {
                (fd, LinkKind::Socket) => {
                    rustix::io::ioctl_fionbio(&fd, true).map_err(|error| failed(error.into()))?;
                    let listens = rustix::net::sockopt::socket_acceptconn(&fd);
                    if listens.map_err(|error| failed(error.into()))? {
                        (Door::Sockets(vec![fd], None), address.clone())
                    } else {
                        (Door::once(One::Socket(fd)), address.clone())
                    }
                }
                (fd, kind) => (Door::once(One::Fd(fd, kind)), address.clone()),
            },
            Address::Exec(arguments) => {
                let (running, pipe) = Running::start(arguments, &text, Direction::In)?;
                (Door::once(One::Command(running, pipe)), address.clone())
            }
            Address::File { path, offset } => {
                let file = open(path, *offset)?;
                (
                    Door::once(One::Fd(file.into(), LinkKind::File)),
                    address.clone(),
                )
            }
        };
        Ok(Listener {
            door,
            local,
            options: options.clone(),
            stop: Stop::new().map_err(failed)?,
            tls,
        })
    }
}

/// Waits for sources. Dropping it closes the door, and takes away the name of a unix socket.
#[derive(Debug)]
pub struct Listener {
    door: Door,
    local: Address,
    options: Options,
    stop: Stop,
    tls: Option<tls::Server>,
}

#[derive(Debug)]
enum Door {
    /// One for each address that was meant, with the name that goes when it closes.
    Sockets(
        Vec<OwnedFd>,
        #[expect(dead_code, reason = "dropped with the door")] Option<Name>,
    ),
    Once(Mutex<Option<One>>),
}

/// The one channel of what cannot be listened to.
#[derive(Debug)]
enum One {
    Socket(OwnedFd),
    Fd(OwnedFd, LinkKind),
    Command(Running, OwnedFd),
}

impl Door {
    fn once(one: One) -> Self {
        Self::Once(Mutex::new(Some(one)))
    }
}

impl Listener {
    /// Where it listens, with the port that the kernel chose.
    pub fn local_address(&self) -> &Address {
        &self.local
    }

    /// Ends [`Self::accept`], now and later, but no channel that was accepted.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// The next channel, TLS agreed on, or a [`ChannelError::Timeout`] when `within` is over (none:
    /// waits until stopped). A peer that fails at TLS is a [`ChannelError::Tls`] (or a timeout of
    /// its own): the next may do better, and the listener goes on. One peer at a time is talked
    /// to, for at most `connect_timeout`.
    ///
    /// # Errors
    ///
    /// [`ChannelError`].
    pub fn accept(&self, within: Option<Duration>) -> Result<Channel, ChannelError> {
        let text = self.local.to_string();
        let failed = |error| ChannelError::of_io("accept from", &text, error);
        match &self.door {
            Door::Sockets(listening, _) => {
                let until = within.map(|within| Instant::now() + within);
                let (socket, peer) =
                    self.next(listening, until)
                        .map_err(failed)?
                        .ok_or_else(|| ChannelError::Timeout {
                            doing: "accept a connection at",
                            address: text.clone(),
                            within: within.unwrap_or_default(),
                        })?;
                self.of_socket(socket, peer)
            }
            Door::Once(one) => {
                let one = one.lock().take();
                let (fd, kind, running) = match one {
                    Some(One::Socket(socket)) => return self.of_socket(socket, text),
                    Some(One::Fd(fd, kind)) => (fd, kind, None),
                    Some(One::Command(running, pipe)) => (pipe, LinkKind::Pipe, Some(running)),
                    None => {
                        return Err(ChannelError::Unsuitable {
                            address: text,
                            rule: "there is one channel only",
                        });
                    }
                };
                let link = Link::new(fd, kind, text.clone(), &self.options).map_err(failed)?;
                Ok(Channel::of_link(link, None, running, Direction::In))
            }
        }
    }

    /// A connection, and who it is.
    fn next(
        &self,
        listening: &[OwnedFd],
        until: Option<Instant>,
    ) -> io::Result<Option<(OwnedFd, String)>> {
        let stops = [&self.stop, &self.options.stop];
        loop {
            // Before trying, so that a stopped one accepts nothing.
            let Some(ready) = wait_for_any(listening, PollFlags::IN, stops, until)? else {
                return Ok(None);
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::acceptfrom_with(&listening[ready], flags) {
                Ok((socket, peer)) => {
                    let peer = peer.as_ref().and_then(socket::named);
                    let peer = peer.unwrap_or_else(|| self.local.clone()).to_string();
                    return Ok(Some((socket, peer)));
                }
                // It went away before it was taken.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn of_socket(&self, socket: OwnedFd, peer: String) -> Result<Channel, ChannelError> {
        let failed = |error| ChannelError::of_io("set up", &peer, error);
        let until = Instant::now() + self.options.connect_timeout;
        socket::set_up(socket.as_fd(), self.options.silence).map_err(failed)?;
        let mut link =
            Link::new(socket, LinkKind::Socket, peer.clone(), &self.options).map_err(failed)?;
        let tls = match &self.tls {
            Some(server) => {
                let connection = server.connection();
                let connection = connection.map_err(|error| tls_error(&peer, error))?;
                // While it shakes hands the listener's stop ends it.
                let own = std::mem::replace(&mut link.stop, self.stop.clone());
                let secured = secure(&link, connection, &self.options, until)?;
                link.stop = own;
                Some(secured)
            }
            None => None,
        };
        Ok(Channel::of_link(link, tls, None, Direction::In))
    }
}

/// The name of a unix socket, which goes when the door closes, if it is still the same.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Name {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path);
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (self.device, self.inode)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn listen_unix(
    path: &Path,
    address: &Address,
    options: &Options,
) -> Result<(Vec<OwnedFd>, Address), ChannelError> {
    let text = address.to_string();
    let failed = |error| ChannelError::of_io("listen at", &text, error);
    match listening::look_at(path).map_err(failed)? {
        UnixName::Free => {}
        UnixName::Stale => std::fs::remove_file(path).map_err(failed)?,
        UnixName::Used => return Err(failed(Errno::ADDRINUSE.into())),
        UnixName::Other => {
            return Err(ChannelError::Unsuitable {
                address: text,
                rule: "something that is no socket stands there",
            });
        }
    }
    listening::listen(address, options)
}

/// A file to be read as a stream.
fn open(path: &Path, offset: u64) -> Result<File, ChannelError> {
    let failed = |source| ChannelError::File {
        doing: "open",
        path: path.to_owned(),
        source,
    };
    // A named pipe would wait for its writer here.
    let mut options = OpenOptions::new();
    let opened = options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut file = opened.open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ChannelError::Unsuitable {
            address: format!("file:{}", path.display()),
            rule: "it is no regular file; exec: and fd: take the others",
        });
    }
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    Ok(file)
}
