//! What becomes of what a command began, if the command ends first.

use clap::ValueEnum;
use rustix::process::Signal;

/// `--on-disconnect`, and what a client may say over QMP
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDisconnect {
    /// It is cancelled, and the guest is as it was before
    Cancel,
    /// It goes on without this command
    Continue,
}

impl OnDisconnect {
    /// Whether a signal to the command leaves alone what it began: whoever presses Ctrl-C means that,
    /// too.
    pub fn goes_on_after(self, signal: Signal) -> bool {
        self == Self::Continue && signal != Signal::INT
    }
}
