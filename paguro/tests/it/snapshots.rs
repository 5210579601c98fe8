//! Snapshots over the control socket.

use rustix::process::Signal;
use serde_json::json;

use crate::machine::{Machine, Qmp, finish, output, text, wait_written};

fn run(args: &[&str]) -> (tempfile::TempDir, Machine) {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), args);
    (dir, machine)
}

fn uri(dir: &tempfile::TempDir, name: &str) -> String {
    format!("file:{}", dir.path().join(name).display())
}

/// A machine whose snapshots to a file cannot end before they are cancelled: they go slowly, and
/// there is something to save.
fn run_slow() -> (tempfile::TempDir, Machine, Qmp) {
    let (dir, machine) = run(&[]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.set(&[("mapped-ram", true), ("events", true)]);
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 4096 }));
    (dir, machine, qmp)
}

/// Whether this process may freeze memory of threads; says so if not.
fn can_freeze(machine: &Machine) -> bool {
    can_background(&mut machine.connect())
}

/// As [`can_freeze`], asked over a connection that there is.
pub fn can_background(qmp: &mut Qmp) -> bool {
    if !qmp.try_set(&[("background-snapshot", true)]) {
        return false;
    }
    qmp.set(&[("background-snapshot", false)]);
    true
}

/// What it would take for hours is done when nothing limits it any more.
#[test]
fn another_limit_counts_for_the_snapshot_that_runs() {
    for (mapped, background) in [(true, false), (true, true), (false, true)] {
        let (dir, _machine, mut qmp) = run_slow();
        if background && !can_background(&mut qmp) {
            return;
        }
        let ways = [("mapped-ram", mapped), ("background-snapshot", background)];
        qmp.set(&ways);
        qmp.execute("migrate", json!({ "uri": uri(&dir, "a") }));
        qmp.wait_migration("active");
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 5000 }));
        let now = qmp.execute("query-migrate", json!({}));
        assert_eq!(now["status"], "active", "{ways:?}");
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }));
        assert_eq!(qmp.migration_end()["status"], "completed", "{ways:?}");
    }
}

#[test]
fn mapped_ram_needs_a_file() {
    let (_dir, machine) = run(&[]);
    let mut qmp = machine.connect();
    qmp.set(&[("mapped-ram", true)]);
    let (class, desc) = qmp.refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert_eq!(class, "GenericError");
    assert!(desc.contains("seekable"), "{desc}");
    assert_eq!(qmp.execute("query-migrate", json!({})), json!({}));
}

