//! Pipes that nobody reads: what the guest says, and what the program says.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, pipe};

use std::process::Stdio;

use paguro_testkit::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, finish, paguro, text, turn, wait_written};
use crate::migrating::has_kvm;
use crate::snapshots::can_background;

const IN_DOUBT: &str = "x-paguro-in-doubt";

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

/// A guest whose writes wait for room in the page buffer, because a command takes nothing.
#[test]
fn a_command_that_takes_nothing_ends_the_snapshot_and_not_the_guest() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let args = ["--memory", "64M", "--workload", "rate=unlimited"];
    let machine = Machine::run_in_turn(dir.path(), &args);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    if !can_background(&mut qmp) {
        return;
    }
    qmp.set(&[("background-snapshot", true)]);
    let small = json!({
        "x-paguro-silence": 300, "x-paguro-page-buffer": 4 << 20, "x-paguro-chunk-size": 1 << 16,
    });
    qmp.execute("migrate-set-parameters", small);
    qmp.execute("migrate", json!({ "uri": "exec:sleep 1000" }));
    let end = qmp.migration_end();
    assert_eq!(end["status"], "failed");
    let error = end["x-paguro-error"].as_str().unwrap();
    assert!(error.contains("was silent for 0.3 s"), "{end}");
    assert!(
        end["x-paguro-hint"]
            .as_str()
            .unwrap()
            .contains("x-paguro-silence"),
        "{end}"
    );
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    wait_written(&mut qmp, machine.pid());
}

/// A guest that is stopped for its migration, because a command no longer takes what is left.
#[test]
fn a_command_that_takes_no_rest_ends_the_migration_and_the_guest_runs_on() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &[]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.set(&[("pause-before-switchover", true)]);
    // It writes more while all is sent once than a pipe holds, and that is left when it is stopped.
    let all = json!({
        "x-paguro-silence": 700, "downtime-limit": 100_000, "max-bandwidth": 4_000_000,
    });
    qmp.execute("migrate-set-parameters", all);
    let id = dir.path().join("id");
    let command = format!("echo $$ > {}; exec cat > /dev/null", id.display());
    qmp.execute("migrate", json!({ "uri": format!("exec:{command}") }));
    qmp.wait_migration("pre-switchover");
    let id = std::fs::read_to_string(id).unwrap().trim().parse().unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(id, Signal::STOP).unwrap();
    qmp.execute("migrate-continue", json!({ "state": "pre-switchover" }));
    let end = qmp.migration_end();
    assert_eq!(end["status"], "failed");
    let error = end["x-paguro-error"].as_str().unwrap();
    assert!(error.contains("was silent for 0.7 s"), "{end}");
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
}

/// It has something to say in the middle, and what it reports at the end.
#[test]
fn a_command_ends_its_migration_whose_messages_cannot_be_written() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--workload", "rate=unlimited"]);
    wait_written(&mut machine.connect(), machine.pid());
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let address = machine.qmp_address();
    // It takes so long that the command comes to say that the guest is stopped.
    let to = "exec:cat >/dev/null; sleep 1";
    let mut command = paguro(["migrate", "--qmp", &address, to]);
    command.args([
        "--timeout=1",
        "--at-timeout=switchover",
        "--max-bandwidth=1M",
    ]);
    command.args(["--downtime-limit=1"]).stdin(Stdio::null());
    let child = command.stdout(full()).stderr(full()).spawn().unwrap();
    let output = finish(child);
    assert!(output.status.success(), "{}", output.status);
    let end = machine.connect().migration_end();
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(end["x-paguro-forced"], true, "{end}");
}

/// All is written, the guest stands still, and the command does not end.
#[test]
fn a_command_that_does_not_end_is_a_doubt_which_an_operator_ends() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--workload", "rate=10000"]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    let begin = |qmp: &mut Qmp, silence: u64, last: &str| {
        let silence = json!({ "x-paguro-silence": silence });
        qmp.execute("migrate-set-parameters", silence);
        let uri = format!("exec:cat > /dev/null; {last}");
        qmp.execute("migrate", json!({ "uri": uri }));
    };
    let may = |now: &Value, word: &str| now["x-paguro-advice"].to_string().contains(word);
    let forever = "exec sleep 1000";

    // Nobody says anything: the operator may decide, and the command is ended.
    let id = dir.path().join("id");
    let text = format!("echo $$ > {}; {forever}", id.display());
    begin(&mut qmp, 300, &text);
    let now = qmp.wait_migration(IN_DOUBT);
    assert!(
        may(&now, "`cont`") && may(&now, "`migrate_cancel`"),
        "{now}"
    );
    let why = now["x-paguro-error"].as_str().unwrap();
    assert!(why.contains("could not see the end of exec:"), "{why}");
    assert_eq!(
        qmp.execute("query-status", json!({}))["status"],
        "postmigrate"
    );
    qmp.execute("cont", json!({}));
    assert_eq!(qmp.migration_end()["status"], "failed");
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    let id = std::fs::read_to_string(id).unwrap().trim().parse().unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    assert!(rustix::process::test_kill_process(id).is_err());

    // It takes its time, and that it ends well is believed all the same.
    let go = dir.path().join("go");
    let text = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    begin(&mut qmp, 300, &text);
    qmp.wait_migration(IN_DOUBT);
    std::fs::write(&go, "").unwrap();
    let now = qmp.migration_end();
    assert_eq!(now["status"], "completed", "{now}");
    assert_eq!(now["x-paguro-error"], Value::Null);
    qmp.execute("cont", json!({}));

    // The silence is without a limit, and the operator's patience is not.
    begin(&mut qmp, 0, forever);
    wait_until("the operator to be asked", || {
        may(&qmp.execute("query-migrate", json!({})), "that it arrived")
    });
    qmp.execute("migrate_cancel", json!({}));
    let now = qmp.wait_migration(IN_DOUBT);
    assert!(may(&now, "`cont`"), "{now}");
    qmp.execute("cont", json!({}));
    qmp.migration_end();
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    wait_written(&mut qmp, machine.pid());
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
