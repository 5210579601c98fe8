//! What counts for one snapshot or migration only: nothing of it is ever set, whoever is killed.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use paguro_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, finish, paguro, text, turn, wait_written};
use crate::migrating::Side;

/// All that is set for migrations.
fn set(qmp: &mut Qmp) -> [Value; 2] {
    ["query-migrate-capabilities", "query-migrate-parameters"]
        .map(|command| qmp.execute(command, json!({})))
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A command of the program that is at work on a machine.
fn begin(args: &[&str]) -> Child {
    let mut command = paguro(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until a machine writes a file in `dir`.
fn wait_begun(machine: &Machine, dir: &Path) {
    let begun = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap();
        fds.flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
    };
    wait_until("a file that it writes", begun);
}

#[test]
fn a_snapshot_whose_command_is_killed_ends_and_leaves_nothing_set() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--workload", "rate=unlimited"]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    // Too slow to end by itself.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 4096 }));
    qmp.set(&[("multifd", true), ("events", true)]);
    let before = set(&mut qmp);
    drop(qmp);
    let (address, file) = (machine.qmp_address(), dir.path().join("a"));
    let command = [
        "snapshot",
        "--stop",
        "--qmp",
        &address,
        file.to_str().unwrap(),
    ];
    for (options, kill, end) in [
        (&[][..], Signal::KILL, "cancelled"),
        (&[], Signal::HUP, "cancelled"),
        (&["--on-disconnect", "cancel"], Signal::TERM, "cancelled"),
        (&["--on-disconnect", "continue"], Signal::INT, "cancelled"),
        (&["--on-disconnect", "continue"], Signal::KILL, "active"),
        (&["--on-disconnect", "continue"], Signal::TERM, "active"),
    ] {
        let child = begin(&[&command[..], options].concat());
        wait_begun(&machine, dir.path());
        signal(&child, kill);
        let output = finish(child);
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert_eq!(
            said.contains("goes on"),
            end == "active" && kill == Signal::TERM,
            "{said}"
        );
        let mut qmp = machine.connect();
        let now = qmp.wait_migration(end);
        assert_eq!(set(&mut qmp), before, "{options:?}, {kill:?}: {now}");
        qmp.execute("migrate_cancel", json!({}));
        qmp.wait_migration("cancelled");
        assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
        assert!(!file.exists());
    }
}

#[test]
fn a_migration_whose_command_is_killed_leaves_nothing_set() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=unlimited"]);
    here.runs_on(10_000);
    let before = set(&mut here.qmp);
    for (on_disconnect, end) in [("cancel", "cancelled"), ("continue", "active")] {
        let (mut there, at) = Side::incoming("unix", &[]);
        let Side { dir, machine, qmp } = here;
        drop(qmp);
        let address = machine.qmp_address();
        let child = begin(&[
            "migrate",
            "--qmp",
            &address,
            &at,
            "--max-bandwidth=100K",
            "--downtime-limit=1",
            "--auto-converge",
            "--on-disconnect",
            on_disconnect,
        ]);
        there.qmp.wait_migration("active");
        signal(&child, Signal::KILL);
        finish(child);
        let qmp = machine.connect();
        here = Side { dir, machine, qmp };
        here.qmp.wait_migration(end);
        assert_eq!(set(&mut here.qmp), before);
        assert_eq!(here.status(), "running");
        if end == "cancelled" {
            assert_eq!(there.machine.wait().0.code(), Some(1));
            continue;
        }
        // What is set for others says nothing to this one, until it is told.
        here.qmp
            .execute("migrate-set-parameters", json!({ "multifd-zstd-level": 2 }));
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            let now = here.qmp.execute("query-migrate", json!({}));
            assert_eq!(now["status"], "active", "{now}");
        }
        let fast = json!({ "max-bandwidth": 0, "downtime-limit": 300 });
        here.qmp.execute("migrate-set-parameters", fast);
        here.qmp.wait_migration("completed");
        there.qmp.wait_status("running");
        there.check();
    }
}