#[test]
fn a_background_snapshot_tells_its_states_and_lets_the_guest_run() {
    let (dir, machine) = run(&[]);
    if !can_freeze(&machine) {
        return;
    }
    let mut qmp = machine.connect();
    qmp.set(&[
        ("background-snapshot", true),
        ("mapped-ram", true),
        ("events", true),
    ]);
    qmp.execute("migrate", json!({ "uri": uri(&dir, "a"), "detach": true }));
    let mut statuses = Vec::new();
    while statuses.last().is_none_or(|last| last != "completed") {
        for event in qmp.events_until("MIGRATION") {
            if event["event"] == "MIGRATION" {
                statuses.push(event["data"]["status"].as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(statuses.first().map(String::as_str), Some("setup"));
    assert!(statuses.contains(&"active".to_owned()), "{statuses:?}");
    let end = qmp.execute("query-migrate", json!({}));
    assert_eq!(end["status"], "completed");
    for field in ["total-time", "setup-time", "downtime"] {
        assert!(end[field].is_u64(), "{field}: {end}");
    }
    let ram = &end["ram"];
    assert_eq!(ram["total"], 16 << 20);
    assert_eq!(ram["remaining"], 0);
    assert_eq!(ram["page-size"], 4096);
    let (normal, zero) = (
        ram["normal"].as_u64().unwrap(),
        ram["duplicate"].as_u64().unwrap(),
    );
    assert_eq!((normal + zero) * 4096, 16 << 20);
    assert_eq!(ram["normal-bytes"], normal * 4096);
    assert!(ram["transferred"].as_u64().unwrap() >= normal * 4096);
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    let report = qmp.execute("x-paguro-query-report", json!({}));
    assert_eq!(report["normal_pages"], normal);
    assert!(dir.path().join("a").exists());
}

#[test]
fn without_events_no_migration_event_comes_but_stop_and_resume_do() {
    let (dir, machine) = run(&[]);
    if !can_freeze(&machine) {
        return;
    }
    let mut qmp = machine.connect();
    qmp.set(&[("background-snapshot", true), ("mapped-ram", true)]);
    qmp.execute("migrate", json!({ "uri": uri(&dir, "a") }));
    assert_eq!(qmp.migration_end()["status"], "completed");
    let mut names = Vec::new();
    // The RESUME of the start may have come late; what counts is STOP, then RESUME.
    while !names.ends_with(&["STOP".to_owned(), "RESUME".to_owned()]) {
        let event = qmp.event();
        names.push(event["event"].as_str().unwrap().to_owned());
    }
    assert!(!names.contains(&"MIGRATION".to_owned()), "{names:?}");
}

#[test]
fn a_stopped_snapshot_leaves_the_guest_in_postmigrate() {
    let (dir, machine) = run(&[]);
    let mut qmp = machine.connect();
    qmp.set(&[("mapped-ram", true)]);
    let addr = json!({ "transport": "file", "filename": dir.path().join("a"), "offset": 0 });
    let channel = json!({ "channel-type": "main", "addr": addr });
    qmp.execute("migrate", json!({ "channels": [channel] }));
    assert_eq!(qmp.migration_end()["status"], "completed");
    let status = qmp.execute("query-status", json!({}));
    assert_eq!(status, json!({ "running": false, "status": "postmigrate" }));
    let (_, desc) = qmp.refused("migrate", json!({ "uri": uri(&dir, "b") }));
    assert!(desc.contains("previous migration"), "{desc}");
    qmp.execute("cont", json!({}));
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
}

#[test]
fn a_failure_shows_in_query_migrate_and_the_guest_runs_on() {
    let (dir, machine) = run(&[]);
    let mut qmp = machine.connect();
    qmp.set(&[("mapped-ram", true)]);
    qmp.execute("migrate", json!({ "uri": uri(&dir, "no/such/dir") }));
    let end = qmp.migration_end();
    assert_eq!(end["status"], "failed");
    let desc = end["error-desc"].as_str().unwrap();
    assert!(
        desc.contains("no/such/dir") && desc.contains("No such file"),
        "{desc}"
    );
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    // What failed does not stand in the way of the next.
    qmp.execute("migrate", json!({ "uri": uri(&dir, "a") }));
    assert_eq!(qmp.migration_end()["status"], "completed");
}

#[test]
fn one_at_a_time_and_cancelling_is_idempotent() {
    let (dir, _machine, mut qmp) = run_slow();
    qmp.execute("migrate_cancel", json!({}));
    qmp.execute("migrate", json!({ "uri": uri(&dir, "a") }));
    let (_, desc) = qmp.refused("migrate", json!({ "uri": uri(&dir, "b") }));
    assert!(desc.contains("in progress"), "{desc}");
    let list = json!({ "capabilities": [{ "capability": "events", "state": false }] });
    let (_, desc) = qmp.refused("migrate-set-capabilities", list);
    assert!(desc.contains("in progress"), "{desc}");
    qmp.execute("migrate_cancel", json!({}));
    qmp.execute("migrate_cancel", json!({}));
    let end = qmp.migration_end();
    assert_eq!(end["status"], "cancelled");
    assert!(end.get("error-desc").is_none(), "{end}");
    qmp.execute("migrate_cancel", json!({}));
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "qmp.sock")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn an_unseen_writer_is_refused_by_its_name() {
    let (dir, machine) = run(&["--x-unseen-writer", "vhost-user-net"]);
    if !can_freeze(&machine) {
        return;
    }
    let output = machine.snapshot(&dir.path().join("a"), &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("vhost-user-net") && said.contains("hint:"),
        "{said}"
    );
    let output = machine.snapshot(&dir.path().join("a"), &["--stop"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_command_prints_json_and_puts_capabilities_back() {
    let (dir, machine) = run(&[]);
    if !can_freeze(&machine) {
        return;
    }
    machine
        .connect()
        .set(&[("mapped-ram", true), ("events", true)]);
    let file = dir.path().join("a,offset=b");
    let output = machine.snapshot(&file, &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["status"], "completed");
    assert_eq!(report["path"], file.to_str().unwrap());
    for field in [
        "pause_us",
        "setup_us",
        "save_us",
        "total_us",
        "normal_pages",
        "zero_pages",
    ] {
        assert!(report[field].is_u64(), "{field}: {report}");
    }
    assert!(file.exists());
    let now = machine
        .connect()
        .execute("query-migrate-capabilities", json!({}));
    let on = now.as_array().unwrap().iter();
    let on = on.filter(|entry| entry["state"] == true);
    let on: Vec<_> = on.map(|entry| &entry["capability"]).collect();
    assert_eq!(on, ["events", "mapped-ram"]);
}

#[test]
fn the_command_fails_with_what_the_machine_said() {
    let (dir, machine) = run(&[]);
    let file = dir.path().join("no/such/dir");
    let output = machine.snapshot(&file, &["--json", "--stop"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["status"], "failed");
    assert!(
        report["error"].as_str().unwrap().contains("No such file"),
        "{report}"
    );
    let nobody = dir.path().join("nobody");
    let args = [
        "snapshot",
        "--qmp",
        &format!("unix:{}", nobody.display()),
        "x",
    ]
    .map(str::to_owned);
    let lonely = output_of(args);
    assert!(
        lonely.contains("no QMP socket") && lonely.contains("hint:"),
        "{lonely}"
    );
}

/// What cannot be told of something complete does not make a failure of it.
#[test]
fn a_report_that_cannot_be_printed_is_no_failure() {
    let (dir, machine) = run(&[]);
    let address = machine.qmp_address();
    let file = dir.path().join("a");
    for json in [true, false] {
        let mut args = vec!["snapshot", "--stop", "--qmp", &address];
        args.push(file.to_str().unwrap());
        args.extend(json.then_some("--json"));
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = crate::machine::paguro(args);
        let command = command.stdout(full.unwrap());
        let output = command.stderr(std::process::Stdio::piped()).output();
        let output = output.unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("its report cannot be printed"), "{said}");
        machine.connect().execute("cont", json!({}));
    }
    assert!(file.exists());
}

fn output_of(args: [String; 4]) -> String {
    let output = output(args);
    assert_eq!(output.status.code(), Some(1));
    text(&output.stderr)
}

#[test]
fn an_interrupted_command_cancels_and_the_guest_runs_on() {
    let (dir, machine, qmp) = run_slow();
    drop(qmp);
    let address = machine.qmp_address();
    let file = dir.path().join("a");
    let child = crate::machine::paguro([
        "snapshot",
        "--stop",
        "--json",
        "--qmp",
        &address,
        file.to_str().unwrap(),
    ])
    .stdout(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    wait_until_caught(child.id(), Signal::INT);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["status"], "cancelled", "{report}");
    assert!(!file.exists());
    let status = machine.connect().execute("query-status", json!({}));
    assert_eq!(status["status"], "running");
}

/// Waits until a process handles a signal, which before would end it unheard.
pub fn wait_until_caught(pid: u32, signal: Signal) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        if caught >> (signal.as_raw() - 1) & 1 == 1 {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the signal is never caught"
        );
        std::thread::yield_now();
    }
}

#[test]
fn signals_end_the_program_orderly_also_during_a_snapshot() {
    let (dir, machine, mut qmp) = run_slow();
    qmp.execute("migrate", json!({ "uri": uri(&dir, "a") }));
    // Before it has the machine paused it fails, as one does that finds its machine ended.
    qmp.wait_migration("active");
    machine.signal(Signal::TERM);
    let events = qmp.events_until("SHUTDOWN");
    let last = events
        .iter()
        .find(|event| event["event"] == "SHUTDOWN")
        .unwrap();
    assert_eq!(
        last["data"],
        json!({ "guest": false, "reason": "host-signal" })
    );
    // The snapshot ends as a cancelled one, and the client is told, before or after.
    let all: Vec<_> = events
        .into_iter()
        .chain(std::iter::from_fn(|| qmp.event_or_end()))
        .collect();
    let told = all
        .iter()
        .any(|event| event["data"]["status"] == "cancelled");
    assert!(told, "{all:?}");
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
