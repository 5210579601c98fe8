//! Sockets that listen.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use paguro_sys::VsockAddr;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, socket_with, sockopt};

use crate::socket::{FLAGS, family, named, resolve};
use crate::{Address, ChannelError, Options};

/// Connections that may wait to be accepted: as many as there may be multifd channels.
const BACKLOG: i32 = 256;

/// Sockets that listen there, one for each address that a name means, and where they do.
pub(crate) fn listen(
    address: &Address,
    options: &Options,
) -> Result<(Vec<OwnedFd>, Address), ChannelError> {
    let text = address.to_string();
    let io = |error: io::Error| ChannelError::of_io("listen at", &text, error);
    let listening = match address {
        Address::Tcp { host, port } => {
            let until = Instant::now() + options.connect_timeout;
            let stops = [&options.stop, &options.stop];
            if host.is_empty() {
                return listen_anywhere(*port).map_err(|error| io(error.into()));
            }
            let found = resolve(host, *port, stops, until)?;
            let found = found.ok_or(ChannelError::Timeout {
                doing: "resolve the name in",
                address: text.clone(),
                within: options.connect_timeout,
            })?;
            return listen_at_all(host, &found).map_err(|error| io(error.into()));
        }
        Address::Unix(path) => {
            SocketAddrUnix::new(path).and_then(|address| listen_one(AddressFamily::UNIX, &address))
        }
        Address::Vsock { cid, port } => {
            let any = |number: u32| if number == 0 { VsockAddr::ANY } else { number };
            let (cid, port) = (*cid, any(*port));
            listen_one(AddressFamily::VSOCK, &VsockAddr { cid, port })
        }
        Address::Fd(_) | Address::Exec(_) | Address::File { .. } => Err(Errno::INVAL),
    };
    let socket = listening.map_err(|error| io(error.into()))?;
    let local = rustix::net::getsockname(&socket).map_err(|error| io(error.into()))?;
    let local = named(&local).unwrap_or_else(|| address.clone());
    Ok((vec![socket], local))
}

/// Whatever address of this host somebody comes to, of either family.
fn listen_anywhere(port: u16) -> Result<(Vec<OwnedFd>, Address), Errno> {
    let of = |ip: IpAddr| listen_tcp(SocketAddr::new(ip, port), Some(false));
    let socket = match of(Ipv6Addr::UNSPECIFIED.into()) {
        // For hosts that lack this family, not for ports that are taken.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => of(Ipv4Addr::UNSPECIFIED.into())?,
        socket => socket?,
    };
    let local = local_address(&socket)?;
    Ok((
        vec![socket],
        tcp(local.ip().to_canonical().to_string(), local),
    ))
}

/// At all addresses of a name that are of this host, and at the same port of each: who comes to the
/// name takes whichever he likes best. Where any port will do, one that is free at some of them only is
/// not taken, and another one tried.
pub(crate) fn listen_at_all(
    host: &str,
    addresses: &[SocketAddr],
) -> Result<(Vec<OwnedFd>, Address), Errno> {
    const TRIES: usize = 16;
    let any_port = addresses.iter().all(|address| address.port() == 0);
    let mut tries = 1;
    loop {
        match try_at_all(addresses) {
            Err(Errno::ADDRINUSE) if any_port && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
            Ok(sockets) => {
                let local = local_address(&sockets[0])?;
                let host = match sockets.len() {
                    1 => local.ip().to_canonical().to_string(),
                    _ => host.to_owned(),
                };
                return Ok((sockets, tcp(host, local)));
            }
        }
    }
}

/// At least one socket.
fn try_at_all(addresses: &[SocketAddr]) -> Result<Vec<OwnedFd>, Errno> {
    // One socket for each family then, and none for both.
    let alone = (addresses.len() > 1).then_some(true);
    let (mut sockets, mut port, mut absent) = (Vec::new(), 0, Errno::ADDRNOTAVAIL);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            continue;
        }
        let mut address = *address;
        if address.port() == 0 {
            address.set_port(port);
        }
        match listen_tcp(address, alone) {
            Ok(socket) => {
                port = local_address(&socket)?.port();
                sockets.push(socket);
            }
            Err(error @ (Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => absent = error,
            Err(error) => return Err(error),
        }
    }
    if sockets.is_empty() {
        Err(absent)
    } else {
        Ok(sockets)
    }
}

