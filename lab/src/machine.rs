//! A machine as a child process.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use paguro_oracle::{DeviceWriter, ProcessBlock, Report};
use paguro_qmp::Client;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::process::{IN_VAIN, POLL, Process};
use crate::smaps::{self, ProcessMemory, RamMemory};
use crate::{MachineOptions, ProgressFile};

/// The environment variable by which the program is told what to force and to break.
pub const FORCE: &str = "PAGURO_FORCE";

/// Parameters of a snapshot: names and values of `migrate-set-parameters`.
pub type Parameters = Map<String, Value>;

/// A machine that runs in a process of its own. Dropping it ends the process, whatever its state.
pub struct Machine {
    process: Process,
    options: MachineOptions,
    /// `None` while somebody else has its control socket, which is for one client at a time.
    client: Option<Client>,
    progress: Arc<ProgressFile>,
    pub(crate) defaults: Parameters,
    dir: TempDir,
}

/// How two machines of the lab are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Over the loopback.
    Tcp,
    /// By a socket in the file system.
    Unix,
}

/// Where the RAM of a machine is in its process.
#[derive(Clone, Debug)]
pub struct Ram {
    /// The process.
    pub pid: u32,
    /// Its blocks.
    pub blocks: Vec<ProcessBlock>,
}

/// How far the RAM of a lazily restored machine is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Filling {
    /// Pages in the file.
    pub total_pages: u64,
    /// Pages that have not arrived.
    pub left_pages: u64,
    /// Faults that were answered.
    pub faults: u64,
    /// All has arrived, and nothing is registered for it any more.
    pub done: bool,
    /// A page could not be had.
    pub failed: bool,
}

impl Machine {
    /// Starts one, and waits until its control socket answers. It runs by then, unless it is to
    /// be paused or was when it was saved.
    pub fn start(options: &MachineOptions) -> Result<Self> {
        let progress = Arc::new(ProgressFile::create(options.cpus)?);
        Self::start_watched(options, progress)
    }

    /// As [`Machine::start`], on progress memory that a watcher may be looking at already.
    pub fn start_watched(options: &MachineOptions, progress: Arc<ProgressFile>) -> Result<Self> {
        Self::start_met(options, progress, |_| ())
    }

    /// As [`Machine::start_watched`]; `spawned` is told the number of its process as soon as it has
    /// one.
    ///
    /// # Errors
    ///
    /// With [`EndedEarly`](crate::process::EndedEarly) in it, if it has ended before its control socket answered.
    pub fn start_met(
        options: &MachineOptions,
        progress: Arc<ProgressFile>,
        spawned: impl FnOnce(u32),
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("paguro-").tempdir()?;
        let log = std::fs::File::create(dir.path().join("stderr"))?;
        let mut command = match options.through.split_first() {
            None => Command::new(&options.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&options.program);
                command
            }
        };
        command
            .args(options.args())
            .arg("--x-progress")
            .arg(progress.path())
            // The pipe is closed when this process ends, in whatever way; the child ends with it.
            .arg("--x-end-with-stdin")
            .env_remove(FORCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        if !options.force.is_empty() {
            command.env(FORCE, &options.force);
        }
        let socket = dir.path().join("qmp.sock");
        let started = Process::start(&mut command, socket, spawned, Client::connect);
        let (process, client) = started.map_err(|error| {
            let said = read_log(dir.path());
            error.context(format!("the machine did not start: {said}"))
        })?;
        let mut machine = Self {
            process,
            options: options.clone(),
            client: Some(client),
            progress,
            defaults: Parameters::new(),
            dir,
        };
        let defaults = machine.execute("query-migrate-parameters", json!({}))?;
        machine.defaults = match defaults {
            Value::Object(defaults) => defaults,
            _ => bail!("migration parameters are no object"),
        };
        Ok(machine)
    }

    /// What it was made of.
    pub fn options(&self) -> &MachineOptions {
        &self.options
    }

