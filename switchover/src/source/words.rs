//! What a source is told, what it does, and where it is meanwhile.

use crate::outcome::{Answer, Verb};
use crate::reason::Reason;

/// What a source must know before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceConfig {
    /// The channel has a way back. Without one nobody confirms anything.
    pub return_path: bool,
    /// The destination can be reached once more over a new connection: not with `fd:`.
    pub reconnects: bool,
    /// Stop in `pre-switchover` until the operator says `migrate-continue`.
    pub pause_before_switchover: bool,
}

/// Where a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceState {
    /// It connects, and sends what describes the machine.
    Setup,
    /// It sends RAM while the guest runs.
    Active,
    /// The guest is being stopped.
    Stopping,
    /// The guest is stopped; the operator's `migrate-continue` is awaited.
    PreSwitchover,
    /// The guest is stopped; the rest of RAM and the devices are being sent.
    Device,
    /// All is sent; the destination has not said yet that all is loaded.
    Loading,
    /// The permission to run is on its way, or will be at any moment. Nothing but the destination's
    /// word, or the certainty that no byte of EOF left, brings the guest back.
    Permitted {
        /// What became of EOF.
        eof: Eof,
    },
    /// The permission was sent and no confirmation came.
    InDoubt {
        /// What the destination is to be told.
        wanted: Wanted,
        /// It is being told.
        asking: bool,
    },
    /// The destination has the right to run; or, one way, all that could be done is done.
    Completed,
    /// Given up: the guest is as it was before, threads and channel are still to be ended.
    Ending {
        /// Why.
        why: Reason,
        /// Whether the destination must hear of it.
        telling: Telling,
    },
    /// Given up: the guest is as it was before.
    Resumed {
        /// Why.
        why: Reason,
        /// Whether the destination must hear of it.
        telling: Telling,
    },
    /// The process ends.
    Gone {
        /// The destination may run: the permission was sent, or is being sent, and nobody has
        /// confirmed.
        permitted: bool,
    },
}

/// What became of EOF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eof {
    /// It is being written.
    Writing,
    /// It is being written, or was to be when the channel failed: whether a byte of it left is
    /// known soon.
    Torn,
    /// It is written.
    Written,
    /// One way only: what is to show that all arrived takes too long, or the operator waits for it no
    /// longer. What became of EOF may never be known, so that this is a doubt already.
    Overdue {
        /// What is to happen if not a byte of it left.
        wanted: Wanted,
    },
}

/// What a source in doubt tells the destination when it reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// To run, if it does not yet.
    Run,
    /// Never to run, if it does not yet.
    Back {
        /// Why.
        why: Reason,
    },
}

impl Wanted {
    pub(super) fn verb(self) -> Verb {
        match self {
            Self::Run => Verb::Run,
            Self::Back { .. } => Verb::Forget,
        }
    }
}

/// Whether a source that runs on has told a destination that may be waiting, loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Telling {
    /// The destination cannot be waiting.
    Needless,
    /// Not yet.
    Due,
    /// It is being told.
    Asking,
    /// It has answered that it will never run.
    Told,
    /// It has answered that it has the right to run. Somebody gave it that right who should not
    /// have: an operator's `cont` on both sides.
    Contradicted,
}

/// What happens to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The channel is connected; header, configuration, PINGs and the block list are written.
    Ready,
    /// What is left can be sent within the time that the guest may stand still.
    Converged,
    /// The guest is stopped.
    Stopped,
    /// The rest of RAM and all devices are written.
    Sent,
    /// PONG came, with this value.
    Pong(u32),
    /// EOF and what follows it are written; one way: synced, under its name, the command's exit
    /// status checked. This or one of the next two is handed over exactly once for each
    /// [`SourceAction::SendEof`], whatever else happens, and soon after the channel was closed; but
    /// a disk may keep that of a file for ever.
    EofWritten,
    /// EOF may have left, and what follows it could not be written; one way: it is not sure that
    /// all arrived.
    EofTorn,
    /// It is certain that no byte of EOF left this process: the channel refused it, was closed
    /// before, or is a file that never got its name.
    EofWithheld,
    /// One way only: what became of EOF is not known after as long as anybody is waited for.
    Overdue,
    /// SHUT came, with this code.
    Shut(u32),
    /// The channel or this side failed. What came before it was handed over before.
    Failed(Reason),
    /// All threads ended, the channel is closed, tracking is off, and a stop of the guest that was
    /// under way is done and was handed over. Once for each time that the state became
    /// [`SourceState::Ending`].
    Ended,
    /// The destination answered over a connection of its own.
    Answer(Answer),
    /// It could not be reached, or what it said was no answer.
    NoAnswer,
    /// It is time to try to reach it again.
    Retry,
    /// The operator's `migrate_cancel`.
    Cancel,
    /// The operator's `migrate-continue`.
    Continue,
    /// The operator's `cont`.
    Cont,
    /// The operator's `quit`.
    Quit,
}

/// What a source has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Stop the guest, and hand over [`SourceEvent::Stopped`].
    PauseVm,
    /// Send the rest of RAM and the devices, and hand over [`SourceEvent::Sent`].
    SendRest,
    /// Send PING with this value.
    SendPing(u32),
    /// Disarm whatever would let the guest run on by itself (`Paused::stay` of `paguro-migration`): from here only
    /// [`SourceAction::ResumeVm`] does that, not a destructor, not a panic.
    HoldVm,
    /// Send EOF and what follows it, and hand over what became of that.
    SendEof,
    /// Send the COMMAND that tells the destination to forget it, if the stream is between two
    /// elements; never mind if that fails.
    SendForget,
    /// Close the channel, both ways.
    CloseChannel,
    /// Let the guest be as it was before the migration.
    ResumeVm,
    /// Reach the destination over a new connection, tell it this, and hand over
    /// [`SourceEvent::Answer`] or [`SourceEvent::NoAnswer`] within a bounded time. A connection
    /// from an earlier try is closed; what comes over it is not handed over.
    Ask(Verb),
    /// Say [`Verb::Known`] over the connection on which the answer came, and close it.
    Acknowledge,
    /// End the process.
    End,
}
