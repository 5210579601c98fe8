//! What the control side is told of an error, and what is told of its decision.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use paguro_wire::DecodeError;

use crate::channel::ChannelError;
use crate::switchover::Reason;

/// A migration that came to nothing, as one of its sides knows it. It reads as its cause does, with the
/// same sources, or as what the control side knows where there is none.
#[derive(Debug)]
pub struct Ended<E> {
    /// What the control side knows of it.
    pub why: Reason,
    /// The first error.
    pub cause: Option<Arc<E>>,
}

impl<E: Error> fmt::Display for Ended<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => cause.fmt(f),
            None => self.why.fmt(f),
        }
    }
}

impl<E: Error> Error for Ended<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref()?.source()
    }
}

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
