//! The program: its commands, and machines that it runs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use paguro_lab::process::Process;
use paguro_oracle::Report;
pub use paguro_testkit::{MemoryCgroup, Turn, turn};
use paguro_testkit::{wait, wait_until};
use serde_json::json;

pub use crate::qmp::Qmp;

pub const PAGURO: &str = env!("CARGO_BIN_EXE_paguro");

/// The program, in no environment that would change what it does. What whoever runs the tests ignores
/// (a script's `&` has INT and QUIT ignored) is not ignored in it.
pub fn paguro<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT", PAGURO]);
    plain(&mut command).args(args);
    command
}

/// In no such environment.
pub fn plain(command: &mut Command) -> &mut Command {
    command.env_remove("PAGURO_FORCE").env_remove("PAGURO_LOG")
}

/// What a command that ends by itself printed.
pub fn output<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = paguro(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    finish(command.spawn().unwrap())
}

/// What a process printed until its end, which must come.
pub fn finish(mut child: Child) -> Output {
    // Little is printed: it fits the pipes.
    let ended = wait(|| child.try_wait().unwrap());
    if ended.is_none() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended.is_some(), "it does not end: {}", text(&output.stderr));
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `paguro run` with a control socket, `--accel threads` and little RAM.
pub struct Machine {
    process: Process,
    _turn: Option<Turn>,
}

impl Machine {
    /// Runs one in `dir`; `args` come after `--qmp`.
    pub fn run(dir: &Path, args: &[&str]) -> Self {
        let turn = turn();
        let mut machine = Self::run_in_turn(dir, args);
        machine._turn = Some(turn);
        machine
    }

    /// As [`Self::run`], for a test that has its turn.
    pub fn run_in_turn(dir: &Path, args: &[&str]) -> Self {
        Self::run_forced(dir, args, "")
    }

    /// As [`Self::run_in_turn`], with that as its `PAGURO_FORCE`.
    pub fn run_forced(dir: &Path, args: &[&str], force: &str) -> Self {
        let mut command = paguro([""; 0]);
        command.env("PAGURO_FORCE", force);
        Self::run_by(command, dir, args)
    }

    /// As [`Self::run_in_turn`], in a cgroup.
    pub fn run_in(cgroup: &MemoryCgroup, dir: &Path, args: &[&str]) -> Self {
        // Before it is the program, so that all that the program has is counted.
        let mut command = Command::new("/bin/sh");
        let join = r#"echo $$ > "$0" && exec "$@""#;
        command.args(["-c", join]).arg(cgroup.members()).arg(PAGURO);
        plain(&mut command);
        Self::run_by(command, dir, args)
    }

    /// The same by a command that has yet to be given arguments.
    pub fn run_by(command: Command, dir: &Path, args: &[&str]) -> Self {
        Self::spawn(command, dir, args, |command| command.stderr(Stdio::piped()))
    }

    /// The same by a command that is changed when it has its arguments.
    pub fn run_as(
        dir: &Path,
        args: &[&str],
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        Self::spawn(paguro([""; 0]), dir, args, change)
    }

    fn spawn(
        mut command: Command,
        dir: &Path,
        args: &[&str],
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut all = vec!["run"];
        if !args.contains(&"--serial") {
            all.extend(["--serial", "none"]);
        }
        if !args.contains(&"--accel") {
            all.extend(["--accel", "threads"]);
        }
        // These bring RAM with them.
        let own = ["--restore", "--memory", "cpr-transfer"];
        if !own.iter().any(|option| args.contains(option)) {
            all.extend(["--memory", "16M"]);
        }
        all.extend(args);
        let command = command.args(all).stdin(Stdio::null());
        let socket = dir.join("qmp.sock");
        let connect = |socket: &Path| UnixStream::connect(socket);
        let started = Process::start(change(command), socket, |_| (), connect);
        let (process, _) = started.unwrap_or_else(|error| panic!("{error:#}"));
        Self {
            process,
            _turn: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn socket(&self) -> &Path {
        self.process.socket()
    }

    pub fn qmp_address(&self) -> String {
        self.process.qmp_address()
    }

    /// A connection after its negotiation.
    pub fn connect(&self) -> Qmp {
        Qmp::connect(self.socket())
    }

    /// `paguro snapshot` of it.
    pub fn snapshot(&self, file: &Path, options: &[&str]) -> Output {
        let address = self.qmp_address();
        let mut args = vec!["snapshot", "--qmp", &address, file.to_str().unwrap()];
        args.extend(options);
        output(args)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; its status and what it said.
    pub fn wait(self) -> (ExitStatus, String) {
        self.process.finish().unwrap()
    }
}

/// RAM of a stopped machine, looked at from outside, against what its counters imply.
pub fn check_ram(qmp: &mut Qmp, pid: u32) -> Report {
    paguro_lab::machine::check_ram(pid, |command| Ok(qmp.execute(command, json!({})))).unwrap()
}

/// Waits until the guest has written enough that it takes a while to send; it runs on.
pub fn wait_written(qmp: &mut Qmp, pid: u32) {
    const WRITES: u64 = 64;
    wait_until("writes of the guest", || {
        qmp.execute("stop", json!({}));
        let vcpus = check_ram(qmp, pid).vcpus;
        qmp.execute("cont", json!({}));
        vcpus.iter().map(|vcpu| vcpu.done).sum::<u64>() >= WRITES
    });
}
