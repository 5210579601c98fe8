//! Hand-overs that do not come to their end: the guest runs on in the RAM that it has.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use paguro_sys::{Fallbacks, Host};
use paguro_testkit::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::handing_over::{Waiting, set_mode};
use crate::machine::{Machine, output, text, turn};
use crate::migrating::Side;

fn source(more: &[&str]) -> Side {
    let mut args = vec!["--workload", "rate=10000", "--backing", "memfd"];
    args.extend(more);
    let mut here = Side::run(&args);
    set_mode(&mut here.qmp);
    here.runs_on(0);
    here
}

/// It runs on, in RAM that is right, and can still be moved.
#[track_caller]
fn is_well(mut here: Side) {
    assert_eq!(here.status(), "running");
    let writes = here.check();
    here.runs_on(writes);
    here.qmp.set(&[("pause-before-switchover", false)]);
    let waiting = Waiting::start(&[]);
    here.qmp.execute("migrate", json!({ "uri": waiting.at }));
    here.qmp.wait_migration("completed");
    let mut there = waiting.arrive();
    there.qmp.wait_status("running");
    assert!(there.check() >= writes);
    here.quit();
    there.quit();
}

#[track_caller]
fn ends(machine: Machine, word: &str) {
    let (status, said) = machine.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(word), "{word} is not in: {said}");
    assert!(said.contains("hint:"), "{said}");
    println!("{said}");
}

#[test]
fn what_cannot_work_together_is_refused_by_both_names() {
    let _turn = turn();
    let mut here = source(&[]);
    let unix = json!({ "uri": "unix:/nowhere" });
    for name in ["multifd", "xbzrle", "mapped-ram", "background-snapshot"] {
        // A host without userfaultfd does not let the last one be set.
        if !here.qmp.try_set(&[(name, true)]) {
            continue;
        }
        let (class, desc) = here.qmp.refused("migrate", unix.clone());
        assert_eq!(class, "GenericError");
        assert!(
            desc.contains("cpr-transfer") && desc.contains(name),
            "{desc}"
        );
        here.qmp.set(&[(name, false)]);
    }
    for (uri, words) in [
        ("tcp:127.0.0.1:1", "tcp:127.0.0.1:1"),
        ("exec:cat", "exec:cat"),
        ("file:/nowhere", "file:/nowhere"),
    ] {
        let (_, desc) = here.qmp.refused("migrate", json!({ "uri": uri }));
        assert!(
            desc.contains("cpr-transfer") && desc.contains(words),
            "{desc}"
        );
    }
    let creds = json!({ "tls-creds": "/nowhere" });
    here.qmp.execute("migrate-set-parameters", creds);
    let (_, desc) = here.qmp.refused("migrate", unix);
    assert!(
        desc.contains("cpr-transfer") && desc.contains("tls-creds"),
        "{desc}"
    );
    let none = json!({ "tls-creds": "" });
    here.qmp.execute("migrate-set-parameters", none);
    for mode in ["cpr-reboot", "", "Normal"] {
        let (_, desc) = here
            .qmp
            .refused("migrate-set-parameters", json!({ "mode": mode }));
        assert!(desc.contains("'mode'"), "{desc}");
    }
    is_well(here);
}

