//! What a destination is told, what it does, and where it is meanwhile.

use crate::outcome::{Answer, Query};
use crate::reason::Reason;

/// What a destination must know before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationConfig {
    /// The channel has a way back.
    pub return_path: bool,
    /// Stay paused when all is done, until the operator's `cont`.
    pub paused: bool,
}

/// Where a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationState {
    /// It waits for a source.
    Listening,
    /// The stream comes in.
    Active,
    /// The devices are being loaded.
    Loading {
        /// The permission to run has come already.
        permitted: bool,
    },
    /// Everything is loaded and the source knows; EOF is awaited.
    Loaded,
    /// Everything is loaded and the channel is gone: the source, or an operator, must decide.
    Waiting {
        /// It was permitted to run, but the machine did not start.
        stuck: bool,
    },
    /// It is permitted to run, and being started.
    Starting {
        /// The source waits for an answer over a connection of its own.
        asked: bool,
    },
    /// The machine is this side's.
    Owner {
        /// It was started; else it is paused until the operator's `cont`.
        started: bool,
    },
    /// It will never run. Nothing leads out of here but the end.
    Abandoned {
        /// Why.
        why: Reason,
    },
    /// The process ends.
    Gone {
        /// Why.
        why: Reason,
    },
}

/// What happens to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// A source is connected.
    Connected,
    /// PING came, with this value.
    Ping(u32),
    /// All devices are loaded. Says whether the guest ran at the source.
    Loaded {
        /// It ran.
        ran: bool,
    },
    /// EOF came.
    Eof,
    /// The COMMAND that says to forget it came.
    Forget,
    /// The channel or this side failed, or the stream makes no sense. What came before it was
    /// handed over before. That a channel without return path ends after EOF is no failure.
    Failed(Reason),
    /// The guest runs.
    Started,
    /// The guest does not run: no vCPU has executed an instruction.
    NotStarted,
    /// The source says this over a connection of its own.
    Query(Query),
    /// Nobody asked for long enough.
    LingerOver,
    /// The operator's `cont`.
    Cont,
    /// The operator's `quit`.
    Quit,
}

/// What a destination has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Send PONG with this value.
    SendPong(u32),
    /// Load the devices, and hand over [`DestinationEvent::Loaded`] or a failure.
    LoadDevices,
    /// Let the guest run, and hand over [`DestinationEvent::Started`] or
    /// [`DestinationEvent::NotStarted`].
    RunVm,
    /// Send SHUT with this code; never mind if that fails.
    SendShut(u32),
    /// Close the channel, both ways.
    CloseChannel,
    /// Answer on the connection over which this migration's source asked last, if it is still there
    /// and was not answered yet.
    Answer(Answer),
    /// Answer the query that was just handed over with [`Answer::Unknown`].
    Refuse,
    /// The source knows: stop listening for it.
    StopListening,
    /// End the process, with the reason as its error.
    End,
}
