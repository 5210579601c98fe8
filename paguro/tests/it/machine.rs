//! A program that runs a machine, and a raw QMP connection to it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use paguro_oracle::Report;
pub use paguro_testkit::{MemoryCgroup, Turn, turn};
use serde_json::{Value, json};

pub const PAGURO: &str = env!("CARGO_BIN_EXE_paguro");

/// Long enough that only a test that fails gets there.
const IN_VAIN: Duration = Duration::from_secs(60);

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
    let deadline = Instant::now() + IN_VAIN;
    // Little is printed: it fits the pipes.
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("it does not end: {}", text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `paguro run` with a control socket, `--accel threads` and little RAM.
pub struct Machine {
    child: Option<Child>,
    socket: PathBuf,
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
        let socket = dir.join("qmp.sock");
        let qmp = format!("unix:{}", socket.display());
        let mut all = vec!["run", "--qmp", &qmp];
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
        let child = change(command).spawn().unwrap();
        let mut machine = Self {
            child: Some(child),
            socket,
            _turn: None,
        };
        machine.wait_for_socket();
        machine
    }

    fn wait_for_socket(&mut self) {
        let deadline = Instant::now() + IN_VAIN;
        while UnixStream::connect(&self.socket).is_err() {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            if ended.is_some() {
                let output = self.child.take().unwrap().wait_with_output().unwrap();
                panic!("it ended: {}", text(&output.stderr));
            }
            assert!(Instant::now() < deadline, "no socket");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn qmp_address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// A connection after its negotiation.
    pub fn connect(&self) -> Qmp {
        let mut qmp = Qmp::connect(&self.socket);
        assert_eq!(qmp.execute("qmp_capabilities", json!({})), json!({}));
        qmp
    }

    /// `paguro snapshot` of it.
    pub fn snapshot(&self, file: &Path, options: &[&str]) -> Output {
        let address = self.qmp_address();
        let mut args = vec!["snapshot", "--qmp", &address, file.to_str().unwrap()];
        args.extend(options);
        output(args)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    /// Waits for its end; its status and what it said.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let output = finish(self.child.take().unwrap());
        (output.status, text(&output.stderr))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// RAM of a stopped machine, looked at from outside, against what its counters imply.
pub fn check_ram(qmp: &mut Qmp, pid: u32) -> Report {
    paguro_lab::machine::check_ram(pid, |command| Ok(qmp.execute(command, json!({})))).unwrap()
}

/// A QMP connection that hides nothing.
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    pub greeting: Value,
    /// Events that came before an answer.
    pub events: Vec<Value>,
}

/// Waits until the guest has written enough that it takes a while to send; it runs on.
pub fn wait_written(qmp: &mut Qmp, pid: u32) {
    const WRITES: u64 = 64;
    let deadline = Instant::now() + IN_VAIN;
    loop {
        qmp.execute("stop", json!({}));
        let vcpus = check_ram(qmp, pid).vcpus;
        qmp.execute("cont", json!({}));
        if vcpus.iter().map(|vcpu| vcpu.done).sum::<u64>() >= WRITES {
            return;
        }
        assert!(Instant::now() < deadline, "the guest does not write");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Qmp {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(IN_VAIN)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let greeting = serde_json::from_str(&line).unwrap();
        Self {
            stream,
            lines,
            greeting,
            events: Vec::new(),
        }
    }

    /// Bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next line, event or answer; nothing at the end.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line).unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    /// The next answer.
    pub fn answer(&mut self) -> Value {
        loop {
            let line = self.line().expect("the connection was closed");
            if line.get("event").is_none() {
                return line;
            }
            self.events.push(line);
        }
    }

    /// The `return` value of a command.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(request.to_string().as_bytes());
        let mut answer = self.answer();
        assert!(answer.get("return").is_some(), "{command}: {answer}");
        answer["return"].take()
    }

    /// Class and text of the error that a command must meet.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> (String, String) {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(request.to_string().as_bytes());
        let answer = self.answer();
        let part = |name: &str| {
            answer["error"][name]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        assert!(answer.get("error").is_some(), "{command}: {answer}");
        (part("class"), part("desc"))
    }

    pub fn set(&mut self, capabilities: &[(&str, bool)]) {
        let list = capabilities
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }));
        let list = Value::from_iter(list);
        self.execute("migrate-set-capabilities", json!({ "capabilities": list }));
    }

    /// The next event, one that came before an answer first.
    pub fn event(&mut self) -> Value {
        if self.events.is_empty() {
            return self.line().expect("the connection was closed");
        }
        self.events.remove(0)
    }

    /// The events so far and up to the next of that name.
    pub fn events_until(&mut self, name: &str) -> Vec<Value> {
        let mut events = std::mem::take(&mut self.events);
        while !events.iter().any(|event| event["event"] == name) {
            events.push(self.line().expect("the connection was closed"));
        }
        events
    }

    /// Waits for a state of `query-status`.
    #[track_caller]
    pub fn wait_status(&mut self, status: &str) {
        self.wait_for("query-status", status);
    }

    /// Waits for a status of `query-migrate`.
    #[track_caller]
    pub fn wait_migration(&mut self, status: &str) -> Value {
        self.wait_for("query-migrate", status)
    }

    #[track_caller]
    fn wait_for(&mut self, command: &str, status: &str) -> Value {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.execute(command, json!({}));
            if now["status"] == status {
                return now;
            }
            let is_over = ["completed", "failed", "cancelled"]
                .iter()
                .any(|end| now["status"] == *end);
            assert!(!is_over, "it is over, and was never {status}: {now}");
            assert!(Instant::now() < deadline, "not {status}: {now}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Polls `query-migrate` until the migration has ended.
    pub fn migration_end(&mut self) -> Value {
        let deadline = Instant::now() + IN_VAIN;
        loop {
            let now = self.execute("query-migrate", json!({}));
            if ["completed", "failed", "cancelled"]
                .iter()
                .any(|end| now["status"] == *end)
            {
                return now;
            }
            assert!(Instant::now() < deadline, "it does not end: {now}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
