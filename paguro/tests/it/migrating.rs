//! Guests that move: two real processes, and the oracle looks at what arrived.

use std::process::Output;

use paguro_sys::{Fallbacks, Host};
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, check_ram, output, text, turn};

/// One side, in a directory of its own.
pub struct Side {
    pub dir: tempfile::TempDir,
    pub machine: Machine,
    pub qmp: Qmp,
}

impl Side {
    pub fn run(args: &[&str]) -> Self {
        Self::run_forced(args, "")
    }

    /// The same with that as its `PAGURO_FORCE`.
    fn run_forced(args: &[&str], force: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::run_forced(dir.path(), args, force);
        let qmp = machine.connect();
        Self { dir, machine, qmp }
    }

    /// One that waits, and where it does. A client may be connected already when it begins to.
    pub fn incoming(uri: &str, args: &[&str]) -> (Self, String) {
        Self::incoming_forced(uri, args, "")
    }

    fn incoming_forced(uri: &str, args: &[&str], force: &str) -> (Self, String) {
        let mut all = vec!["--incoming", "defer"];
        all.extend(args);
        let mut side = Self::run_forced(&all, force);
        let path = format!("unix:{}", side.dir.path().join("in.sock").display());
        let uri = if uri == "unix" { &path } else { uri };
        side.qmp.execute("migrate-incoming", json!({ "uri": uri }));
        let now = side.qmp.execute("query-migrate", json!({}));
        let at = match uri.strip_prefix("tcp:") {
            Some(_) => {
                let port = now["socket-address"][0]["port"].as_str().unwrap();
                format!("tcp:127.0.0.1:{port}")
            }
            None => uri.to_owned(),
        };
        (side, at)
    }

    /// `paguro migrate` of it, for which its socket must be free.
    pub fn migrate(self, uri: &str, options: &[&str]) -> (Self, Output) {
        let Self { dir, machine, qmp } = self;
        drop(qmp);
        let address = machine.qmp_address();
        let mut args = vec!["migrate", "--qmp", &address, uri];
        args.extend(options);
        let output = output(args);
        let qmp = machine.connect();
        (Self { dir, machine, qmp }, output)
    }

    /// Writes of all vCPUs so far, where RAM is right.
    #[track_caller]
    pub fn check(&mut self) -> u64 {
        self.qmp.execute("stop", json!({}));
        let report = check_ram(&mut self.qmp, self.machine.pid());
        assert!(report.is_right(), "{:?}", report.wrong);
        assert!(report.pages_checked > 0);
        report.vcpus.iter().map(|vcpu| vcpu.done).sum()
    }

    /// It runs on and stays right.
    #[track_caller]
    pub fn runs_on(&mut self, writes: u64) -> u64 {
        loop {
            self.qmp.execute("cont", json!({}));
            let now = self.check();
            if now > writes {
                self.qmp.execute("cont", json!({}));
                return now;
            }
        }
    }

    pub fn status(&mut self) -> Value {
        self.qmp.execute("query-status", json!({}))["status"].take()
    }

    pub fn quit(mut self) {
        self.qmp.execute("quit", json!({}));
        let (status, said) = self.machine.wait();
        assert!(status.success(), "{said}");
    }
}

pub fn has_kvm() -> bool {
    let missing = paguro_lab::host::no_kvm();
    if let Some(error) = &missing {
        println!("skipped without KVM: {error}");
    }
    missing.is_none()
}

/// Three moves, one after the other, each checked.
fn moves(accel: &str, uri: &str, workload: &str, more: &[&str]) {
    let _turn = turn();
    let mut options = vec!["--accel", accel];
    options.extend(more);
    let mut args = options.clone();
    args.extend(["--workload", workload]);
    let mut here = Side::run(&args);
    let mut writes = 0;
    for _ in 0..3 {
        writes = here.runs_on(writes);
        let (mut there, at) = Side::incoming(uri, &options);
        assert_eq!(there.status(), "inmigrate");
        let (moved, output) = here.migrate(&at, &["--json"]);
        here = moved;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["status"], "completed");
        for field in [
            "total_us",
            "downtime_us",
            "transferred_bytes",
            "dirty_sync_count",
        ] {
            assert!(report[field].as_u64().unwrap() > 0, "{field}: {report}");
        }
        assert_eq!(here.status(), "postmigrate");
        let now = here.qmp.execute("query-migrate", json!({}));
        assert_eq!(now["ram"]["remaining"], 0, "{now}");
        there.qmp.wait_status("running");
        let there_writes = there.check();
        assert!(there_writes >= writes, "{there_writes} {writes}");
        writes = there.runs_on(there_writes);
        here.quit();
        here = there;
    }
    here.quit();
}

#[test]
fn a_guest_of_threads_moves_there_and_on_and_on() {
    moves("threads", "unix", "rate=10000", &[]);
    moves("threads", "tcp:127.0.0.1:0", "rate=unlimited", &[]);
}

#[test]
fn a_guest_of_kvm_moves_there_and_on_and_on() {
    if has_kvm() {
        moves("kvm", "tcp:127.0.0.1:0", "rate=10000", &[]);
        moves("kvm", "unix", "rate=unlimited", &["--cpus", "2"]);
    }
}

#[test]
fn a_guest_with_a_device_and_a_dirty_ring_moves() {
    if has_kvm() {
        let ring = "kvm,dirty-ring-size=4096";
        moves(ring, "unix", "rate=unlimited", &["--x-dma", "rate=1000"]);
    }
}

