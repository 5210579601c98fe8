//! Machines with little more memory than their guest has: whoever takes too much is killed.

use std::path::Path;

use paguro_testkit::wait_until;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::machine::{Machine, MemoryCgroup, check_ram, output, text, turn, wait_written};

const MIB: u64 = 1 << 20;
/// Of the guest, and of all.
const RAM: &str = "256M";
const RAM_BYTES: u64 = 256 * MIB;
const LIMIT_BYTES: u64 = 356 * MIB;

const WRITES: [&str; 4] = [
    "--memory",
    RAM,
    "--workload",
    "pattern=random,rate=unlimited",
];

/// Waits until the guest has all its memory, but for a little that the kernel counts later.
fn wait_touched(cgroup: &MemoryCgroup) {
    wait_until("the guest's writes", || {
        cgroup.used_bytes() >= RAM_BYTES - 8 * MIB
    });
}

/// Waits until all pages are here.
fn wait_filled(machine: &Machine) {
    let mut qmp = machine.connect();
    wait_until("all pages", || {
        qmp.execute("x-paguro-query-restore", json!({}))["done"] != false
    });
}

/// Every byte is right, and nobody was killed.
fn is_well(machine: &Machine, cgroup: &MemoryCgroup) {
    assert_eq!(cgroup.killed(), 0);
    let mut qmp = machine.connect();
    qmp.execute("stop", json!({}));
    let report = check_ram(&mut qmp, machine.pid());
    assert!(report.is_right(), "{report:?}");
}

fn saved(machine: &Machine, file: &Path, options: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(options);
    let saved = machine.snapshot(file, &all);
    assert!(saved.status.success(), "{}", text(&saved.stdout));
    serde_json::from_slice(&saved.stdout).unwrap()
}

#[test]
fn a_snapshot_takes_no_more_memory_than_the_machine_may_have() {
    let _turn = turn();
    let Some(cgroup) = MemoryCgroup::make(LIMIT_BYTES) else {
        return;
    };
    // On a disk, where it can be written away.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let machine = Machine::run_in(&cgroup, dir.path(), &WRITES);
    wait_touched(&cgroup);
    let file = dir.path().join("a");
    let report = saved(&machine, &file, &[]);
    assert_eq!(cgroup.killed(), 0);
    let number = |field: &str| report[field].as_u64().unwrap();
    // Less than it would be, and it says why.
    assert_eq!(number("page_buffer_wanted_bytes"), RAM_BYTES / 2);
    assert!(
        number("page_buffer_bytes") < (LIMIT_BYTES - RAM_BYTES) / 2,
        "{report}"
    );
    assert!(number("peak_buffer_bytes") <= number("page_buffer_bytes"));
    let bound = report["page_buffer_bound"].as_str().unwrap();
    assert!(bound.contains("356 MiB of cgroup"), "{bound}");
    let now = machine.connect().execute("query-migrate", json!({}));
    let buffer = &now["x-paguro-page-buffer"];
    assert_eq!(buffer["size"], report["page_buffer_bytes"]);
    assert_eq!(buffer["bound"], report["page_buffer_bound"]);
    assert_eq!(buffer["waits"], report["buffer_waits"]);
    // Who says a size has it, for this time.
    let report = saved(&machine, &file, &["--page-buffer", "8M"]);
    assert_eq!(report["page_buffer_bytes"], 8 * MIB);
    assert_eq!(report["page_buffer_bound"], Value::Null);
    let parameters = machine
        .connect()
        .execute("query-migrate-parameters", json!({}));
    assert_eq!(parameters["x-paguro-page-buffer"], 0);
    is_well(&machine, &cgroup);
    drop(machine);
    let verified = output(["inspect", "--verify", file.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));

    // Whoever fills it again takes no more, either.
    for mode in ["lazy", "eager"] {
        let args = ["--restore", file.to_str().unwrap(), "--restore-mode", mode];
        let machine = Machine::run_in(&cgroup, dir.path(), &args);
        wait_touched(&cgroup);
        wait_filled(&machine);
        is_well(&machine, &cgroup);
    }
}

#[test]
fn a_machine_comes_in_where_there_is_little_memory() {
    let _turn = turn();
    let Some(cgroup) = MemoryCgroup::make(LIMIT_BYTES) else {
        return;
    };
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Machine::run_in_turn(from.path(), &WRITES);
    let way = format!("unix:{}", to.path().join("way").display());
    let mut args = WRITES.to_vec();
    args.extend(["--incoming", &way]);
    let destination = Machine::run_in(&cgroup, to.path(), &args);
    // The guest writes faster than any channel: it is stopped for the rest.
    let address = source.qmp_address();
    let moved = output([
        "migrate",
        "--qmp",
        &address,
        &way,
        "--timeout=1",
        "--at-timeout=switchover",
    ]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    wait_touched(&cgroup);
    is_well(&destination, &cgroup);
}

/// Whoever may have no more address space is refused what is large, and gets the small things that a
/// program cannot do without.
#[test]
fn a_machine_that_may_have_no_more_address_space_outlives_a_snapshot() {
    let _turn = turn();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for more in [0, 3, 5, 8, 16] {
        for stops in [true, false] {
            let machine = Machine::run_in_turn(dir.path(), &["--memory", "64M"]);
            // A thread that has yet to begin would find no room for that.
            wait_written(&mut machine.connect(), machine.pid());
            limit_address_space(&machine, Some(more * MIB));
            let options: &[&str] = if stops { &["--stop"] } else { &[] };
            let saved = machine.snapshot(&dir.path().join("a"), options);
            println!("{more} MiB, {options:?}: {}", text(&saved.stderr));
            // Without it, for not even a client may be let in.
            limit_address_space(&machine, None);
            let status = machine.connect().execute("query-status", json!({}));
            let stopped = stops && saved.status.success();
            let must_be = if stopped { "postmigrate" } else { "running" };
            assert_eq!(status["status"], must_be, "{more} MiB, {options:?}");
        }
    }
}

/// The table of checksums of a large guest is nothing small: 64 MiB here.
#[test]
fn a_large_machine_without_room_for_tables_outlives_a_snapshot() {
    let _turn = turn();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for stops in [true, false] {
        let args = ["--memory", "64G", "--workload", "set=16M,rate=1000"];
        let machine = Machine::run_in_turn(dir.path(), &args);
        machine.connect();
        limit_address_space(&machine, Some(60 * MIB));
        let options: &[&str] = if stops { &["--stop"] } else { &[] };
        let saved = machine.snapshot(&dir.path().join("a"), options);
        assert!(!saved.status.success(), "there was room");
        println!("{options:?}: {}", text(&saved.stderr));
        limit_address_space(&machine, None);
        let status = machine.connect().execute("query-status", json!({}));
        assert_eq!(status["status"], "running", "{options:?}");
    }
}

/// From now on it may have so much more than it has, or all.
fn limit_address_space(machine: &Machine, more: Option<u64>) {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", machine.pid())).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let bytes = pages * paguro_sys::page_size() as u64;
    let maximum = getrlimit(Resource::As).maximum;
    let limit = Rlimit {
        current: more.map_or(maximum, |more| Some(bytes + more)),
        maximum,
    };
    let pid = Pid::from_raw(machine.pid() as i32);
    prlimit(pid, Resource::As, limit).unwrap();
}
