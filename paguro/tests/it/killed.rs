//! What is left of a snapshot whose program is killed: nothing, and the old file as it was.

use paguro_testkit::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::machine::{Machine, wait_written};

/// Kills the program in a phase of a snapshot, and looks at the directory.
fn kill_when(background: bool, rate_bytes: u64, phase: impl Fn(&str, u64) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    std::fs::write(&file, "the old one").unwrap();
    let machine = Machine::run(dir.path(), &["--workload", "rate=unlimited"]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    let wanted = [("background-snapshot", background), ("mapped-ram", true)];
    if !qmp.try_set(&wanted) {
        return;
    }
    qmp.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": rate_bytes }),
    );
    qmp.execute(
        "migrate",
        json!({ "uri": format!("file:{}", file.display()) }),
    );
    wait_until("the moment to kill it", || {
        let now = qmp.execute("query-migrate", json!({}));
        let status = now["status"].as_str().unwrap_or("none").to_owned();
        assert_ne!(
            status, "completed",
            "too fast for the test to mean anything"
        );
        phase(&status, now["ram"]["transferred"].as_u64().unwrap_or(0))
    });
    machine.signal(Signal::KILL);
    let (status, _) = machine.wait();
    assert!(!status.success());
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the old one");
    // The socket of a killed program stays, and is replaced by the next one.
    assert_eq!(left, ["qmp.sock", "snapshot"]);
}

#[test]
fn a_program_killed_at_the_start_of_a_snapshot_leaves_nothing() {
    kill_when(true, 64 << 10, |_, _| true);
}

#[test]
fn a_program_killed_while_it_saves_leaves_nothing() {
    kill_when(true, 64 << 10, |status, written| {
        status == "active" && written > 0
    });
}

#[test]
fn a_program_killed_in_a_stopped_snapshot_leaves_nothing() {
    kill_when(false, 64 << 10, |status, written| {
        status == "active" && written > 0
    });
}
