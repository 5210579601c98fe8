//! Migrations that do not come to their end: the guest runs on, and everybody says why.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use paguro_testkit::wait_until;
use serde_json::json;

use crate::machine::{Machine, paguro, text, turn};
use crate::migrating::Side;

/// A migration that is under way, and will be for long: its guest has something to send, and is
/// given no bandwidth for it.
fn under_way() -> (Side, Side) {
    let mut here = Side::run(&["--workload", "rate=unlimited"]);
    here.runs_on(100_000);
    let (there, at) = Side::incoming("unix", &[]);
    let slow = json!({ "max-bandwidth": 100_000 });
    here.qmp.execute("migrate-set-parameters", slow);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("active");
    (here, there)
}

/// What can answer is a channel, and its other side a source, whatever became of the descriptor since.
#[test]
fn an_inherited_socket_is_no_stored_machine() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (mut from, to) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&to, rustix::io::FdFlags::empty()).unwrap();
    let uri = format!("fd:{}", to.as_raw_fd());
    let machine = Machine::run_in_turn(dir.path(), &["--incoming", &uri]);
    drop(to);
    from.write_all(b"QEVM\0\0\0\x03, and then nothing that a source says")
        .unwrap();
    let (status, said) = machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(!said.contains("the command or the file"), "{said}");
}

#[test]
fn a_cancelled_migration_changes_nothing() {
    let _turn = turn();
    let (mut here, there) = under_way();
    let now = here.qmp.execute("query-migrate", json!({}));
    assert!(now["x-paguro-advice"]["may"].as_array().unwrap().len() > 1);
    let (_, desc) = here
        .qmp
        .refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(desc.contains("in progress"), "{desc}");
    here.qmp.execute("migrate_cancel", json!({}));
    here.qmp.wait_migration("cancelled");
    assert_eq!(here.status(), "running");
    let writes = here.check();
    here.runs_on(writes);
    let (status, said) = there.machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("hint:"), "{said}");
    // And it can be tried again.
    let fast = json!({ "max-bandwidth": 0 });
    here.qmp.execute("migrate-set-parameters", fast);
    let (mut there, at) = Side::incoming("unix", &[]);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("completed");
    there.qmp.wait_status("running");
    there.check();
}

#[test]
fn a_destination_that_dies_leaves_the_guest_where_it_is() {
    let _turn = turn();
    let (mut here, there) = under_way();
    there.machine.signal(rustix::process::Signal::KILL);
    let ended = here.qmp.wait_migration("failed");
    let said = ended["error-desc"].as_str().unwrap();
    assert!(said.contains("destination"), "{ended}");
    assert_eq!(here.status(), "running");
    let writes = here.check();
    here.runs_on(writes);
}

#[test]
fn a_machine_of_another_size_is_refused_with_both_values() {
    let _turn = turn();
    let here = Side::run(&["--workload", "rate=10000"]);
    let (there, at) = Side::incoming("unix", &["--memory", "24M"]);
    let (mut here, output) = here.migrate(&at, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("hint:"), "{said}");
    assert_eq!(here.status(), "running");
    let (status, said) = there.machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    for value in ["0x1800000", "0x1000000", "hint:"] {
        assert!(said.contains(value), "{value} is not in: {said}");
    }
}

/// It has the permission to run in its hands, and neither writes it nor says that it does not.
#[test]
fn a_sender_that_ends_without_a_word_leaves_nobody_waiting() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_forced(dir.path(), &[], "break-silent-sender");
    let qmp = machine.connect();
    let mut here = Side { dir, machine, qmp };
    let (mut there, at) = Side::incoming("unix", &[]);
    here.qmp.execute("migrate", json!({ "uri": at }));
    // It is a doubt, which ends when the destination is reached again and told to run.
    here.qmp.wait_migration("completed");
    there.qmp.wait_status("running");
    let writes = there.check();
    there.runs_on(writes);
    assert_eq!(here.status(), "postmigrate");
}