#[test]
fn anonymous_ram_is_refused_and_the_guest_runs_on() {
    let _turn = turn();
    let here = Side::run(&["--workload", "rate=10000"]);
    let waiting = Waiting::start(&[]);
    let at = waiting.at.clone();
    let (mut here, output) = here.migrate(&at, &["--mode", "cpr-transfer"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--backing memfd"), "{said}");
    assert_eq!(here.status(), "running");
    let writes = here.check();
    here.runs_on(writes);
    // Nobody came.
    waiting.machine.signal(Signal::TERM);
    let (status, said) = waiting.machine.wait();
    assert!(status.success(), "{said}");
}

#[test]
fn who_waits_for_ram_ends_in_order_when_told_to() {
    let _turn = turn();
    for signal in [Signal::INT, Signal::TERM] {
        let waiting = Waiting::start(&[]);
        let qmp = UnixStream::connect(waiting.machine.socket()).unwrap();
        waiting.machine.signal(signal);
        let (status, said) = waiting.machine.wait();
        assert!(status.success(), "{said}");
        drop(qmp);
        let left = std::fs::read_dir(waiting.dir.path()).unwrap().count();
        assert_eq!(left, 0, "names of sockets stay");
    }
}

#[test]
fn ram_of_another_size_is_refused_with_both_values() {
    let _turn = turn();
    let here = source(&[]);
    let waiting = Waiting::start(&["--memory", "24M"]);
    let at = waiting.at.clone();
    let (here, output) = here.migrate(&at, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("hint:"), "{said}");
    let (status, said) = waiting.machine.wait();
    assert_eq!(status.code(), Some(1));
    for word in ["24M", "16M", "hint:"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    is_well(here);
}

#[test]
fn both_sides_must_be_told() {
    let _turn = turn();
    // The destination only.
    let here = source(&[]);
    let waiting = Waiting::start(&[]);
    let at = waiting.at.clone();
    let (here, output) = here.migrate(&at, &["--mode", "normal"]);
    assert_eq!(output.status.code(), Some(1));
    ends(waiting.machine, "stream");
    // The source only.
    let (there, at) = Side::incoming("unix", &["--backing", "memfd"]);
    let (here, output) = here.migrate(&at, &["--mode", "cpr-transfer"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--mode cpr-transfer"), "{said}");
    there.quit();
    is_well(here);
}

#[test]
fn what_is_no_offer_ends_who_waits_for_one() {
    let _turn = turn();
    for bytes in [&b""[..], b"PgRM", b"PgRM\0\0\0\x01", &[0xff; 64]] {
        let waiting = Waiting::start(&[]);
        let path = waiting.at.strip_prefix("unix:").unwrap();
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        ends(waiting.machine, "handed over");
    }
}

/// The destination is stopped before it takes anything, so that the source surely waits for it.
/// Waits until somebody has connected there, whether or not that was noticed.
#[track_caller]
fn offered(at: &str) {
    let path = at.strip_prefix("unix:").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // The one that listens, and the end of each connection on its side.
        let all = std::fs::read_to_string("/proc/net/unix").unwrap();
        if all.lines().filter(|line| line.ends_with(path)).count() > 1 {
            return;
        }
        assert!(Instant::now() < deadline, "nobody comes to {at}");
        std::thread::yield_now();
    }
}

#[test]
fn before_it_is_confirmed_either_side_may_be_killed() {
    let _turn = turn();
    let mut here = source(&[]);
    // The destination.
    let waiting = Waiting::start(&[]);
    waiting.machine.signal(Signal::STOP);
    here.qmp.execute("migrate", json!({ "uri": waiting.at }));
    offered(&waiting.at);
    waiting.machine.signal(Signal::KILL);
    let failed = here.qmp.wait_migration("failed");
    let said = failed["error-desc"].as_str().unwrap();
    assert!(said.contains("handed over"), "{said}");
    // It is given up.
    let waiting = Waiting::start(&[]);
    waiting.machine.signal(Signal::STOP);
    here.qmp.execute("migrate", json!({ "uri": waiting.at }));
    offered(&waiting.at);
    here.qmp.execute("migrate_cancel", json!({}));
    here.qmp.wait_migration("cancelled");
    assert_eq!(here.status(), "running");
    waiting.machine.signal(Signal::CONT);
    ends(waiting.machine, "handed");
    // The source.
    let lost = source(&[]);
    let waiting = Waiting::start(&[]);
    waiting.machine.signal(Signal::STOP);
    let Side {
        machine, mut qmp, ..
    } = lost;
    qmp.execute("migrate", json!({ "uri": waiting.at }));
    offered(&waiting.at);
    machine.signal(Signal::KILL);
    machine.wait();
    waiting.machine.signal(Signal::CONT);
    ends(waiting.machine, "handed");
    is_well(here);
}

#[test]
fn before_the_permission_to_run_either_side_may_be_killed() {
    let _turn = turn();
    for destination in [true, false] {
        let mut here = source(&[]);
        let waiting = Waiting::start(&[]);
        here.qmp.set(&[("pause-before-switchover", true)]);
        here.qmp.execute("migrate", json!({ "uri": waiting.at }));
        here.qmp.wait_migration("pre-switchover");
        let mut there = waiting.arrive();
        assert_eq!(there.status(), "inmigrate");
        if destination {
            there.machine.signal(Signal::KILL);
            here.qmp.wait_migration("failed");
            is_well(here);
        } else {
            here.machine.signal(Signal::KILL);
            here.machine.wait();
            ends(there.machine, "did not come in");
        }
    }
}

/// The source has nowhere to send the rest to, or nobody to send it: who has its RAM waits no more.
#[test]
fn who_has_ram_and_no_source_any_more_ends() {
    let _turn = turn();
    let mut here = source(&[]);
    let waiting = Waiting::start(&[]);
    let path = waiting.at.strip_prefix("unix:").unwrap();
    let channel = |kind: &str, path: &str| {
        let addr = json!({ "transport": "socket", "type": "unix", "path": path });
        json!({ "channel-type": kind, "addr": addr })
    };
    let channels = [channel("main", "/nowhere"), channel("cpr", path)];
    here.qmp.execute("migrate", json!({ "channels": channels }));
    let failed = here.qmp.wait_migration("failed");
    let said = failed["error-desc"].as_str().unwrap();
    assert!(said.contains("/nowhere"), "{said}");
    ends(waiting.machine, "handed its RAM over");
    is_well(here);
}

/// What is absent would be zeros at the destination, for good.
#[test]
fn ram_that_is_still_arriving_is_not_handed_over() {
    let host = Host::probe(&Fallbacks::default());
    if !host.can_freeze_shared() {
        println!("skipped: this process may not use userfaultfd");
        return;
    }
    let _turn = turn();
    // Slow, as what it writes arrives, and all must not.
    let mut here = Side::run(&["--workload", "rate=100"]);
    here.runs_on(0);
    let file = here.dir.path().join("a.snap");
    let saved = here.machine.qmp_address();
    let Side { dir, machine, qmp } = here;
    drop(qmp);
    let args = ["snapshot", "--qmp", &saved, file.to_str().unwrap()];
    let taken = output(args);
    assert!(taken.status.success(), "{}", text(&taken.stderr));
    drop(machine);
    let restore = ["--restore", file.to_str().unwrap(), "--prefetch", "off"];
    let mut here = Side::run(&[&restore[..], &["--backing", "memfd"]].concat());
    set_mode(&mut here.qmp);
    let waiting = Waiting::start(&[]);
    here.qmp.execute("migrate", json!({ "uri": waiting.at }));
    let failed = here.qmp.wait_migration("failed");
    let said = failed["error-desc"].as_str().unwrap();
    assert!(said.contains("restore"), "{said}");
    assert_eq!(here.status(), "running");
    here.qmp.execute("x-paguro-touch", json!({}));
    wait_until("all pages", || {
        here.qmp.execute("x-paguro-query-restore", json!({}))["done"] == true
    });
    here.qmp.execute("migrate", json!({ "uri": waiting.at }));
    here.qmp.wait_migration("completed");
    let mut there = waiting.arrive();
    there.qmp.wait_status("running");
    there.check();
    drop(dir);
}
