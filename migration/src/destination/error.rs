//! What can go wrong with a machine that comes in.

use std::io;
use std::time::Duration;

use paguro_faults::FaultsError;
use paguro_wire::DecodeError;

use crate::channel::ChannelError;
use crate::machine::MachineError;
use crate::reason::{self, Ended};
use crate::switchover::Reason;

/// No machine came in: what is here will never run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The channel could not be made.
    #[error("no source can connect")]
    Channel(#[source] ChannelError),
    /// The source's, or the network's: the stream ends too early or makes no sense.
    #[error("the stream of the source cannot be used")]
    Stream(#[source] DecodeError),
    /// The source's: it asks for something that is not done here.
    #[error("the source asks for {what}, which this side does not do")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The caller's, on one of the sides: there is multifd of which this side was not told.
    #[error("the source asks for multifd channels, which this side does not do")]
    NoMultifd,
    /// The source's, or the network's: not all multifd channels came.
    #[error("{came} of {of} multifd channels came within {:.1} s", within.as_secs_f64())]
    MissingChannels {
        /// So many came.
        came: usize,
        /// So many this side was told of.
        of: usize,
        /// How long they were waited for.
        within: Duration,
    },
    /// The source's, or the network's: a multifd channel ends too early or makes no sense.
    #[error("multifd channel {channel} cannot be used")]
    Channels {
        /// Its number.
        channel: u8,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The caller's, on one of the sides: packets went over channels that this side was not told of.
    #[error(
        "of {of} multifd packets {came} came over the {channels} multifd channels that this side was \
         told of: the source may have been told of more"
    )]
    MissingPackets {
        /// So many came.
        came: u64,
        /// So many there are by their numbers.
        of: u64,
        /// Channels that this side was told of.
        channels: usize,
    },
    /// The caller's, on one of the sides: there are channels of which this side was not told.
    #[error("the source has more multifd channels than the {channels} that this side was told of")]
    MoreChannels {
        /// Channels that this side was told of.
        channels: usize,
    },
    /// The source's, or the network's: a multifd channel broke, which was told as an error of its own.
    #[error("a multifd channel broke")]
    BrokenChannel,
    /// The network's: the multifd channels bring nothing.
    #[error("the multifd channels are silent for {:.1} s", .0.as_secs_f64())]
    SilentChannels(Duration),
    /// The machine's: the state that came is none of it, or the host does not take it.
    #[error("the machine does not take the state that came")]
    Machine(#[source] MachineError),
    /// The machine's: RAM blocks that no stream can have.
    #[error("the machine's RAM does not fit the stream")]
    Blocks(#[source] crate::error::MigrateError),
    /// This host's: a page came and there is no room for it.
    #[error("a page came but cannot be put in its place")]
    Place(#[source] FaultsError),
    /// The source's: it handed its RAM over, and ended before the rest.
    #[error("the source that handed its RAM over is gone, or has given up")]
    SourceGone,
    /// It ended for this reason.
    #[error(transparent)]
    Ended(Ended<ReceiveError>),
    /// The host's: no thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Ours.
    #[error("a thread of the migration panicked: this is a bug in paguro")]
    Bug,
}

impl ReceiveError {
    /// What the control side is told of it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Channel(_) | Self::BrokenChannel | Self::SourceGone => Reason::Channel,
            Self::MissingChannels { .. } | Self::SilentChannels(_) => Reason::Silence,
            Self::Stream(source) | Self::Channels { source, .. } => match source {
                // A source that says next to nothing (`patience`) is silent, too.
                DecodeError::Read { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                    Reason::Silence
                }
                source => reason::of_decoding(source),
            },
            Self::Unsupported { .. }
            | Self::NoMultifd
            | Self::MissingPackets { .. }
            | Self::MoreChannels { .. } => Reason::OutOfTurn,
            Self::Ended(Ended { why, .. }) => *why,
            _ => Reason::Here,
        }
    }
}
