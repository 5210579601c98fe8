//! Who runs before whom: threads that a vCPU waits for are raised, and nobody is lowered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use paguro_sys::{Fallbacks, Host};
use serde_json::json;

use crate::machine::{Machine, text, wait_written};

/// Nice values of the threads of a process, by their names.
fn nices(pid: u32) -> BTreeMap<String, i64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(')')?;
            let nice = rest.split_whitespace().nth(16)?.parse().ok()?;
            Some((head.split_once('(')?.1.to_owned(), nice))
        })
        .collect()
}

/// Threads of that kind, while nobody has a lower priority than this process; once they are there.
#[track_caller]
fn threads(pid: u32, kind: &str) -> Vec<i64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let all = nices(pid);
        let lowered: Vec<_> = all.iter().filter(|(_, nice)| **nice > own()).collect();
        assert!(lowered.is_empty(), "{lowered:?}");
        let found: Vec<_> = all
            .iter()
            .filter_map(|(name, nice)| name.starts_with(kind).then_some(*nice))
            .collect();
        if !found.is_empty() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {kind}: {all:?}");
    }
}

/// What this thread has, as all have here that nobody changes.
fn own() -> i64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// What raised threads have here.
fn raised() -> i64 {
    let raised = std::thread::spawn(|| {
        paguro_sys::raise_priority();
        own()
    });
    raised.join().unwrap()
}

#[test]
fn whoever_writes_a_snapshot_is_not_lowered() {
    for background in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::run(dir.path(), &[]);
        let mut qmp = machine.connect();
        wait_written(&mut qmp, machine.pid());
        if !qmp.try_set(&[("background-snapshot", background)]) {
            continue;
        }
        // It goes slowly, so that those who write can be looked at between two writes.
        qmp.set(&[("mapped-ram", true)]);
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 4096 }));
        let uri = format!("file:{}", dir.path().join("a").display());
        qmp.execute("migrate", json!({ "uri": uri }));
        for _ in 0..100 {
            threads(machine.pid(), "save/");
        }
        if background {
            let readers = threads(machine.pid(), "faults/");
            let raised = raised();
            assert!(readers.iter().all(|nice| *nice == raised), "{readers:?}");
        }
        qmp.execute("migrate_cancel", json!({}));
        assert_eq!(qmp.migration_end()["status"], "cancelled");
    }
}

#[test]
fn whoever_fills_a_machine_is_not_lowered() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), &[]);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    drop(qmp);
    let file = dir.path().join("a");
    let saved = machine.snapshot(&file, &["--stop"]);
    assert!(saved.status.success(), "{}", text(&saved.stderr));
    drop(machine);
    let file = file.to_str().unwrap();
    let args = [
        "--restore",
        file,
        "--restore-mode",
        "lazy",
        "--prefetch",
        "4K/s",
    ];
    if !Host::probe(&Fallbacks::default()).can_freeze() {
        return println!("skipped: no userfaultfd for a lazy restore");
    }
    let machine = Machine::run(dir.path(), &args);
    let all = threads(machine.pid(), "pager/fill");
    assert_eq!(all, [own()]);
    let urgent = threads(machine.pid(), "pager/0");
    assert_eq!(urgent, [raised()]);
}