    /// The guest's counters.
    pub fn progress(&self) -> &Arc<ProgressFile> {
        &self.progress
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A command of its control socket. When it fails because the machine died, the error has its
    /// last words.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let client = match &mut self.client {
            Some(client) => Ok(client),
            None => Client::connect(self.process.socket()).map(|client| self.client.insert(client)),
        };
        let answer = client.and_then(|client| client.execute(command, arguments));
        answer.map_err(anyhow::Error::from).map_err(|error| {
            // The connection breaks a moment before the process is gone.
            std::thread::sleep(Duration::from_millis(5));
            match self.process.ended() {
                Ok(Some(status)) => {
                    let said = read_log(self.dir.path());
                    error.context(format!("the machine has ended ({status}): {said}"))
                }
                _ => error,
            }
        })
    }

    /// Lets somebody else have its control socket, until the next command.
    pub fn hang_up(&mut self) {
        self.client = None;
    }

    /// Its control socket, as an address.
    pub fn qmp_address(&self) -> String {
        self.process.qmp_address()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.ended()?)
    }

    /// How it ends, if it does in that time.
    pub fn ended_within(&mut self, at_most: Duration) -> Result<Option<ExitStatus>> {
        Ok(self.process.ended_within(at_most)?)
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What it has said on standard error so far.
    pub fn said(&self) -> String {
        read_log(self.dir.path())
    }

    /// Stops it.
    pub fn stop(&mut self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets it run on.
    pub fn cont(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Ends it in an orderly way; its exit status must be 0.
    pub fn quit(mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        let status = self.wait_exit()?;
        if !status.success() {
            bail!("the machine ended with {status}: {}", self.said());
        }
        Ok(())
    }

    /// QEMU's word for its state.
    pub fn status(&mut self) -> Result<String> {
        let status = self.execute("query-status", json!({}))?;
        let reason = status["x-paguro-reason"].as_str();
        if let Some(reason) = reason {
            bail!("the machine failed: {reason}");
        }
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the guest has done so many writes more than now, over all vCPUs.
    pub fn wait_writes(&mut self, more: u64) -> Result<()> {
        self.wait_total(self.progress.total_writes() + more)
    }

    /// Waits until the guest has made so many writes since it was booted for the first time.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_writes`].
    pub fn wait_total(&mut self, writes: u64) -> Result<()> {
        let deadline = Instant::now() + IN_VAIN;
        while self.progress.total_writes() < writes {
            if Instant::now() > deadline {
                let status = self.status()?;
                bail!(
                    "the guest makes no progress, and its state is {status:?}\n{}",
                    self.said()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Saves it in the background (or with the guest stopped, which then stays so) and waits for
    /// the end. `parameters` count for this snapshot only. Gives the engine's report.
    ///
    /// # Errors
    ///
    /// Why it failed, in its own words.
    pub fn snapshot(
        &mut self,
        file: &Path,
        parameters: &Parameters,
        background: bool,
    ) -> Result<Value> {
        self.begin_snapshot(file, parameters, background)?;
        self.wait_snapshot()
    }

    /// Begins a snapshot, without waiting for its end.
    pub fn begin_snapshot(
        &mut self,
        file: &Path,
        parameters: &Parameters,
        background: bool,
    ) -> Result<()> {
        let mut all = self.defaults.clone();
        all.extend(parameters.clone());
        self.execute("migrate-set-parameters", Value::Object(all))?;
        let capability = |name, state| json!({ "capability": name, "state": state });
        let capabilities = [
            capability("background-snapshot", background),
            capability("mapped-ram", true),
        ];
        self.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )?;
        let name = file.to_str().context("a file name that is no text")?;
        let uri = format!("file:{name}");
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits for the end of a snapshot and gives the engine's report.
    pub fn wait_snapshot(&mut self) -> Result<Value> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.execute("query-migrate", json!({}))?;
            match now["status"].as_str().unwrap_or_default() {
                "completed" => return self.execute("x-paguro-query-report", json!({})),
                "failed" => {
                    let reason = now["error-desc"].as_str();
                    bail!("the snapshot failed: {}", reason.unwrap_or("no reason"));
                }
                "cancelled" => bail!("the snapshot was cancelled"),
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("the snapshot does not end: {now}\n{}", self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits at an address for another machine; where it can be found.
    pub fn listen(&mut self, channel: &Channel) -> Result<String> {
        let uri = match channel {
            Channel::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Channel::Unix => format!("unix:{}", self.dir.path().join("in.sock").display()),
        };
        self.execute("migrate-incoming", json!({ "uri": uri }))?;
        if *channel == Channel::Unix {
            return Ok(uri);
        }
        let now = self.execute("query-migrate", json!({}))?;
        let port = now["socket-address"][0]["port"].as_str();
        let port = port.with_context(|| format!("no port in {now}"))?;
        Ok(format!("tcp:127.0.0.1:{port}"))
    }

    /// Sets what is to be agreed on with the other machine of a move, and the defaults elsewhere.
    pub fn agree(&mut self, parameters: &Parameters, capabilities: &[&str]) -> Result<()> {
        let mut all = self.defaults.clone();
        all.extend(parameters.clone());
        self.execute("migrate-set-parameters", Value::Object(all))?;
        let known = self.execute("query-migrate-capabilities", json!({}))?;
        let known = known.as_array().context("no list of capabilities")?;
        let set = known.iter().filter_map(|known| {
            let name = known["capability"].as_str()?;
            Some(json!({ "capability": name, "state": capabilities.contains(&name) }))
        });
        let set = json!({ "capabilities": Value::from_iter(set) });
        self.execute("migrate-set-capabilities", set).map(drop)
    }

    /// Begins to move to another machine that listens there, without waiting for the end.
    /// `parameters` and `capabilities` count for this move only.
    pub fn begin_move(
        &mut self,
        uri: &str,
        parameters: &Parameters,
        capabilities: &[&str],
    ) -> Result<()> {
        self.agree(parameters, capabilities)?;
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits for the end of a move and gives the engine's report; `None` if it was cancelled.
    pub fn wait_moved(&mut self) -> Result<Option<Value>> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.execute("query-migrate", json!({}))?;
            match now["status"].as_str().unwrap_or_default() {
                "completed" => return self.execute("x-paguro-query-report", json!({})).map(Some),
                "failed" => {
                    let reason = now["error-desc"].as_str();
                    bail!("the move failed: {}", reason.unwrap_or("no reason"));
                }
                "cancelled" => return Ok(None),
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("the move does not end: {now}\n{}", self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until it has this status.
    pub fn wait_status(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let status = self.status()?;
            if status == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("it stays {status:?} and does not become {wanted:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Where its RAM is.
    pub fn ram(&mut self) -> Result<Ram> {
        let answer = self.execute("x-paguro-query-ram", json!({}))?;
        Ok(Ram {
            pid: self.pid(),
            blocks: blocks(&answer)?,
        })
    }

    /// Compares its RAM with what its counters imply. It must be stopped. Pages that have not
    /// arrived are made to, by the faults of its own process: the kernel lets nobody else wait for
    /// them.
    pub fn check_ram(&mut self) -> Result<Report> {
        if self.filling()?.is_some_and(|filling| !filling.done) {
            self.execute("x-paguro-touch", json!({}))?;
        }
        check_ram(self.pid(), |command| self.execute(command, json!({})))
    }

    /// How far a lazily restored machine is filled; `None` of any other.
    pub fn filling(&mut self) -> Result<Option<Filling>> {
        let answer = self.execute("x-paguro-query-restore", json!({}))?;
        if answer == json!({}) {
            return Ok(None);
        }
        Ok(Some(serde_json::from_value(answer)?))
    }

    /// Waits until a lazily restored machine is filled.
    pub fn wait_filled(&mut self) -> Result<()> {
        let deadline = Instant::now() + IN_VAIN;
        while let Some(filling) = self.filling()?.filter(|filling| !filling.done) {
            if filling.failed {
                bail!("a page could not be had");
            }
            if Instant::now() > deadline {
                bail!(
                    "{} pages do not arrive\n{}",
                    filling.left_pages,
                    self.said()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// When its process entered `main`, by this host's CLOCK_MONOTONIC.
    pub fn main_at_ns(&mut self) -> Result<u64> {
        let answer = self.execute("x-paguro-query-machine", json!({}))?;
        let at = answer["main-at-ns"].as_u64();
        at.context("the machine does not say when it entered main")
    }

    /// Asks the kernel to join the pages of its RAM to huge ones now, also where it would not do
    /// so by itself (memfd). Gives the bytes for which it said yes.
    pub fn collapse(&mut self) -> Result<u64> {
        let answer = self.execute("x-paguro-collapse", json!({}))?;
        Ok(answer["bytes"].as_u64().unwrap_or(0))
    }

    /// What the kernel says about its RAM.
    pub fn ram_memory(&mut self) -> Result<RamMemory> {
        let ram = self.ram()?;
        let blocks = ram.blocks.iter();
        let ranges: Vec<_> = blocks
            .map(|block| block.host_address..block.host_address + block.len)
            .collect();
        Ok(smaps::ram(ram.pid, &ranges)?)
    }

    /// What the kernel says about its process.
    pub fn process_memory(&self) -> io::Result<ProcessMemory> {
        smaps::process(self.pid())
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let ended = self.ended_within(IN_VAIN)?;
        ended.context("the machine does not end")
    }
}

/// Compares the RAM of a machine that is stopped with what its counters imply. All of it must be there,
/// in the process of that number, and `ask` does a command of its control socket without arguments.
///
/// # Errors
///
/// It cannot be asked, or looked at. Wrong pages are no error but in the report.
pub fn check_ram(pid: u32, mut ask: impl FnMut(&str) -> Result<Value>) -> Result<Report> {
    let blocks = blocks(&ask("x-paguro-query-ram")?)?;
    let devices = ask("x-paguro-query-device-writers")?;
    let devices: Vec<DeviceWriter> = serde_json::from_value(devices)?;
    let process = paguro_oracle::Process::open(pid, blocks)
        .context("cannot read the memory of the machine's process")?;
    paguro_oracle::check(&process, &devices).context("cannot check the machine's RAM")
}

/// In an answer of `x-paguro-query-ram`.
fn blocks(answer: &Value) -> Result<Vec<ProcessBlock>> {
    let blocks = answer["blocks"].as_array().context("no RAM blocks")?;
    let blocks = blocks.iter().map(|block| {
        let number = |field: &str| block[field].as_u64().context("a RAM block lacks a field");
        Ok(ProcessBlock {
            gpa: number("guest-address")?,
            host_address: number("host-address")?,
            len: number("length")?,
        })
    });
    blocks.collect()
}

/// The end of what a machine said.
fn read_log(dir: &Path) -> String {
    let text = std::fs::read(dir.join("stderr")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
