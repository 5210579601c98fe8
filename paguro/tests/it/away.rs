//! Machines whose snapshot file cannot be read for a while, or is written to.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paguro_testkit::{Flaky, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, check_ram, output, text, wait_written};
use crate::migrating::{Side, has_kvm};

/// Where pages are in the file of a machine of one block of 16 MiB.
const PAGES: Range<u64> = 1 << 20..17 << 20;
/// Those of them that the workload writes: what a machine needs at once is below.
const AREA: Range<u64> = 3 << 20..17 << 20;

/// A snapshot of a machine that has written, and was running.
fn saved(dir: &Path, args: &[&str]) -> PathBuf {
    let file = dir.join("below");
    let mut all = vec!["--workload", "rate=unlimited"];
    all.extend(args);
    let machine = Machine::run(dir, &all);
    wait_written(&mut machine.connect(), machine.pid());
    let output = machine.snapshot(&file, &["--stop"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    file
}

/// The same, on a file system that fails when it is to.
fn away(dir: &Path, args: &[&str]) -> Option<Flaky> {
    let below = saved(dir, args);
    std::fs::create_dir(dir.join("there")).unwrap();
    Flaky::mount(&dir.join("there"), &below)
}

/// A machine out of it that does not run yet, and asks for its pages one by one.
fn restored(dir: &Path, file: &Path, args: &[&str]) -> Machine {
    let file = file.to_str().unwrap();
    let mut all = vec!["--restore", file, "--prefetch", "off", "--paused"];
    all.extend(args);
    Machine::run(dir, &all)
}

fn status(qmp: &mut Qmp) -> Value {
    qmp.execute("query-status", json!({}))
}

fn restore(qmp: &mut Qmp) -> Value {
    qmp.execute("x-paguro-query-restore", json!({}))
}

#[track_caller]
fn until(so: impl FnMut() -> bool) {
    wait_until("what a file that is away leads to", so);
}

/// It runs, and nothing of it is lost.
fn writes_on(qmp: &mut Qmp, machine: &Machine) {
    let mut writes = || {
        qmp.execute("stop", json!({}));
        qmp.execute("x-paguro-touch", json!({}));
        let report = check_ram(qmp, machine.pid());
        qmp.execute("cont", json!({}));
        assert_eq!(report.wrong_count, 0, "{report:?}");
        report.vcpus.iter().map(|vcpu| vcpu.done).sum::<u64>()
    };
    let before = writes();
    until(|| writes() > before);
}

/// Stops, stays usable, and goes on when the file is back.
fn stops_and_goes_on(machine_args: &[&str], restore_args: &[&str], away: Range<u64>) {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = self::away(dir.path(), machine_args) else {
        return;
    };
    let mut args = vec!["--read-retry", "700ms"];
    args.extend(restore_args);
    let machine = restored(dir.path(), &flaky.path(), &args);
    let mut qmp = machine.connect();
    flaky.fail_some(away, u64::MAX);
    qmp.execute("cont", json!({}));
    // Meanwhile it can be stopped, and goes on where it was.
    until(|| flaky.failed() > 3);
    qmp.execute("stop", json!({}));
    assert_eq!(status(&mut qmp)["status"], "paused");
    qmp.execute("cont", json!({}));
    for round in 0..2 {
        qmp.wait_status("io-error");
        let now = status(&mut qmp);
        let why = now["x-paguro-reason"].as_str().unwrap();
        let known = ["cannot read page", "cannot be reached"];
        assert!(known.iter().any(|part| why.contains(part)), "{why}");
        qmp.execute("stop", json!({}));
        assert_eq!(status(&mut qmp)["status"], "io-error");
        qmp.set(&[("mapped-ram", true)]);
        let to = format!("file:{}", dir.path().join("b").display());
        let (_, desc) = qmp.refused("migrate", json!({ "uri": to }));
        assert!(desc.contains("'cont' first"), "{desc}");
        if round == 1 {
            flaky.mend();
        }
        qmp.execute("cont", json!({}));
    }
    writes_on(&mut qmp, &machine);
    assert_eq!(status(&mut qmp)["status"], "running");
    until(|| restore(&mut qmp).get("trouble").is_none());
    qmp.execute("quit", json!({}));
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
    assert!(
        said.contains("io-error") && said.contains("hint:"),
        "{said}"
    );
}

#[test]
fn a_lazily_restored_machine_goes_on_when_its_file_is_back() {
    stops_and_goes_on(&[], &[], PAGES);
}

#[test]
fn so_does_one_with_a_device_that_writes_ram() {
    stops_and_goes_on(&["--x-dma", "rate=1000,direct=on"], &[], PAGES);
}

#[test]
fn so_does_one_of_kvm() {
    if has_kvm() {
        let kvm = ["--accel", "kvm"];
        stops_and_goes_on(&[&kvm[..], &["--cpus", "2"]].concat(), &kvm, AREA);
    }
}

/// KVM may read some pages in a way that no signal ends; nobody else is to wait with it.
#[test]
fn whatever_kvm_waits_for_the_socket_answers_and_the_machine_goes_on() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &["--accel", "kvm"]) else {
        return;
    };
    for end in ["goes on", "quit"] {
        let args = ["--accel", "kvm", "--read-retry", "300ms"];
        let machine = restored(dir.path(), &flaky.path(), &args);
        let mut qmp = machine.connect();
        flaky.fail();
        qmp.execute("cont", json!({}));
        for _ in 0..2 {
            qmp.wait_status("io-error");
            qmp.execute("stop", json!({}));
            qmp.execute("cont", json!({}));
        }
        flaky.mend();
        if end == "goes on" {
            qmp.execute("cont", json!({}));
            writes_on(&mut qmp, &machine);
        }
        qmp.execute("quit", json!({}));
        let (status, said) = machine.wait();
        assert!(status.success(), "{end}: {said}");
    }
}

