//! The command behind `exec:`.
//!
//! It runs in a process group of its own, so that all of it can be ended: a shell's pipeline that
//! merely saw the end of its input would take half a stream for a whole one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::wait::wait_for;
use crate::{ChannelError, Stop};

/// Which way its bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Into the command.
    Out,
    /// Out of it.
    In,
}

/// A running command; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pidfd: OwnedFd,
    /// As the operator wrote it.
    text: String,
    direction: Direction,
    is_over: bool,
}

impl Running {
    /// Starts it; the descriptor is its input or output. What else it prints goes where this
    /// process's errors go.
    pub(crate) fn start(
        arguments: &[String],
        text: &str,
        direction: Direction,
    ) -> Result<(Self, OwnedFd), ChannelError> {
        let failed = |source| ChannelError::Io {
            doing: "run",
            address: text.to_owned(),
            source,
        };
        let [program, rest @ ..] = arguments else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let mut command = Command::new(program);
        command.args(rest).process_group(0);
        match direction {
            Direction::Out => {
                let errors = io::stderr().as_fd().try_clone_to_owned();
                command.stdin(Stdio::piped());
                command.stdout(errors.map_or_else(|_| Stdio::null(), Stdio::from));
            }
            Direction::In => {
                command.stdin(Stdio::null()).stdout(Stdio::piped());
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        let pipe = match direction {
            Direction::Out => child.stdin.take().map(OwnedFd::from),
            Direction::In => child.stdout.take().map(OwnedFd::from),
        };
        let opened = pidfd_open(pid(&child), PidfdFlags::empty());
        let (Some(pipe), Ok(pidfd)) = (pipe, opened) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(io::Error::other("no descriptors are left")));
        };
        let running = Self {
            child,
            pidfd,
            text: text.to_owned(),
            direction,
            is_over: false,
        };
        Ok((running, pipe))
    }

    /// Waits for its end, after its pipe was closed.
    pub(crate) fn finish(mut self, stops: [&Stop; 2]) -> io::Result<()> {
        wait_for(self.pidfd.as_fd(), PollFlags::IN, stops, None)?;
        let waited = self.child.wait();
        self.is_over = true;
        let status = waited.map_err(|error| match Errno::from_io_error(&error) {
            // That it ended well is not to be guessed: who asks decides by it who may run.
            Some(Errno::CHILD) => ChannelError::StatusUnknown {
                command: self.text.clone(),
            }
            .into_io(),
            _ => error,
        })?;
        if status.success() || self.direction == Direction::In && is_broken_pipe(status) {
            return Ok(());
        }
        Err(ChannelError::Command {
            command: self.text.clone(),
            status,
        }
        .into_io())
    }
}

/// It had more to say than the stream is long.
fn is_broken_pipe(status: ExitStatus) -> bool {
    let signal = Signal::PIPE.as_raw();
    status.signal() == Some(signal) || status.code() == Some(128 + signal)
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let group = pid(&self.child);
        let _ = kill_process_group(group, Signal::TERM);
        let until = Some(Instant::now() + PATIENCE);
        if let Ok(never) = Stop::new() {
            let _ = wait_for(self.pidfd.as_fd(), PollFlags::IN, [&never; 2], until);
        }
        // Before it is waited for: until then nobody else can have its number.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// For a command that is asked to end, before it is made to.
const PATIENCE: Duration = Duration::from_millis(50);

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}
