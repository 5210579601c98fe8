//! What becomes of RAM when a machine leaves. All that depends on it is decided here.

use std::sync::Arc;

use paguro_dirty::tracker::Tracker;
use paguro_ram::GuestRam;

use super::MigrateError;
use super::nothing::Nothing;
use crate::Memory;
use crate::channel::{self, Address, Outgoing};
use crate::handover::{self, HandOverError, Offered};
use crate::machine::{Machine, Stay};
use crate::multifd::Multifd;
use crate::stream::Stream;
use crate::switchover::{Advice, Choice, MigrationId, SourceState, Wanted};

/// How the other side gets RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is copied: pages are sent while the guest runs, what was written meanwhile is sent again, and
    /// the last of it when the guest stands still.
    Precopy(Pages),
    /// All of it, which is shared memory, is [handed over](crate::handover) to a destination on this
    /// host that expects it. The guest cannot run here again afterwards.
    HandOver {
        /// The unix socket over which that is done; none: that of the stream, by a connection before
        /// the stream's.
        address: Option<Address>,
    },
}

/// The way that pages go, which the destination must be told, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// In the stream, each as a whole.
    #[default]
    Plain,
    /// In the stream, and from the second pass on as what changed of them.
    Xbzrle {
        /// Pages are known by a cache of so many bytes: QEMU's `xbzrle-cache-size`, a power of two. It is
        /// smaller where [`Allowance`](crate::Allowance) says so.
        cache_bytes: u64,
    },
    /// Over connections of their own.
    Multifd(Multifd),
}

impl Default for Mode {
    /// Every page is sent, in the stream.
    fn default() -> Self {
        Self::Precopy(Pages::Plain)
    }
}

impl Mode {
    /// What is to be known of multifd at the destination.
    pub fn multifd(&self) -> Option<Multifd> {
        match self {
            Self::Precopy(Pages::Multifd(multifd)) => Some(*multifd),
            _ => None,
        }
    }

    /// Bytes of the cache of XBZRLE that is asked for, if there shall be one.
    pub(super) fn xbzrle_cache_bytes(&self) -> Option<u64> {
        match self {
            Self::Precopy(Pages::Xbzrle { cache_bytes }) => Some(*cache_bytes),
            _ => None,
        }
    }

    /// RAM that is to be sent, and who says what of it is written.
    pub(super) fn sends(
        &self,
        machine: &dyn Machine,
    ) -> Result<(GuestRam, Arc<dyn Tracker>), MigrateError> {
        match self {
            Self::Precopy(_) => {
                let tracker = machine.tracker().map_err(MigrateError::Machine)?;
                Ok((machine.memory().ram().clone(), tracker))
            }
            // Nothing is sent, so nothing can be sent too late.
            Self::HandOver { .. } => Ok((GuestRam::new(Vec::new()), Arc::new(Nothing))),
        }
    }

    /// Lets the other side have RAM before the stream is begun, where it is not sent.
    pub(super) fn offer(
        &self,
        stream: &Address,
        channel: &channel::Options,
        memory: &Memory,
        id: MigrationId,
    ) -> Result<Option<Offered>, MigrateError> {
        let Self::HandOver { address } = self else {
            return Ok(None);
        };
        // What is absent at the other side's mapping would be zeros there, for good.
        if memory.supply().is_some() {
            return Err(MigrateError::HandOver(HandOverError::Unarrived));
        }
        let way = Outgoing::connect(address.as_ref().unwrap_or(stream), channel)
            .map_err(MigrateError::Channel)?;
        let offered = handover::offer(memory.ram(), id, way);
        offered.map(Some).map_err(MigrateError::HandOver)
    }

    /// Says in a stream what the other side has to know.
    pub(super) fn declare(&self, stream: &mut Stream) {
        match self {
            Self::Precopy(_) => {}
            Self::HandOver { .. } => stream.ignore_shared(),
        }
    }

    /// It runs at the destination: why it does not here.
    pub(super) fn stay(&self) -> Stay {
        match self {
            Self::Precopy(_) => Stay::MigratedAway,
            Self::HandOver { .. } => Stay::HandedOver,
        }
    }

    /// What is so, and what an operator may do, where RAM makes a difference.
    pub(super) fn advice(&self, state: SourceState) -> Option<Advice> {
        match (self, state) {
            (Self::HandOver { .. }, SourceState::Completed) => Some(Advice {
                is: "the guest was moved with its RAM, which is handed over and no copy: it cannot \
                     run here again",
                may: &[Choice::Quit],
            }),
            (Self::HandOver { .. }, SourceState::InDoubt { wanted, .. }) => Some(Advice {
                is: "the destination was permitted to run the guest in the RAM that was handed \
                     over, and whether it did is not known; it is stopped here",
                may: match wanted {
                    Wanted::Run => &[Choice::Wait, Choice::TakeBack, Choice::RunUntouched],
                    Wanted::Back { .. } => &[Choice::Wait, Choice::HandOver, Choice::RunUntouched],
                },
            }),
            _ => None,
        }
    }
}
