//! Pipes that nobody reads: what the guest says, and what the program says.

use std::io::{PipeReader, PipeWriter, Read, pipe};

use rustix::process::Signal;
use serde_json::json;

use crate::machine::{Machine, text, turn, wait_written};
use crate::migrating::has_kvm;

/// A pipe into which nothing goes any more, and what is in it.
fn full_pipe() -> (PipeReader, PipeWriter, usize) {
    let (reader, writer) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut full = 0;
    while let Ok(count) = rustix::io::write(&writer, &[b' '; 4096]) {
        full += count;
    }
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer, full)
}

#[test]
fn a_guest_runs_on_whose_console_nobody_reads() {
    if !has_kvm() {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (mut console, writer, full) = full_pipe();
    let args = ["--accel", "kvm", "--serial", "stdio"];
    let machine = Machine::run_as(dir.path(), &args, |command| {
        command.stdout(writer).stderr(std::process::Stdio::piped())
    });
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    // What was said is there for who begins to read.
    let mut said = vec![0; full + 12];
    console.read_exact(&mut said).unwrap();
    assert_eq!(text(&said[full..]), "paguro guest");
    qmp.execute("quit", json!({}));
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn a_machine_works_and_ends_whose_messages_nobody_reads() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (mut messages, writer, full) = full_pipe();
    let args = ["--workload", "rate=unlimited"];
    let machine = Machine::run_as(dir.path(), &args, |command| {
        command.env("PAGURO_LOG", "trace").stderr(writer)
    });
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.set(&[("mapped-ram", true)]);
    let uri = format!("file:{}", dir.path().join("a").display());
    qmp.execute("migrate", json!({ "uri": uri }));
    assert_eq!(qmp.migration_end()["status"], "completed");
    machine.signal(Signal::TERM);
    let (status, _) = machine.wait();
    assert!(status.success(), "{status}");
    // The pipe takes nothing, and yet all was done; what was there is untouched.
    let mut said = Vec::new();
    messages.read_to_end(&mut said).unwrap();
    assert!(said.len() >= full);
}

#[test]
fn a_console_log_is_kept_by_who_goes_on_with_it() {
    if !has_kvm() {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, "of yesterday\n").unwrap();
    let serial = format!("file:{}", path.display());
    let args = ["--accel", "kvm", "--serial", &serial];
    let kept = || {
        let said = std::fs::read_to_string(&path).unwrap();
        said.starts_with("of yesterday\npaguro guest: vcpu 0 of 1")
    };
    let machine = Machine::run_in_turn(dir.path(), &args);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.set(&[("mapped-ram", true)]);
    let file = dir.path().join("a");
    qmp.execute(
        "migrate",
        json!({ "uri": format!("file:{}", file.display()) }),
    );
    assert_eq!(qmp.migration_end()["status"], "completed");
    qmp.execute("quit", json!({}));
    assert!(machine.wait().0.success());
    assert!(kept());
    for way in [
        ["--restore", file.to_str().unwrap()],
        ["--incoming", "defer"],
    ] {
        let args = [&args[..], &way].concat();
        let machine = Machine::run_in_turn(dir.path(), &args);
        machine.connect().execute("quit", json!({}));
        assert!(machine.wait().0.success());
        assert!(kept(), "{way:?}");
    }
}
