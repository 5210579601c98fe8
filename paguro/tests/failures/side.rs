//! A process of the program, its control socket, and its RAM as the oracle sees it.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use paguro_lab::{Accel, Machine, MachineOptions, ProgressFile};
use paguro_qmp::ClientError;
use paguro_testkit::wait;
use serde_json::{Value, json};

/// What the other side may be silent for, in these tests: longer than a busy host keeps a thread
/// waiting.
pub const SILENCE_MS: u64 = 4000;

pub type Judged<T = ()> = Result<T, String>;

/// A machine with 16 MiB in a process. Dropping it kills the process.
pub struct Side {
    machine: Machine,
    pub progress: Arc<ProgressFile>,
}

/// KVM where it can be used.
pub fn accel() -> Accel {
    match paguro_lab::host::no_kvm() {
        None => Accel::Kvm,
        Some(_) => Accel::Threads,
    }
}

/// What all sides are.
pub fn options() -> MachineOptions {
    MachineOptions {
        memory_bytes: 16 << 20,
        accel: accel(),
        ..MachineOptions::new(env!("CARGO_BIN_EXE_paguro"))
    }
}

/// In a network namespace, if one is named.
fn in_namespace(namespace: Option<&str>) -> MachineOptions {
    let through = |name| ["ip", "netns", "exec", name].map(OsString::from).to_vec();
    MachineOptions {
        through: namespace.map_or_else(Vec::new, through),
        ..options()
    }
}

impl Side {
    /// Starts one, and waits for its control socket.
    pub fn start(options: &MachineOptions) -> Self {
        let machine = Machine::start(options).unwrap_or_else(|error| panic!("{error:#}"));
        let progress = machine.progress().clone();
        let mut side = Self { machine, progress };
        let silence = json!({ "x-paguro-silence": SILENCE_MS });
        side.must("migrate-set-parameters", silence).unwrap();
        side
    }

    /// Goes, and comes back as another client.
    pub fn reconnect(&mut self) {
        self.machine.hang_up();
        self.run_state().unwrap();
    }

    /// A machine whose guest writes at such a rate (`unlimited`, or pages a second).
    pub fn source(namespace: Option<&str>, rate: &str) -> Self {
        Self::start(&MachineOptions {
            workload: format!("rate={rate}").parse().unwrap(),
            ..in_namespace(namespace)
        })
    }

    /// One that waits at an address; what is chosen by the kernel is chosen when this returns.
    pub fn destination(namespace: Option<&str>, uri: &str) -> Self {
        let mut side = Self::start(&in_namespace(namespace).awaiting());
        side.must("migrate-incoming", json!({ "uri": uri }))
            .unwrap();
        side
    }

    /// A command: its answer, or the text of its error, or how the connection ended.
    pub fn must(&mut self, command: &str, arguments: Value) -> Judged<Value> {
        let answer = self.machine.execute(command, arguments);
        answer.map_err(|error| match error.downcast_ref() {
            Some(ClientError::Refused { command, desc, .. }) => format!("{command}: {desc}"),
            _ => format!("{command}: {error:#}: {}", self.said()),
        })
    }

    /// `kill -9`, and its end.
    pub fn kill(&mut self) {
        self.machine.kill();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.machine.ended().unwrap()
    }

    /// Waits for its end, which must be a failure that it explains. What it said.
    pub fn must_fail(&mut self) -> Judged<String> {
        let status = self.machine.wait_exit();
        let code = status.map_err(|error| error.to_string())?.code();
        let said = self.said();
        if code == Some(1) && said.contains("paguro: the machine did not come in: ") {
            Ok(said)
        } else {
            Err(format!("it ended with {code:?} and said {said:?}"))
        }
    }

    pub fn said(&self) -> String {
        self.machine.said()
    }

    /// The highest resident size so far, in bytes.
    pub fn peak_bytes(&self) -> Option<u64> {
        let memory = self.machine.process_memory().ok()?;
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
        let mut now = Value::Null;
        let reached = wait(|| {
            match self.migration() {
                Ok(answer) => now = answer,
                Err(error) => return Some(Err(error)),
            }
            let is = wanted.iter().any(|wanted| now["status"] == *wanted);
            is.then(|| Ok(now.clone()))
        });
        reached.unwrap_or_else(|| Err(format!("none of {wanted:?} is reached: {now}")))
    }

    pub fn writes(&self) -> u64 {
        self.progress.total_writes()
    }

    /// Waits until its guest has made so many writes.
    pub fn must_have_written(&self, count: u64) -> Judged {
        let written = wait(|| (self.writes() >= count).then_some(()));
        written.ok_or_else(|| format!("its guest makes no progress: {}", self.said()))
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
        // A guest that runs writes meanwhile; that one does not cannot be waited for.
        std::thread::sleep(Duration::from_millis(20));
        if self.writes() == before {
            Ok(())
        } else {
            Err("its guest runs".to_owned())
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
        if wanted.iter().all(|wanted| advice.contains(wanted)) {
            Ok(())
        } else {
            Err(format!("the advice lacks one of {wanted:?}: {now}"))
        }
    }

    /// By the oracle; the guest must stand still.
    pub fn check_ram(&mut self) -> Judged {
        let report = self.machine.check_ram();
        let report = report.map_err(|error| format!("{error:#}"))?;
        if report.is_right() && report.pages_checked > 0 {
            Ok(())
        } else {
            Err(format!(
                "{} of {} pages are wrong: {:?}",
                report.wrong_count, report.pages_checked, report.wrong
            ))
        }
    }
}
