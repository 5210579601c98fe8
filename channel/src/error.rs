//! What can go wrong with a channel.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::AddressError;
use crate::tls::TlsError;

/// A channel could not be made, or ended badly.
///
/// Reads and writes fail with [`io::Error`]; where the reason is one of these it is inside, and
/// [`ChannelError::inside`] finds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The caller's: no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The caller's: this cannot be done there.
    #[error("{address}: {rule}")]
    Unsuitable {
        /// Where.
        address: String,
        /// What is possible.
        rule: &'static str,
    },
    /// The host's or the network's.
    #[error("cannot {doing} {address}")]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer's or the network's: nothing came of it in time.
    #[error("could not {doing} {address} within {:.1} s", .within.as_secs_f64())]
    Timeout {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Where.
        address: String,
        /// The time that was given.
        within: Duration,
    },
    /// The peer's or the network's: it neither sent nor took a byte for the time configured.
    #[error("{peer} was silent for {:.1} s", .silence.as_secs_f64())]
    Silent {
        /// Who.
        peer: String,
        /// How long.
        silence: Duration,
    },
    /// Stopped by this side.
    #[error("the channel was shut down")]
    Stopped,
    /// The peer's, or the certificates'.
    #[error("TLS with {peer} failed")]
    Tls {
        /// With whom.
        peer: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The command's: it did not end well.
    #[error("command {command:?} failed: {status}")]
    Command {
        /// Which.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The caller's: the command has ended, and this process is one whose children leave no status, as
    /// SIGCHLD is ignored.
    #[error(
        "how command {command:?} ended cannot be known: SIGCHLD is ignored, and children leave no status"
    )]
    StatusUnknown {
        /// Which.
        command: String,
    },
    /// The host's, or the caller's where a [`TargetError`](paguro_newfile::TargetError) is inside: a file.
    #[error("cannot {doing} {path}")]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's: a file that is whole was to get its name, and nobody knows whether it did.
    #[error("whether {path} was written is not known")]
    FileInDoubt {
        /// Which.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl ChannelError {
    /// What was `doing` when a peer was connected to.
    pub const CONNECT: &str = "connect to";
    /// What was `doing` when the host of a peer was looked for.
    pub const FIND_HOST: &str = "find the host";
    /// What was `doing` in the handshake of TLS.
    pub const AGREE_ON_TLS: &str = "agree on TLS with";

    /// The reason inside an error of a read or write, if it is one of these.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether this side asked for the end.
    pub fn is_stop(&self) -> bool {
        match self {
            Self::Stopped => true,
            Self::Io { source, .. } | Self::File { source, .. } => {
                Self::inside(source).is_some_and(Self::is_stop)
            }
            _ => false,
        }
    }

    /// As the error of a read or write.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Silent { .. } | Self::Timeout { .. } => io::ErrorKind::TimedOut,
            Self::Stopped => io::ErrorKind::ConnectionAborted,
            Self::Tls {
                source: TlsError::Truncated,
                ..
            } => io::ErrorKind::UnexpectedEof,
            Self::Tls { .. } => io::ErrorKind::InvalidData,
            Self::Io { source, .. }
            | Self::File { source, .. }
            | Self::FileInDoubt { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }

    /// What is inside, or `doing` failed at `address`.
    pub(crate) fn of_io(doing: &'static str, address: &str, error: io::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(inside) => return inside,
            Err(error) => error,
        };
        Self::Io {
            doing,
            address: address.to_owned(),
            source: error,
        }
    }
}
