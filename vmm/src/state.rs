//! The states of a machine, its end, and the events between, by QEMU's names.

/// The state of a machine, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunState {
    /// It runs.
    Running,
    /// It is stopped, by a command or by a pause.
    Paused,
    /// It was never started.
    Prelaunch,
    /// It waits for its state to come in.
    InMigrate,
    /// It is stopped so that the end of a migration can be done.
    FinishMigrate,
    /// It is stopped after a migration.
    PostMigrate,
    /// It is stopped so that it can be saved.
    SaveVm,
    /// It was stopped because something that it needs cannot be read for now; `cont` tries again.
    IoError,
    /// It failed, and cannot go on.
    InternalError,
    /// It ended.
    Shutdown,
}

impl RunState {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Prelaunch => "prelaunch",
            Self::InMigrate => "inmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::PostMigrate => "postmigrate",
            Self::SaveVm => "save-vm",
            Self::IoError => "io-error",
            Self::InternalError => "internal-error",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Why a machine ended, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// An error on the host.
    HostError,
    /// The control socket's `quit`.
    HostQmpQuit,
    /// A signal to the process.
    HostSignal,
    /// The user interface.
    HostUi,
    /// The guest switched off.
    GuestShutdown,
    /// The guest asked for a reset.
    GuestReset,
    /// The guest crashed: it said so, or its CPU shut down (a triple fault).
    GuestPanic,
}

impl ShutdownCause {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostError => "host-error",
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostSignal => "host-signal",
            Self::HostUi => "host-ui",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
        }
    }

    /// Whether the guest brought it about.
    pub fn by_guest(self) -> bool {
        matches!(
            self,
            Self::GuestShutdown | Self::GuestReset | Self::GuestPanic
        )
    }

    /// Whether it is a failure, to be told by the exit status.
    pub fn is_error(self) -> bool {
        matches!(self, Self::HostError | Self::GuestPanic)
    }
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It stopped.
    Stopped,
    /// It runs (again).
    Resumed,
    /// It is stopped because something that it needs cannot be had; `cont` tries again.
    Halted {
        /// Why, for the operator.
        reason: String,
    },
    /// It failed: it is stopped and cannot go on.
    Failed {
        /// Why, for the operator.
        reason: String,
    },
    /// It ended.
    Shutdown {
        /// Whether the guest brought it about.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub cause: ShutdownCause,
    /// What is known beyond that, for the operator.
    pub detail: Option<String>,
}

/// A machine is in a state in which what was asked cannot be done: the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It ended.
    #[error("the machine has ended ({})", .0.name())]
    Ended(ShutdownCause),
    /// It failed.
    #[error("the machine has failed: {0}")]
    Failed(String),
    /// A thread of it is in the kernel, which waits for a page that does not come. What stops comes to
    /// rest when it does, and executes nothing before.
    #[error("the machine waits for a page of its RAM in the kernel, and cannot be brought to rest")]
    Held,
    /// Neither the built-in guest, nor a kernel, nor a picture was loaded, or one was already.
    #[error("the machine {0}")]
    Load(&'static str),
    /// Another process runs its guest in its RAM.
    #[error(
        "the machine was moved with its RAM, which was handed over and no copy: its guest writes it \
         there, and cannot run here again"
    )]
    Gone,
    /// Pages of its RAM are lost.
    #[error("pages of the machine's RAM are lost: it cannot run")]
    Spoilt,
}