#[test]
fn a_destination_that_is_to_be_paused_waits_for_cont() {
    let _turn = turn();
    let here = Side::run(&["--workload", "rate=10000"]);
    let (mut there, at) = Side::incoming("unix", &["--paused"]);
    let (here, output) = here.migrate(&at, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    for word in ["downtime", "forecast", "last dirty", "passes"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    there.qmp.wait_status("paused");
    let writes = there.check();
    there.runs_on(writes);
    drop(here);
    there.quit();
}

#[test]
fn before_switchover_it_waits_for_migrate_continue() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=10000"]);
    let (mut there, at) = Side::incoming("unix", &[]);
    here.qmp
        .set(&[("pause-before-switchover", true), ("events", true)]);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("pre-switchover");
    assert_eq!(here.status(), "finish-migrate");
    let (_, desc) = here.qmp.refused("cont", json!({}));
    assert!(desc.contains("cancel"), "{desc}");
    let wrong = json!({ "state": "device" });
    here.qmp.refused("migrate-continue", wrong);
    assert_eq!(there.status(), "inmigrate");
    let right = json!({ "state": "pre-switchover" });
    here.qmp.execute("migrate-continue", right);
    here.qmp.wait_migration("completed");
    assert_eq!(here.status(), "postmigrate");
    there.qmp.wait_status("running");
    there.check();
    // That it is completed may be told a moment after it shows.
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "completed") {
        let event = here.qmp.event();
        if event["event"] == "MIGRATION" {
            told.push(event["data"]["status"].as_str().unwrap().to_owned());
        }
    }
    let all = ["setup", "active", "pre-switchover", "device", "completed"];
    assert_eq!(told, all);
    // Somebody who knows that the guest runs nowhere else.
    there.quit();
    here.qmp.execute("cont", json!({}));
    assert_eq!(here.status(), "running");
    here.check();
}

/// One that stayed would be the only client, and nobody could tell the guest to move on.
#[test]
fn before_switchover_a_command_leaves_the_guest_and_another_moves_it_on() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=10000"]);
    here.qmp.set(&[("pause-before-switchover", true)]);
    let (mut there, at) = Side::incoming("unix", &[]);
    let (mut here, output) = here.migrate(&at, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ended["status"], "pre-switchover", "{ended}");
    assert!(ended["hint"].as_str().unwrap().contains("--continue"));
    here.qmp.wait_migration("pre-switchover");
    assert_eq!(here.status(), "finish-migrate");
    assert_eq!(there.status(), "inmigrate");
    let (mut here, output) = here.migrate("--continue", &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ended["uri"], at, "{ended}");
    assert_eq!(here.status(), "postmigrate");
    there.qmp.wait_status("running");
    there.check();
    there.quit();
    // It is the operator's to take it back, too; and then there is nothing to move on.
    here.qmp.execute("cont", json!({}));
    let (_there, at) = Side::incoming("unix", &[]);
    let (mut here, output) = here.migrate(&at, &[]);
    let said = text(&output.stderr);
    assert!(
        said.contains("--continue") && said.contains("`migrate_cancel`"),
        "{said}"
    );
    here.qmp.execute("migrate_cancel", json!({}));
    here.qmp.wait_status("running");
    let (mut here, output) = here.migrate("--continue", &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("not in expected state"), "{said}");
    assert_eq!(here.status(), "running");
}

#[test]
fn one_way_channels_end_stopped_and_can_be_read_later() {
    let _turn = turn();
    for (out, back) in [("exec:cat > ", "exec:cat "), ("file:", "file:")] {
        let mut here = Side::run(&["--workload", "rate=10000"]);
        here.runs_on(0);
        let file = here.dir.path().join("stream");
        let (mut here, output) = here.migrate(&format!("{out}{}", file.display()), &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(here.status(), "postmigrate");
        let (mut there, _) = Side::incoming(&format!("{back}{}", file.display()), &[]);
        there.qmp.wait_status("running");
        let writes = there.check();
        there.runs_on(writes);
        there.quit();
    }
}

#[test]
fn a_background_snapshot_can_go_as_a_stream() {
    if !Host::probe(&Fallbacks::default()).can_freeze() {
        println!("skipped: this process may not use userfaultfd");
        return;
    }
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=10000"]);
    let (mut there, at) = Side::incoming("unix", &[]);
    here.qmp.set(&[("background-snapshot", true)]);
    let writes = here.runs_on(0);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("completed");
    assert_eq!(here.status(), "running");
    here.runs_on(writes);
    there.qmp.wait_status("running");
    assert!(there.check() >= writes);
}

/// Each way to lose a page is found, soon: where the guest does not run, for what writes at full rate
/// would soon write over a page that was lost.
#[test]
fn what_is_broken_on_purpose_is_caught() {
    for name in ["break-clear-after-read", "break-skip-dirty-page"] {
        if name == "break-clear-after-read" && !has_kvm() {
            println!("skipped without KVM: {name}, for only KVM's log is cleared");
            continue;
        }
        let _turn = turn();
        let accel = if has_kvm() { "kvm" } else { "threads" };
        let args = ["--accel", accel, "--workload", "rate=unlimited"];
        let mut here = Side::run_forced(&args, name);
        let caught = (1..=20).find(|_| {
            let args = ["--accel", accel, "--paused"];
            let (mut there, at) = Side::incoming_forced("unix", &args, name);
            here.qmp.execute("migrate", json!({ "uri": at }));
            here.qmp.wait_migration("completed");
            there.qmp.wait_status("paused");
            let report = check_ram(&mut there.qmp, there.machine.pid());
            there.qmp.execute("cont", json!({}));
            here = there_instead(&mut here, there);
            !report.is_right()
        });
        println!("{name}: caught after {caught:?} migrations");
        assert!(caught.is_some(), "{name} goes unnoticed");
    }
}

fn there_instead(here: &mut Side, there: Side) -> Side {
    here.qmp.execute("quit", json!({}));
    there
}
