//! Channels to a destination.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::command::{Direction, Running};
use crate::halves::Channel;
use crate::link::{Link, LinkKind};
use crate::stream_file::StreamFile;
use crate::tls::{self, Inbox, Session, TlsError};
use crate::{Address, ChannelError, Options, Stop, fd, socket};

/// Makes channels to a destination.
#[derive(Debug)]
pub enum Outgoing {}

impl Outgoing {
    /// Connects, within `connect_timeout`, TLS included.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]; nothing is left of the attempt.
    pub fn connect(address: &Address, options: &Options) -> Result<Channel, ChannelError> {
        let text = address.to_string();
        let failed = |error| ChannelError::of_io(ChannelError::CONNECT, &text, error);
        refuse_tls(address, options)?;
        match address {
            Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. } => {
                let until = Instant::now() + options.connect_timeout;
                let stop = Stop::new().map_err(failed)?;
                let socket = socket::connect(address, options, &stop)?;
                of_socket(socket, address, options, until)
            }
            Address::Fd(number) => {
                let (descriptor, kind) = fd::take(*number, Direction::Out)?;
                if kind == LinkKind::Socket {
                    let until = Instant::now() + options.connect_timeout;
                    return of_socket(descriptor, address, options, until);
                }
                let link = Link::new(descriptor, kind, text.clone(), options).map_err(failed)?;
                // What cannot be synced at the end is known now.
                link.sync()
                    .map_err(|error| ChannelError::of_io("sync", &text, error))?;
                Ok(Channel::of_link(link, None, None, Direction::Out))
            }
            Address::Exec(arguments) => {
                let (running, pipe) = Running::start(arguments, &text, Direction::Out)?;
                let link =
                    Link::new(pipe, LinkKind::Pipe, text.clone(), options).map_err(failed)?;
                Ok(Channel::of_link(link, None, Some(running), Direction::Out))
            }
            Address::File { path, offset } => {
                let file = StreamFile::create(path, *offset)?;
                Channel::of_file(file, text.clone(), options.stop.clone()).map_err(failed)
            }
        }
    }
}

fn of_socket(
    socket: OwnedFd,
    address: &Address,
    options: &Options,
    until: Instant,
) -> Result<Channel, ChannelError> {
    let text = address.to_string();
    let failed = |error| ChannelError::of_io("set up", &text, error);
    socket::set_up(socket.as_fd(), options.silence).map_err(failed)?;
    let link = Link::new(socket, LinkKind::Socket, text.clone(), options).map_err(failed)?;
    let tls = match &options.tls {
        None => None,
        Some(tls) => {
            let host = match address {
                Address::Tcp { host, .. } => host.as_str(),
                _ => "",
            };
            let connection = tls::client(tls, host).map_err(|source| tls_error(&text, source))?;
            Some(secure(&link, connection, options, until)?)
        }
    };
    Ok(Channel::of_link(link, tls, None, Direction::Out))
}

/// The TLS handshake.
pub(crate) fn secure(
    link: &Link,
    connection: tls::Connection,
    options: &Options,
    until: Instant,
) -> Result<(Session, Inbox), ChannelError> {
    Session::start(link, connection, until).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut if ChannelError::inside(&error).is_none() => {
            ChannelError::Timeout {
                doing: ChannelError::AGREE_ON_TLS,
                address: link.peer.clone(),
                within: options.connect_timeout,
            }
        }
        _ => ChannelError::of_io(ChannelError::AGREE_ON_TLS, &link.peer, error),
    })
}

pub(crate) fn tls_error(peer: &str, source: TlsError) -> ChannelError {
    ChannelError::Tls {
        peer: peer.to_owned(),
        source,
    }
}

/// TLS needs both directions, and to be built in.
pub(crate) fn refuse_tls(address: &Address, options: &Options) -> Result<(), ChannelError> {
    if options.tls.is_some() {
        tls::check_built_in().map_err(|source| tls_error(&address.to_string(), source))?;
    }
    match address {
        Address::Exec(_) | Address::File { .. } if options.tls.is_some() => {
            Err(ChannelError::Unsuitable {
                address: address.to_string(),
                rule: "TLS needs a socket",
            })
        }
        _ => Ok(()),
    }
}
