//! A process of the program that runs a machine, from its start to its end.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What anything may take before it is given up: long, because hosts can be slow and busy, and
/// only something that is stuck gets there.
pub const IN_VAIN: Duration = Duration::from_secs(60);

/// Between two looks at something that will change soon.
pub const POLL: Duration = Duration::from_millis(2);

/// A process with a control socket. Dropping it ends the process, whatever its state.
#[derive(Debug)]
pub struct Process {
    child: Child,
    socket: PathBuf,
}

/// It was over before its control socket answered.
#[derive(Clone, Copy, Debug)]
pub struct EndedEarly(pub ExitStatus);

impl std::fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it ended with {}", self.0)
    }
}

impl std::error::Error for EndedEarly {}

impl Process {
    /// Starts one by a command that has yet to be told where its control socket is to be, and waits until
    /// `connect` finds it there. `spawned` is told the number of the process as soon as it has one.
    ///
    /// # Errors
    ///
    /// It cannot be started; with [`EndedEarly`] in it, if it has ended; or nothing answers within
    /// [`IN_VAIN`]. What it said is part of the error, if its standard error is a pipe.
    pub fn start<T, E>(
        command: &mut Command,
        socket: PathBuf,
        spawned: impl FnOnce(u32),
        connect: impl Fn(&Path) -> Result<T, E>,
    ) -> Result<(Self, T)>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let address = format!("unix:{}", socket.display());
        let command = command.args(["--qmp", &address]);
        let child = command.spawn().context("cannot start a machine")?;
        spawned(child.id());
        // Anything that fails from here on must not leave the child behind.
        let mut process = Self { child, socket };
        match process.answers(connect) {
            Ok(connected) => Ok((process, connected)),
            Err(error) => {
                process.kill();
                match process.piped() {
                    said if said.is_empty() => Err(error),
                    said => Err(error.context(said)),
                }
            }
        }
    }

    fn answers<T, E>(&mut self, connect: impl Fn(&Path) -> Result<T, E>) -> Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            if let Some(status) = self.ended()? {
                return Err(EndedEarly(status).into());
            }
            if self.socket.exists() {
                match connect(&self.socket) {
                    Ok(connected) => return Ok(connected),
                    Err(error) if Instant::now() > deadline => return Err(error.into()),
                    Err(_) => {}
                }
            } else if Instant::now() > deadline {
                bail!("it makes no control socket");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its control socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The same as an address.
    pub fn qmp_address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// Of the host.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// How it ends, if it does in that time.
    ///
    /// # Errors
    ///
    /// Of the host.
    pub fn ended_within(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + at_most;
        loop {
            let ended = self.ended()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for its end; its status, and what it said, if its standard error is a pipe.
    ///
    /// # Errors
    ///
    /// It does not end within [`IN_VAIN`], and was ended.
    pub fn finish(mut self) -> Result<(ExitStatus, String)> {
        match self.ended_within(IN_VAIN)? {
            Some(status) => Ok((status, self.piped())),
            None => {
                self.kill();
                bail!("the machine does not end: {}", self.piped())
            }
        }
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        // Fails only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// What one that has ended said. Little is said: it fits the pipe.
    fn piped(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            // What cannot be read was not said.
            pipe.read_to_end(&mut said).ok();
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Stdio;

    use super::*;

    /// A shell instead of the program; it finds the address of its socket in `$1`.
    fn start(script: &str, socket: &Path) -> Result<Process> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stderr(Stdio::piped());
        let connect = |socket: &Path| UnixStream::connect(socket);
        Process::start(&mut command, socket.to_owned(), |_| (), connect).map(|(process, _)| process)
    }

    fn socket(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("socket")
    }

    #[test]
    fn one_that_ends_early_says_how_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let error = start("echo no >&2; exit 7", &socket(&dir)).unwrap_err();
        assert!(format!("{error:#}").contains("no\n"), "{error:#}");
        let EndedEarly(status) = error.downcast_ref().unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn one_whose_socket_answers_is_told_where_it_is_and_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(socket(&dir)).unwrap();
        let script = "echo \"$0 $1\" >&2; exec sleep 1000";
        let process = start(script, &socket(&dir)).unwrap();
        assert_eq!(process.socket(), socket(&dir));
        let pid = rustix::process::Pid::from_raw(process.pid() as i32).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
        let process = start("echo \"$0 $1\" >&2", &socket(&dir));
        // It may end before it is connected to.
        let (address, said) = match process {
            Ok(process) => (process.qmp_address(), process.finish().unwrap().1),
            Err(error) => (
                format!("unix:{}", socket(&dir).display()),
                format!("{error:#}"),
            ),
        };
        assert!(said.contains(&format!("--qmp {address}")), "{said}");
    }
}
