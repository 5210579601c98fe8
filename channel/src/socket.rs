//! Sockets: made, connected within a time, and set up so that a dead peer is noticed.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use paguro_sys::VsockAddr;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt,
};

use crate::wait::{Waited, pause, wait_for};
use crate::{Address, ChannelError, Options, Stop};

/// Connects a socket, within `connect_timeout` in all.
pub(crate) fn connect(
    address: &Address,
    options: &Options,
    stop: &Stop,
) -> Result<OwnedFd, ChannelError> {
    let until = Instant::now() + options.connect_timeout;
    let stops = [stop, &options.stop];
    let text = address.to_string();
    let io = |error| ChannelError::of_io(ChannelError::CONNECT, &text, error);
    let late = || ChannelError::Timeout {
        doing: ChannelError::CONNECT,
        address: text.clone(),
        within: options.connect_timeout,
    };
    let connected = match address {
        Address::Tcp { host, port } if host.is_empty() || *port == 0 => {
            return Err(ChannelError::Unsuitable {
                address: text,
                rule: "a host and a port are needed to connect to",
            });
        }
        Address::Tcp { host, port } => {
            let addresses = resolve(host, *port, stops, until)?.ok_or_else(late)?;
            return first_of(&addresses, stops, until)
                .map_err(io)?
                .ok_or_else(late);
        }
        Address::Unix(path) => {
            let address = SocketAddrUnix::new(path).map_err(|error| io(error.into()))?;
            connect_one(AddressFamily::UNIX, &address, stops, until)
        }
        Address::Vsock { cid, port } => {
            let (cid, port) = (*cid, *port);
            connect_one(AddressFamily::VSOCK, &VsockAddr { cid, port }, stops, until)
        }
        Address::Fd(_) | Address::Exec(_) | Address::File { .. } => Ok(None),
    };
    connected.map_err(io)?.ok_or_else(late)
}

/// What can be said of a socket's address.
pub(crate) fn named(address: &SocketAddrAny) -> Option<Address> {
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(Address::Tcp {
            host: address.ip().to_canonical().to_string(),
            port: address.port(),
        });
    }
    let vsock = VsockAddr::of(address)?;
    let (cid, port) = (vsock.cid, vsock.port);
    Some(Address::Vsock { cid, port })
}

/// Whether it is a socket at all.
pub(crate) fn is_socket(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(fd).is_ok()
}

/// Settings of a connected socket; those that its kind does not have are skipped.
///
/// No delay (small messages in both directions would wait for acknowledgements, tens of
/// milliseconds in the pause), and the kernel's own look for a dead host: keep-alive while
/// nothing is on its way, `TCP_USER_TIMEOUT` while something is. Buffers are left to the kernel.
pub(crate) fn set_up(fd: BorrowedFd<'_>, silence: Option<Duration>) -> io::Result<()> {
    let domain = sockopt::socket_domain(fd)?;
    if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
        return Ok(());
    }
    sockopt::set_tcp_nodelay(fd, true)?;
    let Some(silence) = silence else {
        return Ok(());
    };
    let millis = u32::try_from(silence.as_millis())
        .unwrap_or(u32::MAX)
        .max(1);
    let seconds = |part: u64| Duration::from_secs((silence.as_secs() / part).clamp(1, 3600));
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, seconds(2))?;
    sockopt::set_tcp_keepintvl(fd, seconds(6))?;
    sockopt::set_tcp_keepcnt(fd, 3)?;
    sockopt::set_tcp_user_timeout(fd, millis)?;
    Ok(())
}

/// Addresses of a host. Asking for them cannot be interrupted, so a thread does it, and is left
/// to itself when nobody waits for it any more.
pub(crate) fn resolve(
    host: &str,
    port: u16,
    stops: [&Stop; 2],
    until: Instant,
) -> Result<Option<Vec<SocketAddr>>, ChannelError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Some(vec![(ip, port).into()]));
    }
    let failed = |source| ChannelError::Io {
        doing: ChannelError::FIND_HOST,
        address: host.to_owned(),
        source,
    };
    let (answer, answered) = sync_channel(1);
    let name = host.to_owned();
    paguro_sys::NewThread::named("resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs();
            let _ = answer.send(found.map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>()));
        })
        .map_err(failed)?;
    while Instant::now() < until {
        match answered.recv_timeout(TURN) {
            Ok(found) => return found.map(Some).map_err(failed),
            Err(RecvTimeoutError::Timeout) if stops.iter().any(|stop| stop.is_stopped()) => {
                return Err(ChannelError::Stopped);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed(io::ErrorKind::Other.into()));
            }
        }
    }
    Ok(None)
}

const MAX_ADDRESSES: usize = 16;
/// How often a stop is looked for where no descriptor can be waited for.
const TURN: Duration = Duration::from_millis(20);

/// Each gets its share of the time that is left, so that a dead one leaves some for the others.
fn first_of(
    addresses: &[SocketAddr],
    stops: [&Stop; 2],
    until: Instant,
) -> io::Result<Option<OwnedFd>> {
    let mut last = Err(io::ErrorKind::AddrNotAvailable.into());
    for (index, address) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - index) as u32;
        let family = family(address);
        last = match connect_one(family, address, stops, Instant::now() + share) {
            Ok(Some(socket)) => return Ok(Some(socket)),
            Err(error) if ChannelError::inside(&error).is_some() => return Err(error),
            failed => failed,
        };
    }
    last
}

/// None if it did not come about in time.
fn connect_one(
    family: AddressFamily,
    address: &impl SocketAddrArg,
    stops: [&Stop; 2],
    until: Instant,
) -> io::Result<Option<OwnedFd>> {
    let socket = socket_with(family, SocketType::STREAM, FLAGS, None)?;
    loop {
        match rustix::net::connect(&socket, address) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::INPROGRESS | Errno::INTR) => break,
            // A unix socket whose queue is full; there is nothing to wait for.
            Err(Errno::AGAIN) if family == AddressFamily::UNIX && Instant::now() < until => {
                pause(stops, TURN)?;
            }
            Err(Errno::AGAIN) if family == AddressFamily::UNIX => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    match wait_for(socket.as_fd(), PollFlags::OUT, stops, Some(until))? {
        Waited::Expired => Ok(None),
        Waited::Ready => {
            sockopt::socket_error(&socket)??;
            Ok(Some(socket))
        }
    }
}

/// Of every socket here.
pub(crate) const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

pub(crate) fn family(address: &SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}
