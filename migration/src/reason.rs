//! What the control side is told of an error.

use std::io;

use paguro_wire::DecodeError;

use crate::channel::ChannelError;
use crate::switchover::Reason;

/// Of a read or a write that failed.
pub(crate) fn of_io(error: &io::Error) -> Reason {
    match ChannelError::inside(error) {
        Some(ChannelError::Silent { .. }) => Reason::Silence,
        _ => Reason::Channel,
    }
}

/// Of what the peer sent.
pub(crate) fn of_decoding(error: &DecodeError) -> Reason {
    match error {
        DecodeError::Read { source, .. } => of_io(source),
        DecodeError::Truncated { .. } => Reason::Channel,
        _ => Reason::OutOfTurn,
    }
}