fn local_address(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(rustix::net::getsockname(socket)?)
}

fn tcp(host: String, at: SocketAddr) -> Address {
    let port = at.port();
    Address::Tcp { host, port }
}

/// `alone`: whether a socket for IPv6 is for nothing else; none: as this host has it.
fn listen_tcp(address: SocketAddr, alone: Option<bool>) -> Result<OwnedFd, Errno> {
    let socket = socket_with(family(&address), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if let (SocketAddr::V6(_), Some(alone)) = (address, alone) {
        sockopt::set_ipv6_v6only(&socket, alone)?;
    }
    listen_with(socket, &address)
}

fn listen_one(family: AddressFamily, address: &impl SocketAddrArg) -> Result<OwnedFd, Errno> {
    listen_with(
        socket_with(family, SocketType::STREAM, FLAGS, None)?,
        address,
    )
}

fn listen_with(socket: OwnedFd, address: &impl SocketAddrArg) -> Result<OwnedFd, Errno> {
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// What stands at the name of a unix socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnixName {
    Free,
    /// A socket that nobody listens at.
    Stale,
    /// A socket that somebody listens at.
    Used,
    /// Something else.
    Other,
}

/// Looks without making a connection, which the listener would take for a migration: a datagram
/// socket cannot connect to a stream socket, and the error says whether there is one.
pub(crate) fn look_at(path: &Path) -> io::Result<UnixName> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(UnixName::Free),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => return Ok(UnixName::Other),
        Ok(_) => {}
    }
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, FLAGS, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(UnixName::Stale),
        Err(Errno::NOENT) => Ok(UnixName::Free),
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(UnixName::Used),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn addresses(port: u16) -> [SocketAddr; 3] {
        let (six, four) = (Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into());
        // As a resolver may tell them, one of them twice.
        [(six, port), (four, port), (four, port)].map(|(ip, port): (IpAddr, u16)| (ip, port).into())
    }

    /// Both families, or a printed reason.
    fn has_both() -> bool {
        let has = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        if !has {
            paguro_testkit::skipped("this host has no IPv6");
        }
        has
    }

    #[test]
    fn a_name_of_both_families_is_listened_at_in_both() {
        if !has_both() {
            return;
        }
        let (sockets, local) = listen_at_all("both.test", &addresses(0)).unwrap();
        let Address::Tcp { host, port } = &local else {
            panic!("{local}");
        };
        assert_eq!((sockets.len(), host.as_str()), (2, "both.test"));
        for ip in addresses(*port) {
            TcpStream::connect(ip).unwrap();
        }
        // Nobody is told that it listens where somebody else does.
        let taken = listen_at_all("both.test", &addresses(*port));
        assert_eq!(taken.unwrap_err(), Errno::ADDRINUSE);
    }

    #[test]
    fn addresses_of_others_are_left_out_and_one_at_least_is_here() {
        let away: SocketAddr = ([192, 0, 2, 1], 0).into();
        let here: SocketAddr = ([127, 0, 0, 1], 0).into();
        let (sockets, local) = listen_at_all("some.test", &[away, here]).unwrap();
        assert_eq!(sockets.len(), 1);
        assert!(matches!(local, Address::Tcp { host, .. } if host == "127.0.0.1"));
        let none = listen_at_all("away.test", &[away]);
        assert_eq!(none.unwrap_err(), Errno::ADDRNOTAVAIL);
    }

    #[test]
    fn without_a_name_it_is_listened_everywhere() {
        if !has_both() {
            return;
        }
        let (sockets, local) = listen_anywhere(0).unwrap();
        let Address::Tcp { port, .. } = local else {
            panic!("{local}");
        };
        assert_eq!(sockets.len(), 1);
        for ip in addresses(port) {
            TcpStream::connect(ip).unwrap();
        }
    }
}
