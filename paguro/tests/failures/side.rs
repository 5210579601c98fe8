//! A process of the program, its control socket, and its RAM as the oracle sees it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_lab::ProgressFile;
use paguro_lab::machine::check_ram;
use paguro_qmp::{Client, ClientError};
use serde_json::{Value, json};

const PAGURO: &str = env!("CARGO_BIN_EXE_paguro");

/// Long enough that only what is stuck gets there.
pub const IN_VAIN: Duration = Duration::from_secs(60);

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(2);

/// What the other side may be silent for, in these tests: longer than a busy host keeps a thread
/// waiting.
pub const SILENCE_MS: u64 = 4000;

pub type Judged<T = ()> = Result<T, String>;

/// A machine with 16 MiB in a process. Dropping it kills the process.
pub struct Side {
    child: Child,
    socket: PathBuf,
    /// None while it comes back as another one.
    client: Option<Client>,
    pub progress: Arc<ProgressFile>,
    log: PathBuf,
}

/// `kvm` where it can be used.
pub fn accel() -> &'static str {
    match paguro_lab::host::no_kvm() {
        None => "kvm",
        Some(_) => "threads",
    }
}

impl Side {
    /// Starts one, in a network namespace if one is named, and waits for its control socket.
    pub fn start(dir: &Path, name: &str, namespace: Option<&str>, args: &[&str]) -> Self {
        let path = |end: &str| dir.join(format!("{name}.{end}"));
        let (socket, log) = (path("qmp"), path("stderr"));
        let progress = Arc::new(ProgressFile::create(1).unwrap());
        let mut command = match namespace {
            None => Command::new(PAGURO),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, PAGURO]);
                command
            }
        };
        command
            .args([
                "run",
                "--serial",
                "none",
                "--memory",
                "16M",
                "--accel",
                accel(),
            ])
            .arg("--qmp")
            .arg(format!("unix:{}", socket.display()))
            .arg("--x-progress")
            .arg(progress.path())
            .args(args)
            .env_remove("PAGURO_FORCE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + IN_VAIN;
        let client = loop {
            match Client::connect(&socket) {
                Ok(client) => break client,
                Err(_) => {
                    let ended = child.try_wait().unwrap();
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    assert!(
                        ended.is_none() && Instant::now() < deadline,
                        "{name}: {said}"
                    );
                }
            }
            std::thread::sleep(POLL);
        };
        let mut side = Self {
            child,
            socket,
            client: Some(client),
            progress,
            log,
        };
        let silence = json!({ "x-paguro-silence": SILENCE_MS });
        side.must("migrate-set-parameters", silence).unwrap();
        side
    }

    /// Goes, and comes back as another client.
    pub fn reconnect(&mut self) {
        // One at a time.
        self.client = None;
        self.client = Some(Client::connect(&self.socket).unwrap());
    }

    /// A machine whose guest writes at such a rate (`unlimited`, or pages a second).
    pub fn source(dir: &Path, namespace: Option<&str>, rate: &str) -> Self {
        let workload = format!("rate={rate}");
        Self::start(dir, "source", namespace, &["--workload", &workload])
    }

    /// One that waits at an address; what is chosen by the kernel is chosen when this returns.
    pub fn destination(dir: &Path, namespace: Option<&str>, uri: &str) -> Self {
        let mut side = Self::start(dir, "destination", namespace, &["--incoming", "defer"]);
        side.must("migrate-incoming", json!({ "uri": uri }))
            .unwrap();
        side
    }

    /// A command: its answer, or the text of its error, or how the connection ended.
    pub fn must(&mut self, command: &str, arguments: Value) -> Judged<Value> {
        let client = self.client.as_mut().expect("a client");
        client
            .execute(command, arguments)
            .map_err(|error| match error {
                ClientError::Refused { command, desc } => format!("{command}: {desc}"),
                error => format!("{command}: {error}: {}", self.said()),
            })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and its end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end, which must be a failure that it explains. What it said.
    pub fn must_fail(&mut self) -> Judged<String> {
        let deadline = Instant::now() + IN_VAIN;
        while self.ended().is_none() {
            if Instant::now() > deadline {
                return Err("it does not end".to_owned());
            }
            std::thread::sleep(POLL);
        }
        let (code, said) = (self.ended().and_then(|status| status.code()), self.said());
        match code == Some(1) && said.contains("paguro: the machine did not come in: ") {
            true => Ok(said),
            false => Err(format!("it ended with {code:?} and said {said:?}")),
        }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The highest resident size so far, in bytes.
    pub fn peak_bytes(&self) -> Option<u64> {
        let memory = paguro_lab::smaps::process(self.pid()).ok()?;
        // One that has ended has none.
        Some(memory.peak_bytes).filter(|bytes| *bytes > 0)
    }

    /// `query-migrate`.
    pub fn migration(&mut self) -> Judged<Value> {
        self.must("query-migrate", json!({}))
    }

    pub fn run_state(&mut self) -> Judged<String> {
        let answer = self.must("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until `query-migrate` has one of these states; gives all that it says.
    pub fn wait_for(&mut self, wanted: &[&str]) -> Judged<Value> {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.migration()?;
            if wanted.iter().any(|wanted| now["status"] == *wanted) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(format!("none of {wanted:?} is reached: {now}"));
            }
            std::thread::sleep(POLL);
        }
    }

    pub fn writes(&self) -> u64 {
        self.progress.total_writes()
    }

    /// Waits until its guest has made so many writes.
    pub fn must_have_written(&self, count: u64) -> Judged {
        let deadline = Instant::now() + IN_VAIN;
        while self.writes() < count {
            if Instant::now() > deadline {
                return Err(format!("its guest makes no progress: {}", self.said()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// It is running, gets on, and all of its RAM is right; it runs on.
    pub fn must_run(&mut self) -> Judged {
        let state = self.run_state()?;
        if state != "running" {
            return Err(format!("it is {state:?}, not running"));
        }
        for _ in 0..2 {
            self.must_have_written(self.writes() + 100)?;
            self.must("stop", json!({}))?;
            self.check_ram()?;
            self.must("cont", json!({}))?;
        }
        Ok(())
    }

    /// It is in that run state, its guest stands still, and all of its RAM is right.
    pub fn must_stand(&mut self, wanted: &str) -> Judged {
        let state = self.run_state()?;
        if state != wanted {
            return Err(format!("it is {state:?}, not {wanted:?}"));
        }
        let before = self.writes();
        self.check_ram()?;
        std::thread::sleep(10 * POLL);
        match self.writes() == before {
            true => Ok(()),
            false => Err("its guest runs".to_owned()),
        }
    }

    /// No guest has come.
    pub fn must_stand_empty(&mut self) -> Judged {
        match (self.run_state()?.as_str(), self.writes()) {
            ("inmigrate", 0) => Ok(()),
            (state, writes) => Err(format!("it is {state:?} after {writes} writes")),
        }
    }

    /// What it says may be done contains all of these.
    pub fn must_advise(&mut self, wanted: &[&str]) -> Judged {
        let now = self.migration()?;
        let advice = now["x-paguro-advice"].to_string();
        match wanted.iter().all(|wanted| advice.contains(wanted)) {
            true => Ok(()),
            false => Err(format!("the advice lacks one of {wanted:?}: {now}")),
        }
    }

    /// By the oracle; the guest must stand still.
    pub fn check_ram(&mut self) -> Judged {
        let pid = self.pid();
        let ask = |command: &str| self.must(command, json!({})).map_err(anyhow::Error::msg);
        let report = check_ram(pid, ask).map_err(|error| format!("{error:#}"))?;
        match report.is_right() && report.pages_checked > 0 {
            true => Ok(()),
            false => Err(format!(
                "{} of {} pages are wrong: {:?}",
                report.wrong_count, report.pages_checked, report.wrong
            )),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