#[test]
fn so_does_one_whose_file_answers_nothing() {
    answers_nothing(&[], &[]);
}

#[test]
fn so_does_one_of_kvm_whose_file_answers_nothing() {
    if has_kvm() {
        answers_nothing(&["--accel", "kvm"], &["--accel", "kvm"]);
    }
}

#[test]
fn so_does_one_that_maps_a_file_that_answers_nothing() {
    answers_nothing(&[], &["--restore-mode", "map"]);
}

#[test]
fn so_does_one_of_kvm_that_maps_a_file_that_answers_nothing() {
    if has_kvm() {
        answers_nothing(
            &["--accel", "kvm"],
            &["--accel", "kvm", "--restore-mode", "map"],
        );
    }
}

/// As a server that stands still: a read neither fails nor comes back.
fn answers_nothing(machine_args: &[&str], restore_args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), machine_args) else {
        return;
    };
    let mut args = vec!["--read-retry", "1500ms"];
    args.extend(restore_args);
    let machine = restored(dir.path(), &flaky.path(), &args);
    let mut qmp = machine.connect();
    flaky.hang(AREA);
    qmp.execute("cont", json!({}));
    for _ in 0..2 {
        qmp.wait_status("io-error");
        let now = status(&mut qmp);
        let why = now["x-paguro-reason"].as_str().unwrap();
        assert!(why.contains("answer"), "{why}");
        let trouble = restore(&mut qmp)["trouble"].take();
        assert!(trouble.as_str().unwrap().contains("answer"), "{trouble}");
        qmp.execute("cont", json!({}));
    }
    qmp.wait_status("io-error");
    flaky.mend();
    qmp.execute("cont", json!({}));
    until(|| restore(&mut qmp).get("trouble").is_none());
    writes_on(&mut qmp, &machine);
    assert_eq!(status(&mut qmp)["status"], "running");
    qmp.execute("quit", json!({}));
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn so_does_one_that_maps_its_file() {
    stops_and_goes_on(&[], &["--restore-mode", "map"], PAGES);
}

#[test]
fn so_does_one_of_kvm_that_maps_its_file() {
    if has_kvm() {
        // What KVM reads for itself, page tables above all, it does not ask for again.
        let kvm = ["--accel", "kvm", "--cpus", "2"];
        stops_and_goes_on(&kvm, &["--accel", "kvm", "--restore-mode", "map"], AREA);
    }
}

#[test]
fn a_file_that_is_away_for_a_moment_costs_nothing() {
    for mode in ["lazy", "map"] {
        let dir = tempfile::tempdir().unwrap();
        let Some(flaky) = away(dir.path(), &[]) else {
            return;
        };
        let machine = restored(dir.path(), &flaky.path(), &["--restore-mode", mode]);
        let mut qmp = machine.connect();
        flaky.fail_some(PAGES, 12);
        qmp.execute("cont", json!({}));
        until(|| flaky.failed() == 12);
        until(|| restore(&mut qmp).get("trouble").is_none());
        assert!(restore(&mut qmp)["failed-reads"].as_u64() > Some(0));
        assert_eq!(
            status(&mut qmp),
            json!({ "running": true, "status": "running" })
        );
        assert!(!qmp.events().iter().any(|event| event["event"] == "STOP"));
        writes_on(&mut qmp, &machine);
    }
}

