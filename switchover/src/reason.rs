//! Why a migration ended otherwise than hoped for.

use crate::outcome::{SHUT_ABANDONED, SHUT_FAILED};

/// Why. What exactly the channel or the machine said is kept by whoever drives the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The network's, or the peer's: the channel was closed.
    #[error("the channel to the other side was lost")]
    Channel,
    /// The network's, or the peer's: it neither sent nor took anything.
    #[error("the other side was silent for too long")]
    Silence,
    /// Ours: the machine, its tracker, a device, or a thread.
    #[error("this side failed")]
    Here,
    /// The peer's: it said that it failed.
    #[error("the destination failed{}", code_in_words(*code))]
    Peer {
        /// Of its SHUT.
        code: u32,
    },
    /// The peer's: it said something that it must not say there.
    #[error("the other side spoke out of turn")]
    OutOfTurn,
    /// Nobody's: EOF was refused by the channel as a whole.
    #[error("the permission to run could not be sent")]
    Withheld,
    /// Nobody's: the destination gave up its copy and said so.
    #[error("the destination gave up its copy")]
    Abandoned,
    /// The operator's: he cancelled it.
    #[error("the migration was cancelled")]
    Cancelled,
    /// The operator's: `cont`.
    #[error("the operator let this side run")]
    Operator,
    /// The operator's: `quit`.
    #[error("the operator ended this side")]
    Quit,
    /// The source's: it told the destination to forget it.
    #[error("the source runs on itself")]
    TakenBack,
}

/// What a SHUT says beyond that it is none that confirms.
fn code_in_words(code: u32) -> String {
    match code {
        SHUT_FAILED => String::new(),
        SHUT_ABANDONED => ": it gave up what had come, and says why itself".to_owned(),
        other => format!(" (code {other})"),
    }
}
