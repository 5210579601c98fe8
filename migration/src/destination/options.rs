//! How a machine is let in.

use std::time::Duration;

use crate::multifd::Multifd;
use crate::switchover::MigrationId;

/// How the RAM of a machine comes in: what the source's [`Mode`](crate::source::Mode) is on this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// Its pages come while the guest runs there, and the rest of them when it stands still.
    Precopy {
        /// They come over connections of their own, as many as the source was told of; none: in the
        /// stream.
        multifd: Option<Multifd>,
    },
    /// It was [handed over](crate::handover), and the stream is that of this migration and no other. No
    /// page is in it.
    HandOver {
        /// Whose RAM it was.
        migration: MigrationId,
    },
}

impl Default for ReceiveMode {
    fn default() -> Self {
        Self::Precopy { multifd: None }
    }
}

impl ReceiveMode {
    pub(super) fn multifd(self) -> Option<Multifd> {
        match self {
            Self::Precopy { multifd } => multifd,
            Self::HandOver { .. } => None,
        }
    }

    /// Whose RAM was handed over.
    pub(super) fn handed_over(self) -> Option<MigrationId> {
        match self {
            Self::Precopy { .. } => None,
            Self::HandOver { migration } => Some(migration),
        }
    }
}

/// How a machine is let in.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// The channel can answer: false for commands, pipes and files.
    pub return_path: bool,
    /// Stay paused when all is done, until the operator's `cont`.
    pub paused: bool,
    /// How long the source may be silent, and three times as long an element of the stream may take;
    /// none: for ever.
    pub silence: Option<Duration>,
    /// How RAM comes.
    pub mode: ReceiveMode,
    /// For how long a source that may be in doubt is listened for, once the decision fell.
    pub linger: Duration,
    /// How long multifd channels are waited for, and they for the main one.
    pub connect_timeout: Duration,
}

impl ReceiveOptions {
    /// 10 s of silence, and a minute for a source in doubt.
    pub fn new(return_path: bool, paused: bool) -> Self {
        Self {
            return_path,
            paused,
            silence: Some(Duration::from_secs(10)),
            mode: ReceiveMode::default(),
            linger: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
        }
    }
}
