//! `paguro snapshot` or `paguro migrate`, as a process.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use paguro_lab::machine::FORCE;
use paguro_lab::process::{IN_VAIN, POLL};
use tempfile::NamedTempFile;

/// One that is at work. Dropping it ends it.
pub struct Client {
    child: Child,
    log: NamedTempFile,
}

impl Client {
    /// Begins it.
    pub fn begin(program: &Path, args: &[&str]) -> Result<Self> {
        let log = tempfile::Builder::new().prefix("paguro-").tempfile()?;
        let child = Command::new(program)
            .args(args)
            .env_remove(FORCE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .spawn();
        let child = child.context("cannot start a command of the program")?;
        Ok(Self { child, log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end, if it comes in that time.
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + at_most;
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                return Ok(ended);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its end, which must come.
    pub fn must_end(&mut self) -> Result<ExitStatus> {
        match self.wait(IN_VAIN)? {
            Some(status) => Ok(status),
            None => bail!("the command does not end: {}", self.said()),
        }
    }

    /// What it said.
    pub fn said(&self) -> String {
        read(self.log.path())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}
