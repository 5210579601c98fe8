//! What can go wrong with a machine, and whose fault it is.

use std::io;
use std::path::PathBuf;

use paguro_stage2_tracker::RamLogError;
use paguro_wire::device::DeviceError;
use paguro_workload::ParamsError;

use crate::StateError;

/// A machine could not be made, started, saved, or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The caller asked for a machine that cannot be.
    #[error("no such machine: {0}")]
    Config(String),
    /// The workload does not fit the machine: the caller's fault.
    #[error("the workload does not fit the machine")]
    Workload(#[source] ParamsError),
    /// RAM cannot be put behind stage-2 tables in software: the caller's fault.
    #[error("RAM cannot be put behind stage-2 tables")]
    Stage2(#[from] RamLogError),
    /// The host has no KVM, or does not let this process use it.
    #[error("cannot use /dev/kvm")]
    NoKvm(#[source] io::Error),
    /// The host's KVM refused something.
    #[error("KVM does not {doing}")]
    Kvm {
        /// What it was asked to, as a verb.
        doing: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The host refused something else.
    #[error("cannot {doing}")]
    Host {
        /// What it was asked to, as a verb.
        doing: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The kernel image cannot be loaded: the file's fault.
    #[error("cannot boot {}: {why}", path.display())]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that the caller named cannot be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was to be done, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A device section cannot be read: the fault of the picture.
    #[error("the picture's device state cannot be read")]
    Section(#[from] DeviceError),
    /// The picture is of a version that did not save the host's time.
    #[error("the picture does not say when it was made, so its clock cannot be advanced")]
    NoSavedTime,
    /// The picture lacks a device of this machine.
    #[error("the picture has no device section {name}.{instance}, which this machine needs")]
    MissingSection {
        /// The section.
        name: &'static str,
        /// Its instance.
        instance: u32,
    },
    /// The picture has a device that this machine has not.
    #[error("the picture has a device section {name}.{instance}, which this machine does not know")]
    UnknownSection {
        /// The section.
        name: String,
        /// Its instance.
        instance: u32,
    },
    /// The picture is one of another machine.
    #[error("the picture's machine has {what} {picture}, this one {machine}")]
    OtherMachine {
        /// In what they differ.
        what: &'static str,
        /// The picture's value.
        picture: String,
        /// This machine's value.
        machine: String,
    },
    /// The machine is in a state in which this cannot be done.
    #[error(transparent)]
    State(#[from] StateError),
}

impl VmError {
    pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}