#[test]
fn nobody_there_is_a_clear_error() {
    let _turn = turn();
    let here = Side::run(&[]);
    let nowhere = format!("unix:{}", here.dir.path().join("nowhere").display());
    let (mut here, output) = here.migrate(&nowhere, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let ended: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ended["status"], "failed");
    assert!(
        ended["error"].as_str().unwrap().contains("nowhere"),
        "{ended}"
    );
    assert!(ended["hint"].is_string(), "{ended}");
    assert_eq!(here.status(), "running");
}

#[test]
fn an_interrupted_command_cancels() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=unlimited"]);
    here.runs_on(100_000);
    let (there, at) = Side::incoming("unix", &[]);
    let Side { dir, machine, qmp } = here;
    drop(qmp);
    let address = machine.qmp_address();
    let args = ["migrate", "--qmp", &address, &at, "--max-bandwidth", "100K"];
    let mut command = paguro(args);
    let command = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The destination is the one that can be looked at meanwhile.
    let mut there = there;
    there.qmp.wait_migration("active");
    let pid = rustix::process::Pid::from_child(&command);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = crate::machine::finish(command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cancelled"), "{said}");
    let qmp = machine.connect();
    let mut here = Side { dir, machine, qmp };
    assert_eq!(here.status(), "running");
    // What was set for it was put back.
    let now = here.qmp.execute("query-migrate-parameters", json!({}));
    assert_eq!(now["max-bandwidth"], 0);
    let (status, _) = there.machine.wait();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_machine_that_waits_refuses_what_it_cannot_do() {
    let _turn = turn();
    let mut there = Side::run(&["--incoming", "defer"]);
    assert_eq!(there.status(), "inmigrate");
    let (_, desc) = there
        .qmp
        .refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(desc.contains("incoming"), "{desc}");
    there
        .qmp
        .execute("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }));
    let uri = json!({ "uri": "tcp:127.0.0.1:0" });
    there.qmp.refused("migrate-incoming", uri);
    assert_eq!(there.status(), "inmigrate");
    there.quit();
}

#[test]
fn the_rate_of_writes_can_be_measured_before() {
    let _turn = turn();
    // Of pages only a few are looked at: the guest writes all of them in the little time it gets.
    let mut here = Side::run(&["--workload", "rate=unlimited"]);
    let now = here.qmp.execute("query-dirty-rate", json!({}));
    assert_eq!(now["status"], "unstarted");
    for mode in ["dirty-bitmap", "page-sampling"] {
        let how = json!({ "calc-time": 500, "calc-time-unit": "millisecond", "mode": mode });
        here.qmp.execute("calc-dirty-rate", how);
        let mut now = json!({});
        wait_until("a measure", || {
            now = here.qmp.execute("query-dirty-rate", json!({}));
            assert!(now.get("x-paguro-error").is_none(), "{now}");
            now["status"] == "measured"
        });
        assert!(now["dirty-rate"].as_u64().unwrap() > 0, "{now}");
    }
    let how = json!({ "calc-time": 1, "mode": "dirty-ring" });
    here.qmp.refused("calc-dirty-rate", how);
}

#[test]
fn writes_are_sampled_beside_a_migration_and_tracked_for_one_at_a_time() {
    let _turn = turn();
    let (mut here, there) = under_way();
    let tracked = json!({ "calc-time": 60, "mode": "dirty-bitmap" });
    let (_, desc) = here.qmp.refused("calc-dirty-rate", tracked.clone());
    assert!(desc.contains("in progress"), "{desc}");
    let sampled = json!({ "calc-time": 60 });
    here.qmp.execute("calc-dirty-rate", sampled);
    here.qmp.execute("migrate_cancel", json!({}));
    here.qmp.wait_migration("cancelled");
    assert_eq!(there.machine.wait().0.code(), Some(1));
    // A migration that begins later goes through, too.
    let (mut there, at) = Side::incoming("unix", &[]);
    let fast = json!({ "max-bandwidth": 0 });
    here.qmp.execute("migrate-set-parameters", fast);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("completed");
    let now = here.qmp.execute("query-dirty-rate", json!({}));
    assert_eq!(now["status"], "measuring", "{now}");
    let writes = there.check();
    there.runs_on(writes);
    here.quit();
    there.qmp.execute("calc-dirty-rate", tracked);
    let (_, desc) = there
        .qmp
        .refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(desc.contains("being measured"), "{desc}");
    there.quit();
}
