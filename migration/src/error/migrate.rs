//! What can go wrong with a migration, as its source sees it.

use std::io;
use std::sync::Arc;

use paguro_dirty::tracker::TrackerError;
use paguro_wire::stream::devices::EncodeError;
use paguro_wire::stream::ram::TableError;
use paguro_wire::{DecodeError, Fault};

use super::with_causes;
use crate::channel::ChannelError;
use crate::machine::MachineError;
use crate::reason::{self, Ended};
use crate::switchover::Reason;

/// A migration did not come to its end. Unless it says otherwise the guest is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The caller's: one is under way already.
    #[error("another snapshot or migration of this machine is under way")]
    Busy,
    /// The caller's: options that cannot work.
    #[error("{option} cannot be {value}: {rule}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it was.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// The channel could not be made, or ended badly.
    #[error("the channel to the destination failed")]
    Channel(#[source] ChannelError),
    /// The network's, or the destination's: the channel broke.
    #[error("cannot {doing} the destination")]
    Broken {
        /// What was tried, as a verb: "write to".
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination's, or the network's: what it says on the return path makes no sense, or
    /// does not come.
    #[error("{}", of_answer(.0))]
    Answer(#[source] DecodeError),
    /// The host's: writes cannot be tracked.
    #[error("writes to guest RAM cannot be tracked")]
    Tracker(#[source] TrackerError),
    /// The host's: it does not say which pages exist, of any block.
    #[error("cannot find out which pages of guest RAM exist")]
    Pages(#[source] io::Error),
    /// The host's: it does not say which pages exist.
    #[error("cannot find out which pages of RAM block {block} exist")]
    Presence {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source of RAM's: this machine is still being filled, and a page cannot be had.
    #[error("a page of RAM block {block} that has not arrived yet cannot be had")]
    Unarrived {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file's that RAM comes from: a page of it could not be read and is zeros here, or is another one.
    /// The guest is as it was before, which is not what it should be: it is to run nowhere.
    #[error("pages of guest RAM could not be read from the file that they are in, and are lost")]
    LostPages,
    /// The host's: it has no memory for the cache that was asked for.
    #[error("there is no memory for {bytes} bytes of the cache of xbzrle")]
    Cache {
        /// How much was asked for.
        bytes: usize,
        /// Why.
        #[source]
        source: std::collections::TryReserveError,
    },
    /// The machine's.
    #[error("the machine could not be saved")]
    Machine(#[source] MachineError),
    /// The machine's: RAM blocks that no stream can have.
    #[error("the machine's RAM does not fit the stream")]
    Blocks(#[source] TableError),
    /// The machine's: a RAM block changed its length meanwhile.
    #[error("the machine's RAM blocks changed during migration")]
    BlocksChanged,
    /// The machine's: device state that no stream can have.
    #[error("the machine's devices do not fit the stream")]
    Devices(#[source] EncodeError),
    /// The guest's: it writes faster than the channel takes it.
    #[error(
        "it did not converge within {after_s} s: the guest would stand still for {forecast_ms} ms"
    )]
    NotConverging {
        /// How long it was tried.
        after_s: u64,
        /// The last forecast.
        forecast_ms: u64,
    },
    /// RAM could not be handed over.
    #[error("RAM could not be handed over to the destination")]
    HandOver(#[source] crate::handover::HandOverError),
    /// It was given up for this reason.
    #[error("{0}")]
    GivenUp(Reason),
    /// It was given up, and this is what made it so.
    #[error(transparent)]
    Ended(Ended<MigrateError>),
    /// The operator's: he ended this side when the destination had been permitted to run. It may
    /// run the guest.
    #[error("this side was ended, and whether the destination runs the guest is not known")]
    LeftInDoubt,
    /// The host's: no thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Ours.
    #[error("a thread of the migration panicked: this is a bug in paguro")]
    Bug,
    /// The machine's: the migration came to nothing, and the guest, which was to run on here, stands
    /// still.
    #[error("{}", of_stuck(.failed))]
    NotResumed {
        /// Why it came to nothing, if that is an error.
        failed: Option<Arc<MigrateError>>,
        /// Why the guest does not run.
        #[source]
        source: MachineError,
    },
    /// Cancelled.
    #[error("the migration was cancelled")]
    Cancelled,
}

fn of_stuck(failed: &Option<Arc<MigrateError>>) -> String {
    const STUCK: &str = "the guest could not be resumed";
    match failed {
        Some(failed) => format!("{}; then {STUCK}", with_causes(failed)),
        None => STUCK.to_owned(),
    }
}

/// A destination that died has said nothing wrong.
fn of_answer(error: &DecodeError) -> &'static str {
    match error.fault() {
        Fault::Truncated => "the destination closed the channel",
        Fault::Host => "no answer came from the destination",
        _ => "the destination's answer makes no sense",
    }
}

impl MigrateError {
    /// An error of a read or write.
    pub(crate) fn broken(doing: &'static str, source: io::Error) -> Self {
        Self::Broken { doing, source }
    }

    /// Whether a write failed because nobody is there to read it, of which the return path may say more.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        let Self::Broken { source, .. } = self else {
            return false;
        };
        match ChannelError::inside(source) {
            Some(inside) => matches!(inside, ChannelError::Tls { .. }),
            None => matches!(
                source.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected
            ),
        }
    }

    /// Whether a file may have got its name, and may not.
    pub(crate) fn is_file_in_doubt(&self) -> bool {
        match self {
            Self::Broken { source, .. } => matches!(
                ChannelError::inside(source),
                Some(ChannelError::FileInDoubt { .. })
            ),
            _ => false,
        }
    }

    /// Whether the guest stands still although it should run here.
    pub(crate) fn is_stuck(&self) -> bool {
        matches!(self, Self::NotResumed { .. })
    }

    /// What the control side is told of it.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Broken { source, .. } => reason::of_io(source),
            Self::Channel(ChannelError::Silent { .. }) => Reason::Silence,
            Self::Channel(_) => Reason::Channel,
            Self::Answer(source) => reason::of_decoding(source),
            Self::GivenUp(why) | Self::Ended(Ended { why, .. }) => *why,
            Self::Cancelled => Reason::Cancelled,
            _ => Reason::Here,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn what_ended_reads_as_its_cause_down_to_the_last_reason() {
        let broken = MigrateError::broken("write to", io::ErrorKind::BrokenPipe.into());
        let ended = |cause| {
            let why = Reason::Channel;
            MigrateError::Ended(Ended { why, cause })
        };
        let text = with_causes(&broken);
        let error = ended(Some(Arc::new(broken)));
        assert_eq!(with_causes(&error), text);
        let last = error.source().and_then(|last| last.downcast_ref());
        assert_eq!(last.map(io::Error::kind), Some(io::ErrorKind::BrokenPipe));
        assert_eq!(ended(None).to_string(), Reason::Channel.to_string());
    }
}
