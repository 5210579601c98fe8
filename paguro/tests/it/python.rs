//! The Python package `qemu.qmp`, which others use to talk to QEMU, talks to paguro.

use std::path::Path;
use std::process::Command;

use crate::machine::{Machine, text, turn};

/// A Python that has the package: `PAGURO_TEST_PYTHON`, or else `python3`.
fn python() -> Option<String> {
    let python = std::env::var("PAGURO_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import qemu.qmp"])
        .output();
    match found {
        Ok(output) if output.status.success() => Some(python),
        Ok(_) => {
            println!("skipped: {python} has no package qemu.qmp (pip install qemu.qmp)");
            None
        }
        Err(error) => {
            println!("skipped: no {python}: {error}");
            None
        }
    }
}

#[test]
fn qemu_qmp_connects_snapshots_queries_and_sees_events() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::run(dir.path(), &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp_client.py");
    let output = Command::new(python)
        .arg(script)
        .arg(machine.socket())
        .arg(dir.path().join("a.snap"))
        .output()
        .unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    println!("{said}");
    let (status, said) = machine.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn qemu_qmp_moves_a_guest() {
    let Some(python) = python() else { return };
    let _turn = turn();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Machine::run_in_turn(here.path(), &["--workload", "rate=10000"]);
    let destination = Machine::run_in_turn(there.path(), &["--incoming", "defer"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp_migrate.py");
    let output = Command::new(python)
        .arg(script)
        .args([source.socket(), destination.socket()])
        .output()
        .unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    println!("{said}");
    for machine in [source, destination] {
        let (status, said) = machine.wait();
        assert!(status.success(), "{said}");
    }
}
