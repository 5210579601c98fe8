//! `run --restore` and `restore`: options that describe a machine, and machines that come back.

use std::path::PathBuf;

use serde_json::json;

use crate::machine::{Machine, output, text};

/// A snapshot file of a machine with 16 MiB, taken while it was paused or ran.
fn saved(args: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.snap");
    let machine = Machine::run(dir.path(), args);
    let output = machine.snapshot(&file, &["--stop"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    (dir, file)
}

/// A snapshot file of a machine that has written some of its workload area.
fn saved_after_writes() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.snap");
    let machine = Machine::run(dir.path(), &["--workload", "rate=unlimited"]);
    loop {
        let output = machine.snapshot(&file, &["--stop"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        // The low 2 MiB have a few pages only; all others are the workload's.
        if inspected(&file)["present_pages"].as_u64().unwrap() > 512 {
            return (dir, file);
        }
        machine.connect().execute("cont", json!({}));
    }
}

fn inspected(file: &std::path::Path) -> serde_json::Value {
    let output = output(["inspect", "--json", file.to_str().unwrap()]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_mode_brings_a_running_machine_back() {
    let (dir, file) = saved(&["--workload", "rate=1000"]);
    for mode in ["eager", "map", "lazy"] {
        let args = ["--restore", file.to_str().unwrap(), "--restore-mode", mode];
        let machine = Machine::run(dir.path(), &args);
        let mut qmp = machine.connect();
        assert_eq!(
            qmp.execute("query-status", json!({}))["status"],
            "running",
            "{mode}"
        );
        let ram = qmp.execute("x-paguro-query-ram", json!({}));
        assert_eq!(ram["blocks"][0]["name"], "paguro.ram");
        assert_eq!(ram["blocks"][0]["length"], 16 << 20);
        let fill = qmp.execute("x-paguro-query-restore", json!({}));
        assert_eq!(fill.get("total-pages").is_some(), mode == "lazy", "{fill}");
        let made = qmp.execute("x-paguro-query-machine", json!({}));
        assert_eq!(made["restore-mode"], mode);
    }
}

#[test]
fn a_paused_machine_stays_paused_and_so_does_one_that_is_asked_to() {
    for (save, restore) in [(&["--paused"][..], &[][..]), (&[][..], &["--paused"][..])] {
        let (dir, file) = saved(save);
        let mut args = vec!["--restore", file.to_str().unwrap()];
        args.extend(restore);
        let machine = Machine::run(dir.path(), &args);
        let status = machine.connect().execute("query-status", json!({}));
        assert_eq!(
            status,
            json!({ "running": false, "status": "paused" }),
            "{save:?} {restore:?}"
        );
    }
}

#[test]
fn what_is_left_out_comes_from_the_file() {
    let (dir, file) = saved(&["--cpus", "2", "--memory", "24M", "--x-ram-split", "8M"]);
    let machine = Machine::run(dir.path(), &["--restore", file.to_str().unwrap()]);
    let mut qmp = machine.connect();
    let made = qmp.execute("x-paguro-query-machine", json!({}));
    assert_eq!((&made["cpus"], &made["memory"]), (&json!(2), &json!("24M")));
    let ram = qmp.execute("x-paguro-query-ram", json!({}));
    assert_eq!(ram["blocks"][1]["guest-address"], 4u64 << 30);
    assert_eq!(ram["blocks"][1]["length"], 16 << 20);
}

#[test]
fn what_is_given_and_different_is_refused_with_both_values() {
    let (_dir, file) = saved(&[]);
    let file = file.to_str().unwrap();
    for (options, words) in [
        (&["--memory", "32M"][..], &["32M", "16M", "hint:"][..]),
        (&["--cpus", "3"], &["3", "1", "hint:"]),
        (&["--x-ram-split", "8M"], &["16777216", "8388608", "hint:"]),
        (
            &["--restore-mode", "map", "--pages", "2m"],
            &["--pages 2m", "lazy"],
        ),
        (
            &["--restore-mode", "map", "--backing", "memfd"],
            &["--backing memfd", "lazy"],
        ),
    ] {
        let mut args = vec!["restore", file];
        args.extend(options);
        let output = output(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{options:?}: {word} is not in: {said}");
        }
    }
}

#[test]
fn a_snapshot_of_a_mapped_machine_offers_what_works() {
    let (dir, file) = saved(&[]);
    let args = ["--restore", file.to_str().unwrap(), "--restore-mode", "map"];
    let machine = Machine::run(dir.path(), &args);
    let again = dir.path().join("b.snap");
    let output = machine.snapshot(&again, &[]);
    if output.status.success() {
        println!(
            "skipped: {} is on tmpfs, where mapped files can be frozen",
            dir.path().display()
        );
        return;
    }
    let said = text(&output.stderr);
    assert!(said.contains("lazy") && said.contains("--stop"), "{said}");
    let output = machine.snapshot(&again, &["--stop"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn files_that_are_no_snapshots_are_refused() {
    let (dir, file) = saved(&[]);
    let bytes = std::fs::read(&file).unwrap();
    let other = dir.path().join("other");
    for (content, word) in [
        (&b""[..], "hint:"),
        (b"text", "hint:"),
        (&bytes[..bytes.len() - 1], "hint:"),
        (&bytes[..bytes.len() / 2], "hint:"),
    ] {
        std::fs::write(&other, content).unwrap();
        for mode in ["eager", "map", "lazy"] {
            let output = output(["restore", other.to_str().unwrap(), "--restore-mode", mode]);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("other") && said.contains(word), "{said}");
        }
    }
}

/// The workload's parameters: in every file, and read as soon as there is a machine.
const PARAMS: std::ops::Range<usize> = 1..2;

/// The pages that the workload writes: read when the machine runs.
const AREA: std::ops::Range<usize> = 512..4096;

fn pages_offset(file: &std::path::Path) -> u64 {
    inspected(file)["blocks"][0]["pages_offset"]
        .as_u64()
        .unwrap()
}

/// Breaks pages of the RAM.
fn damage(file: &std::path::Path, pages: std::ops::Range<usize>) {
    let start = pages_offset(file) as usize;
    let mut bytes = std::fs::read(file).unwrap();
    for page in pages {
        bytes[start + page * 4096] ^= 1;
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_page_that_is_needed_at_once_is_a_clear_error() {
    let (_dir, file) = saved(&[]);
    damage(&file, PARAMS);
    for mode in ["eager", "lazy"] {
        let output = output(["restore", file.to_str().unwrap(), "--restore-mode", mode]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{mode}: {said}");
        assert!(
            said.contains("page 1 of RAM block paguro.ram is damaged"),
            "{mode}: {said}"
        );
    }
}

#[test]
fn a_damaged_page_stops_a_lazily_restored_machine_with_a_clear_error() {
    let (dir, file) = saved_after_writes();
    damage(&file, AREA);
    let mut args = vec![
        "--restore",
        file.to_str().unwrap(),
        "--restore-mode",
        "lazy",
    ];
    args.extend(["--prefetch", "off", "--paused"]);
    let machine = Machine::run(dir.path(), &args);
    let mut qmp = machine.connect();
    qmp.execute("cont", json!({}));
    wait_for_failure(&mut qmp, "of RAM block paguro.ram is damaged");
    let (_, desc) = qmp.refused("cont", json!({}));
    assert!(desc.contains("damaged"), "{desc}");
    qmp.set(&[("mapped-ram", true)]);
    let to = format!("file:{}", dir.path().join("b").display());
    let (_, desc) = qmp.refused("migrate", json!({ "uri": to }));
    assert!(desc.contains("damaged"), "{desc}");
    qmp.execute("quit", json!({}));
    let (status, said) = machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("damaged"), "{said}");
}

#[test]
fn a_mapped_file_that_shrinks_stops_the_machine_with_a_clear_error() {
    let (dir, file) = saved_after_writes();
    let args = [
        "--restore",
        file.to_str().unwrap(),
        "--restore-mode",
        "map",
        "--paused",
    ];
    let machine = Machine::run(dir.path(), &args);
    let mut qmp = machine.connect();
    // What is below 2 MiB stays: the guest itself notices nothing.
    let kept = pages_offset(&file) + AREA.start as u64 * 4096;
    let options = std::fs::File::options().write(true).open(&file);
    options.unwrap().set_len(kept).unwrap();
    // It may be noticed before the machine runs: then `cont` is refused for that reason.
    let _ = qmp.ask("cont", json!({}));
    wait_for_failure(&mut qmp, "was changed while a machine runs from it");
    qmp.execute("quit", json!({}));
    let (status, said) = machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
}

#[test]
fn a_machine_that_fails_and_has_no_socket_ends() {
    let (_dir, file) = saved_after_writes();
    damage(&file, AREA);
    let _turn = crate::machine::turn();
    let output = output(["restore", file.to_str().unwrap(), "--serial", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("damaged"),
        "{}",
        text(&output.stderr)
    );
}

fn wait_for_failure(qmp: &mut crate::machine::Qmp, reason: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let status = qmp.execute("query-status", json!({}));
        if status["status"] == "internal-error" {
            let said = status["x-paguro-reason"].as_str().unwrap();
            assert!(said.contains(reason), "{said}");
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "it does not fail: {status}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn inspect_tells_what_is_in_a_file_and_finds_a_flipped_bit() {
    let (dir, file) = saved_after_writes();
    let name = file.to_str().unwrap();
    let plain = output(["inspect", name]);
    let said = text(&plain.stdout);
    for word in [
        "paguro-1",
        "mapped-ram",
        "paguro.ram",
        "globalstate",
        "paguro/threads",
        "zero",
    ] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    let verified = output(["inspect", "--verify", "--json", name]);
    assert!(verified.status.success());
    let all: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(all["verify"]["clean"], true);
    assert_eq!(all["blocks"][0]["name"], "paguro.ram");
    let present = all["present_pages"].as_u64().unwrap();
    assert_eq!(all["verify"]["pages_checked"], present);
    assert!(present > 0);
    let damaged = dir.path().join("damaged");
    std::fs::copy(&file, &damaged).unwrap();
    damage(&damaged, PARAMS);
    let output = output(["inspect", "--verify", damaged.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(
        said.contains("paguro.ram page 1 ") && said.contains("1 wrong"),
        "{said}"
    );
}