/// Of a guest of KVM, whose log knows what was written and what came.
#[test]
fn a_migration_of_what_is_still_in_a_file_can_be_cancelled_and_fails_in_time() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &["--accel", "kvm"]) else {
        return;
    };
    for (retry, end) in [("10m", "cancelled"), ("200ms", "failed")] {
        let args = ["--accel", "kvm", "--read-retry", retry];
        let machine = restored(dir.path(), &flaky.path(), &args);
        let mut qmp = machine.connect();
        let before = flaky.failed();
        flaky.fail_some(AREA, u64::MAX);
        let nowhere = json!({ "uri": "exec:cat >/dev/null" });
        qmp.execute("migrate", nowhere.clone());
        until(|| flaky.failed() > before + 3);
        if end == "cancelled" {
            qmp.execute("migrate_cancel", json!({}));
        }
        let ended = qmp.migration_end();
        assert_eq!(ended["status"], end, "{ended}");
        if end == "failed" {
            let why = ended["error-desc"].as_str().unwrap();
            assert!(why.contains("has not arrived yet"), "{why}");
        }
        // The machine is as it was, and can be moved when the file is back.
        assert_eq!(status(&mut qmp)["status"], "paused");
        flaky.mend();
        qmp.execute("migrate", nowhere);
        assert_eq!(qmp.migration_end()["status"], "completed");
    }
}

/// A thread that reads RAM to send it cannot wait for ever, and is given zeros. The most of RAM is sent
/// when the guest stands still, so nobody else could notice that some of it is lost.
#[test]
fn a_guest_of_which_pages_are_lost_while_it_moves_runs_nowhere() {
    for to in ["unix", "multifd", "file"] {
        let dir = tempfile::tempdir().unwrap();
        let Some(flaky) = away(dir.path(), &[]) else {
            return;
        };
        // Of a file that is mapped privately the kernel tells nobody what was written.
        let log = "threads,dirty-log=stage2";
        let args = [
            "--accel",
            log,
            "--restore-mode",
            "map",
            "--read-retry",
            "300ms",
        ];
        let here = restored(dir.path(), &flaky.path(), &args);
        let mut qmp = here.connect();
        let lanes: &[&str] = match to {
            "multifd" => &["--multifd-channels", "2"],
            _ => &[],
        };
        let (there, mut at) = Side::incoming("unix", lanes);
        let picture = dir.path().join("moved");
        if to == "file" {
            at = format!("file:{}", picture.display());
        }
        qmp.set(&[
            ("pause-before-switchover", true),
            ("multifd", to == "multifd"),
        ]);
        qmp.execute(
            "migrate-set-parameters",
            json!({
                "max-bandwidth": 1_000_000,
                "x-paguro-convergence-timeout": 1,
                "x-paguro-at-timeout": "switchover",
            }),
        );
        qmp.execute("migrate", json!({ "uri": at }));
        qmp.wait_migration("pre-switchover");
        flaky.fail_some(AREA, u64::MAX);
        qmp.execute("migrate-continue", json!({ "state": "pre-switchover" }));
        qmp.wait_status("internal-error");
        flaky.mend();
        let ended = qmp.migration_end();
        assert_eq!(ended["status"], "failed", "{to}: {ended}");
        let why = ended["error-desc"].as_str().unwrap();
        assert!(why.contains("could not be read"), "{why}");
        assert_eq!(status(&mut qmp)["status"], "internal-error");
        qmp.refused("cont", json!({}));
        assert!(!picture.exists());
        if to != "file" {
            let (status, said) = there.machine.wait();
            assert_eq!(status.code(), Some(1), "{said}");
        }
    }
}

#[test]
fn what_only_the_prefetch_misses_is_told_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &[]) else {
        return;
    };
    let file = flaky.path();
    let args = ["--restore", file.to_str().unwrap(), "--paused"];
    flaky.fail_some(AREA, u64::MAX);
    let machine = Machine::run(dir.path(), &args);
    let mut qmp = machine.connect();
    until(|| restore(&mut qmp)["failed-reads"].as_u64() > Some(3));
    let now = restore(&mut qmp);
    let trouble = now["trouble"].as_str().unwrap();
    assert!(trouble.contains("cannot read pages"), "{trouble}");
    assert_eq!(
        (&now["done"], &now["failed"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(status(&mut qmp)["status"], "paused");
    flaky.mend();
    until(|| restore(&mut qmp)["done"] == true);
    assert!(restore(&mut qmp).get("trouble").is_none());
    assert_eq!(check_ram(&mut qmp, machine.pid()).wrong_count, 0);
}

#[test]
fn whoever_ends_a_machine_does_not_wait_for_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &[]) else {
        return;
    };
    for (mode, end) in [
        ("lazy", "quit"),
        ("lazy", "signal"),
        ("map", "quit"),
        ("map", "signal"),
    ] {
        let args = ["--restore-mode", mode, "--read-retry", "10m"];
        let machine = restored(dir.path(), &flaky.path(), &args);
        let mut qmp = machine.connect();
        let before = flaky.failed();
        flaky.fail();
        qmp.execute("cont", json!({}));
        until(|| flaky.failed() > before + 3);
        match end {
            "quit" => drop(qmp.execute("quit", json!({}))),
            _ => machine.signal(Signal::TERM),
        }
        let (status, said) = machine.wait();
        assert!(status.success(), "{mode} {end}: {said}");
        flaky.mend();
    }
}

