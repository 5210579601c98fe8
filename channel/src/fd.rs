//! Inherited descriptors: what they are, and whether they go the right way.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};

use crate::command::Direction;
use crate::link::LinkKind;
use crate::{Address, ChannelError, socket};

/// Takes the descriptor `number` over.
pub(crate) fn take(number: i32, direction: Direction) -> Result<(OwnedFd, LinkKind), ChannelError> {
    let address = Address::Fd(number).to_string();
    let failed = |source| ChannelError::Io {
        doing: "take",
        address: address.clone(),
        source,
    };
    let unsuitable = |rule| ChannelError::Unsuitable {
        address: address.clone(),
        rule,
    };
    let fd = paguro_sys::take_inherited(number).map_err(failed)?;
    if socket::is_socket(fd.as_fd()) {
        let kind = rustix::net::sockopt::socket_type(&fd).map_err(|error| failed(error.into()))?;
        return if kind == rustix::net::SocketType::STREAM {
            Ok((fd, LinkKind::Socket))
        } else {
            Err(unsuitable("the socket is not one of streams"))
        };
    }
    let mode = rustix::fs::fcntl_getfl(&fd).map_err(|error| failed(error.into()))? & OFlags::RWMODE;
    match direction {
        Direction::Out if mode == OFlags::RDONLY => {
            return Err(unsuitable("it can only be read, and should be written"));
        }
        Direction::In if mode == OFlags::WRONLY => {
            return Err(unsuitable("it can only be written, and should be read"));
        }
        _ => {}
    }
    let file = File::from(fd);
    let meta = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::RegularFile => Ok((file.into(), LinkKind::File)),
        _ => Ok((file.into(), LinkKind::Pipe)),
    }
}