#[test]
fn the_commands_work_whatever_is_set() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=10000"]);
    here.runs_on(100);
    let file = here.dir.path().join("a");
    let path = file.to_str().unwrap().to_owned();
    for (capabilities, parameters) in [
        (&["multifd", "return-path"][..], json!({})),
        (
            &["xbzrle", "auto-converge"],
            json!({ "multifd-channels": 3 }),
        ),
        (
            &["pause-before-switchover"],
            json!({ "mode": "cpr-transfer" }),
        ),
        (
            &["mapped-ram", "events"],
            json!({ "tls-creds": "/nowhere" }),
        ),
    ] {
        let known = here.qmp.execute("query-migrate-capabilities", json!({}));
        let known = known.as_array().unwrap().iter();
        let known = known.map(|entry| entry["capability"].as_str().unwrap().to_owned());
        let all: Vec<_> = known.collect();
        let states = all
            .iter()
            .map(|name| (&name[..], capabilities.contains(&&name[..])));
        here.qmp.set(&states.collect::<Vec<_>>());
        let normal = json!({ "mode": "normal", "tls-creds": "" });
        here.qmp.execute("migrate-set-parameters", normal);
        here.qmp.execute("migrate-set-parameters", parameters);
        let before = set(&mut here.qmp);
        let Side { dir, machine, qmp } = here;
        drop(qmp);
        let output = machine.snapshot(&file, &["--stop"]);
        assert!(
            output.status.success(),
            "{capabilities:?}: {}",
            text(&output.stderr)
        );
        let qmp = machine.connect();
        here = Side { dir, machine, qmp };
        here.qmp.execute("cont", json!({}));
        assert_eq!(set(&mut here.qmp), before);
    }
    // Of the last ones `mapped-ram` is still on, which would make a snapshot of it.
    here.qmp
        .execute("migrate-set-parameters", json!({ "tls-creds": "" }));
    let before = set(&mut here.qmp);
    let (mut there, at) = Side::incoming("unix", &[]);
    let (moved, output) = here.migrate(&at, &[]);
    here = moved;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(set(&mut here.qmp), before);
    there.qmp.wait_status("running");
    there.check();
    assert!(std::fs::metadata(path).is_ok());
}

#[test]
fn what_comes_with_the_command_is_looked_at_as_what_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), &["--paused"]);
    let mut qmp = machine.connect();
    let before = set(&mut qmp);
    let uri = format!("file:{}", dir.path().join("a").display());
    let on = |names: &[&str]| {
        let list = names
            .iter()
            .map(|name| json!({ "capability": name, "state": true }));
        Value::from_iter(list)
    };
    for (settings, expected) in [
        (
            json!(7),
            "Invalid parameter type for 'x-paguro-settings', expected: object",
        ),
        (
            json!({ "nonsense": 1 }),
            "Parameter 'x-paguro-settings.nonsense' is unexpected",
        ),
        (
            json!({ "parameters": { "nonsense": 1 } }),
            "Parameter 'x-paguro-settings.parameters.nonsense' is unexpected",
        ),
        (
            json!({ "parameters": { "multifd-channels": 0 } }),
            "Parameter 'multifd-channels' expects a value between 1 and 64",
        ),
        (
            json!({ "capabilities": [{ "capability": "multifd" }] }),
            "Parameter 'x-paguro-settings.capabilities[0].state' is missing",
        ),
        (
            json!({ "capabilities": on(&["multifd", "xbzrle"]) }),
            "multifd is not compatible with xbzrle",
        ),
        (
            json!({ "capabilities": on(&["events"]) }),
            "Capability 'events' is the client's, not that of one migration: \
             'migrate-set-capabilities' sets it",
        ),
        (
            json!({ "on-disconnect": "die" }),
            "Parameter 'on-disconnect' does not accept value 'die'",
        ),
    ] {
        let arguments = json!({ "uri": uri, "x-paguro-settings": settings });
        let (class, desc) = qmp.refused("migrate", arguments);
        assert_eq!((&class[..], &desc[..]), ("GenericError", expected));
        assert_eq!(set(&mut qmp), before);
        assert_eq!(qmp.execute("query-migrate", json!({})), json!({}));
    }
    // With them this is a snapshot; without, it is a migration to a file.
    let settings = json!({ "capabilities": on(&["mapped-ram"]) });
    qmp.execute(
        "migrate",
        json!({ "uri": uri, "x-paguro-settings": settings }),
    );
    let end = qmp.migration_end();
    assert_eq!(end["status"], "completed");
    assert_eq!(end["x-paguro-background"], false);
    assert_eq!(set(&mut qmp), before);
}
