//! Signals whose default is death, to a machine at work: each ends it in order, or changes nothing.

use std::path::Path;
use std::process::Stdio;

use paguro_testkit::wait_until;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;

use crate::machine::{Machine, Qmp, text, turn, wait_written};
use crate::migrating::has_kvm;

/// Those that end a machine.
const ENDING: [Signal; 6] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::XCPU,
    Signal::POWER,
];

/// Those that change nothing.
const IDLE: [Signal; 9] = [
    Signal::ALARM,
    Signal::IO,
    Signal::PIPE,
    Signal::PROF,
    Signal::STKFLT,
    Signal::USR1,
    Signal::USR2,
    Signal::VTALARM,
    Signal::XFSZ,
];

/// A machine that sends itself to a command, slowly. The command says in a file when it has come to
/// the end of its input.
fn under_way(dir: &Path) -> (Machine, Qmp) {
    let machine = Machine::run_in_turn(dir, &["--workload", "rate=unlimited"]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 4096 }));
    let (part, whole) = (dir.join("part"), dir.join("whole"));
    let command = format!("cat > {}; touch {}", part.display(), whole.display());
    qmp.execute("migrate", json!({ "uri": format!("exec:{command}") }));
    qmp.wait_migration("active");
    // The command takes its time to begin.
    wait_until("the command to begin", || {
        let now = qmp.execute("query-migrate", json!({}));
        assert_eq!(now["status"], "active", "{now}");
        part.exists()
    });
    (machine, qmp)
}

/// What is in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_signal_ends_a_machine_in_order_however_often_it_comes() {
    let _turn = turn();
    for signal in ENDING {
        let dir = tempfile::tempdir().unwrap();
        let (machine, mut qmp) = under_way(dir.path());
        for _ in 0..3 {
            machine.signal(signal);
        }
        let told = qmp.events_until("SHUTDOWN");
        assert_eq!(told.last().unwrap()["data"]["reason"], "host-signal");
        for more in ENDING {
            // It may be gone by now.
            machine.signal(more);
        }
        let (status, said) = machine.wait();
        assert!(status.success(), "{signal:?}: {status}: {said}");
        // The command did not take a part for the whole, and the socket is gone.
        let left = names(dir.path());
        assert_eq!(left, ["part"], "{signal:?}: {left:?}: {said}");
    }
}

/// All that have names.
fn storm(machine: &Machine) {
    for signal in IDLE {
        machine.signal(signal);
    }
}

/// Those that have only numbers, of which the machine uses some itself.
fn real_time(machine: &Machine) {
    let script = "for number in $(seq 34 64); do kill -$number $0; done";
    let mut shell = std::process::Command::new("sh");
    let status = shell
        .args(["-c", script, &machine.pid().to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn other_signals_change_nothing() {
    let _turn = turn();
    let accels: &[_] = if has_kvm() {
        &["threads", "kvm"]
    } else {
        &["threads"]
    };
    for accel in accels {
        let dir = tempfile::tempdir().unwrap();
        let args = ["--workload", "rate=unlimited", "--accel", accel];
        let machine = Machine::run_in_turn(dir.path(), &args);
        let mut qmp = machine.connect();
        real_time(&machine);
        wait_written(&mut qmp, machine.pid());
        let background = crate::snapshots::can_background(&mut qmp);
        let capabilities = [("background-snapshot", background), ("mapped-ram", true)];
        qmp.set(&capabilities);
        qmp.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 64 << 20 }),
        );
        let file = dir.path().join("a");
        qmp.execute(
            "migrate",
            json!({ "uri": format!("file:{}", file.display()) }),
        );
        real_time(&machine);
        let end = loop {
            storm(&machine);
            let now = qmp.execute("query-migrate", json!({}));
            if ["completed", "failed"]
                .iter()
                .any(|end| now["status"] == *end)
            {
                break now;
            }
        };
        assert_eq!(end["status"], "completed", "{end}");
        let verified = crate::machine::output(["inspect", "--verify", file.to_str().unwrap()]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        qmp.execute("cont", json!({}));
        assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
        let right = {
            qmp.execute("stop", json!({}));
            crate::machine::check_ram(&mut qmp, machine.pid())
        };
        assert!(right.is_right(), "{:?}", right.wrong);
    }
}

#[test]
fn a_file_beyond_its_limit_fails_what_writes_it() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_in_turn(dir.path(), &["--workload", "rate=unlimited"]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    let file = dir.path().join("a");
    std::fs::write(&file, "the old one").unwrap();
    let pid = Pid::from_raw(machine.pid() as i32);
    let limit = Rlimit {
        current: Some(1 << 16),
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
    let background = crate::snapshots::can_background(&mut qmp);
    let ways = [(true, true), (false, true), (false, false)];
    for (background, mapped) in ways.into_iter().filter(|way| background || !way.0) {
        qmp.set(&[("background-snapshot", background), ("mapped-ram", mapped)]);
        qmp.execute(
            "migrate",
            json!({ "uri": format!("file:{}", file.display()) }),
        );
        let end = qmp.migration_end();
        assert_eq!(end["status"], "failed");
        let error = end["x-paguro-error"].as_str().unwrap();
        assert!(error.contains("File too large"), "{end}");
        let hint = end["x-paguro-hint"].as_str().unwrap_or_default();
        assert!(hint.contains("ulimit -f"), "{end}");
        assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "the old one");
    }
    assert_eq!(names(dir.path()), ["a", "qmp.sock"]);
}

#[test]
fn a_console_log_beyond_its_limit_is_lost_and_counted() {
    if !has_kvm() {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, vec![b'.'; 1 << 20]).unwrap();
    let serial = format!("file:{}", path.display());
    let args = ["--accel", "kvm", "--serial", &serial];
    let machine = Machine::run_as(dir.path(), &args, |command| {
        *command = in_shell("ulimit -f 1000", command);
        command.stderr(Stdio::piped())
    });
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    let now = qmp.execute("x-paguro-query-machine", json!({}));
    assert_eq!(now["serial"]["written-bytes"], 0);
    assert!(now["serial"]["lost-bytes"].as_u64() > Some(0), "{now}");
    assert_eq!(qmp.execute("query-status", json!({}))["status"], "running");
}

/// By `nohup`, or a script that does not wait for it (`&`).
#[test]
fn what_was_ignored_when_it_started_stays_so_but_for_the_one_that_ends_it() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_as(dir.path(), &["--paused"], |command| {
        // Behind what lets nothing be ignored.
        let mut ignoring = std::process::Command::new("env");
        ignoring.arg("--ignore-signal=HUP,INT,QUIT,XCPU,PWR,TERM");
        ignoring.args(command.get_args().skip(1));
        *command = ignoring;
        crate::machine::plain(command).stderr(Stdio::piped())
    });
    let mut qmp = machine.connect();
    for signal in ENDING.into_iter().filter(|one| *one != Signal::TERM) {
        machine.signal(signal);
        for _ in 0..10 {
            qmp.execute("query-status", json!({}));
        }
    }
    machine.signal(Signal::TERM);
    assert!(machine.wait().0.success());
}

