//! Machines on a host that begins to swap while they run. That belongs to all of the host, so it is
//! tried only where `PAGURO_TEST_HOST_WIDE=1` allows it.

#[path = "../it/machine.rs"]
#[allow(dead_code, unused_imports)]
mod machine;
#[path = "../it/qmp.rs"]
#[allow(dead_code)]
mod qmp;

use std::path::Path;
use std::process::Command;

use machine::{Machine, Qmp, check_ram, output, text, wait_written};
use paguro_oracle::SnapshotFile;
use paguro_testkit::{Swap, host_wide, skipped};
use serde_json::json;

/// Memory of the process that is on the swap device, in KiB.
fn swapped(machine: &Machine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let number = line.unwrap().trim().split(' ').next().unwrap();
    number.parse().unwrap()
}

/// False, with a printed reason, where this process may not.
fn page_out(machine: &Machine) -> bool {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/page_out.py");
    let pid = machine.pid().to_string();
    let done = Command::new("python3").arg(script).arg(pid).output();
    match done {
        Ok(done) if done.status.success() => true,
        other => {
            skipped(format_args!("memory cannot be paged out: {other:?}"));
            false
        }
    }
}

/// A machine that has written, and what it has written is then swapped out. It stands still.
fn swapped_out(
    dir: &Path,
    args: &[&str],
    force: &str,
    swap: &mut Option<Swap>,
) -> Option<(Machine, Qmp)> {
    let machine = Machine::run_forced(dir, args, force);
    let mut qmp = machine.connect();
    wait_written(&mut qmp, machine.pid());
    qmp.execute("stop", json!({}));
    if swap.is_none() {
        // Only now: what the machine asked its host at its start is not so any more.
        *swap = Some(Swap::on(Path::new("/var/tmp"), 256)?);
    }
    if !page_out(&machine) {
        return None;
    }
    assert!(swapped(&machine) > 0, "nothing was swapped out");
    Some((machine, qmp))
}

/// The kinds of machine that this host has, with what writes are tracked by.
fn kinds() -> Vec<Vec<&'static str>> {
    let mut kinds = vec![vec!["--accel", "threads"]];
    if paguro_lab::host::no_kvm().is_none() {
        kinds.push(vec!["--accel", "kvm"]);
        kinds.push(vec!["--accel", "kvm,dirty-ring-size=4096"]);
    }
    kinds
}

#[test]
fn what_was_swapped_out_is_in_the_snapshot() {
    let Some(_turn) = host_wide() else { return };
    for kind in kinds() {
        let mut swap = None;
        for options in [&[][..], &["--stop"]] {
            for forced in ["", "no-marker-entries", "no-pagemap-scan"] {
                let dir = tempfile::tempdir().unwrap();
                let mut args = kind.clone();
                args.extend(["--workload", "pattern=random,set=12M"]);
                let swapped = swapped_out(dir.path(), &args, forced, &mut swap);
                let Some((machine, qmp)) = swapped else {
                    return;
                };
                drop(qmp);
                let file = dir.path().join("a.snap");
                let done = machine.snapshot(&file, options);
                assert!(done.status.success(), "{}", text(&done.stderr));
                let file = SnapshotFile::open(&file).unwrap();
                let report = paguro_oracle::check(&file, file.device_writers()).unwrap();
                assert!(
                    report.is_right(),
                    "{kind:?} {options:?} {forced}: {:?}",
                    report.wrong
                );
            }
        }
    }
}

#[test]
fn what_was_swapped_out_moves() {
    let Some(_turn) = host_wide() else { return };
    for kind in kinds() {
        let mut swap = None;
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let Some((source, qmp)) = swapped_out(here.path(), &kind, "", &mut swap) else {
            return;
        };
        drop(qmp);
        let at = format!("unix:{}", there.path().join("in").display());
        let mut args = kind.clone();
        args.extend(["--incoming", "defer"]);
        let destination = Machine::run_in_turn(there.path(), &args);
        let mut qmp = destination.connect();
        qmp.execute("migrate-incoming", json!({ "uri": at }));
        let done = output(["migrate", "--qmp", &source.qmp_address(), &at]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let report = check_ram(&mut qmp, destination.pid());
        assert!(report.is_right(), "{kind:?}: {:?}", report.wrong);
        assert!(report.vcpus.iter().any(|vcpu| vcpu.done > 0));
    }
}