#[test]
fn a_restore_that_reads_all_first_waits_for_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &[]) else {
        return;
    };
    flaky.fail_some(PAGES, u64::MAX);
    let machine = restored(dir.path(), &flaky.path(), &["--restore-mode", "eager"]);
    until(|| flaky.failed() > 3);
    flaky.mend();
    // Greeted when it is there.
    let mut qmp = machine.connect();
    writes_on(&mut qmp, &machine);
}

#[test]
fn a_restore_that_waits_for_its_file_ends_at_a_signal_or_with_its_patience() {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &[]) else {
        return;
    };
    let _turn = crate::machine::turn();
    flaky.fail_some(PAGES, u64::MAX);
    let path = flaky.path();
    for (mode, retry) in [
        ("eager", "10m"),
        ("eager", "100ms"),
        ("lazy", "10m"),
        ("lazy", "100ms"),
        ("map", "100ms"),
    ] {
        let mut args = vec!["restore", path.to_str().unwrap(), "--restore-mode", mode];
        args.extend(["--read-retry", retry, "--serial", "none"]);
        let before = flaky.failed();
        let child = crate::machine::paguro(args)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        if retry == "10m" {
            until(|| flaky.failed() > before + 3);
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
        }
        let ended = crate::machine::finish(child);
        let said = text(&ended.stderr);
        if retry == "10m" {
            // Nothing had begun.
            assert!(ended.status.success(), "{said}");
            continue;
        }
        assert_eq!(ended.status.code(), Some(1), "{mode} {retry}: {said}");
        assert!(said.contains("cannot read page"), "{mode} {retry}: {said}");
        assert!(said.contains("--read-retry"), "{mode} {retry}: {said}");
    }
}

#[test]
fn without_a_socket_nobody_could_let_it_go_on_and_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let Some(flaky) = away(dir.path(), &[]) else {
        return;
    };
    let _turn = crate::machine::turn();
    // What it needs at once is below, and what its guest writes is above.
    flaky.fail_some(AREA, u64::MAX);
    let path = flaky.path();
    let mut args = vec!["restore", path.to_str().unwrap(), "--serial", "none"];
    args.extend(["--read-retry", "100ms"]);
    let ended = output(args);
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("io-error") && said.contains("cannot read page"),
        "{said}"
    );
}

/// Whoever watches the file may be refused what he needs for that, and be granted it later.
#[test]
fn a_mapped_file_is_watched_whatever_the_host_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path(), &[]);
    let machine = restored(dir.path(), &path, &["--restore-mode", "map"]);
    let mut qmp = machine.connect();
    let pid = rustix::process::Pid::from_raw(machine.pid() as i32);
    let none = rustix::process::Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, none).unwrap();
    // Until it has been refused, of which nothing tells: it looks more often than that.
    std::thread::sleep(Duration::from_secs(1));
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55], PAGES.start).unwrap();
    qmp.wait_status("internal-error");
    let why = status(&mut qmp)["x-paguro-reason"].take();
    assert!(why.as_str().unwrap().contains("was changed"), "{why}");
}

#[test]
fn a_machine_whose_file_is_written_to_stops_for_good_and_says_why() {
    for mode in ["lazy", "map"] {
        let dir = tempfile::tempdir().unwrap();
        let path = saved(dir.path(), &[]);
        let machine = restored(dir.path(), &path, &["--restore-mode", mode]);
        let mut qmp = machine.connect();
        // All of its pages, as another snapshot that is copied over it.
        let file = File::options().write(true).open(&path).unwrap();
        let other = vec![0x55; (PAGES.end - PAGES.start) as usize];
        file.write_all_at(&other, PAGES.start).unwrap();
        qmp.execute("cont", json!({}));
        // The guest may meet what is wrong with its RAM before anybody else does.
        until(|| {
            let now = status(&mut qmp);
            let why = now["x-paguro-reason"].as_str().unwrap_or_default();
            let told = why.contains("was changed while a machine runs from it");
            assert!(!told || now["status"] == "internal-error", "{mode}: {now}");
            told
        });
        let (_, desc) = qmp.refused("cont", json!({}));
        assert!(desc.contains("has failed"), "{mode}: {desc}");
        qmp.execute("quit", json!({}));
        let (ended, said) = machine.wait();
        assert_eq!(ended.code(), Some(1), "{said}");
    }
}