/// With SIGCHLD ignored the kernel keeps no status of a command.
#[test]
fn a_command_has_a_status_whoever_started_the_machine() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run_as(dir.path(), &["--workload", "rate=10000"], |command| {
        let mut ignoring = std::process::Command::new("env");
        ignoring
            .arg("--ignore-signal=CHLD")
            .arg(command.get_program());
        ignoring.args(command.get_args()).stdin(Stdio::null());
        *command = ignoring;
        crate::machine::plain(command).stderr(Stdio::piped())
    });
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    let background = crate::snapshots::can_background(&mut qmp);
    for (snapshot, last, end) in [
        (true, "true", "completed"),
        (true, "exit 7", "failed"),
        (false, "exit 7", "x-paguro-in-doubt"),
        (false, "true", "completed"),
    ] {
        if snapshot && !background {
            continue;
        }
        qmp.set(&[("background-snapshot", snapshot)]);
        let uri = format!("exec:cat > /dev/null; {last}");
        qmp.execute("migrate", json!({ "uri": uri }));
        let now = loop {
            let now = qmp.execute("query-migrate", json!({}));
            let over = ["completed", "failed", "cancelled", "x-paguro-in-doubt"];
            if over.iter().any(|over| now["status"] == *over) {
                break now;
            }
        };
        assert_eq!(now["status"], end, "{last}: {now}");
        if end != "completed" {
            let why = now["x-paguro-error"].as_str().unwrap();
            assert!(why.contains("exit status: 7"), "{why}");
        }
        qmp.execute("cont", json!({}));
        qmp.wait_status("running");
        qmp.migration_end();
    }
}

/// The same program, after something that a shell does.
fn in_shell(before: &str, command: &std::process::Command) -> std::process::Command {
    let mut shell = std::process::Command::new("sh");
    let script = format!("{before}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program());
    shell.args(command.get_args()).stdin(Stdio::null());
    shell.env_remove("PAGURO_FORCE").env_remove("PAGURO_LOG");
    shell
}

/// Before there is a machine nothing has begun that would have to end in order.
#[test]
fn a_signal_ends_a_program_that_has_no_machine_yet() {
    if !has_kvm() {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // A kernel that is never there to be read.
    let kernel = dir.path().join("kernel");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &kernel, kind, mode, 0).unwrap();
    let args = ["--accel", "kvm", "--kernel", kernel.to_str().unwrap()];
    let machine = Machine::run_in_turn(dir.path(), &args);
    crate::snapshots::wait_until_caught(machine.pid(), Signal::TERM);
    machine.signal(Signal::TERM);
    let (status, said) = machine.wait();
    assert!(status.success(), "{status}: {said}");
    assert_eq!(names(dir.path()), ["kernel"]);
}
