//! Guests that move to another process on this host, and their RAM with them.

use paguro_oracle::SnapshotFile;
use paguro_testkit::HugePages;
use serde_json::{Value, json};

use crate::machine::{Machine, Qmp, text, turn, wait_written};
use crate::migrating::{Side, has_kvm};

/// A process that waits for RAM: there is nobody yet who would answer over QMP.
pub struct Waiting {
    pub dir: tempfile::TempDir,
    pub machine: Machine,
    /// Where RAM is to be handed over, and the rest is to go.
    pub at: String,
}

impl Waiting {
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = format!("unix:{}", dir.path().join("in.sock").display());
        let mut all = vec!["--incoming", &at, "--mode", "cpr-transfer"];
        all.extend(args);
        // Its control socket is there only once the other ones are.
        let machine = Machine::run_in_turn(dir.path(), &all);
        Self { dir, machine, at }
    }

    /// RAM is here.
    pub fn arrive(self) -> Side {
        let Self { dir, machine, .. } = self;
        let qmp = machine.connect();
        Side { dir, machine, qmp }
    }
}

/// What was moved with its RAM never runs where it was.
#[track_caller]
pub fn is_gone(here: &mut Side) {
    assert_eq!(here.status(), "postmigrate");
    let (class, desc) = here.qmp.refused("cont", json!({}));
    assert_eq!(class, "GenericError");
    assert!(desc.contains("handed over"), "{desc}");
    let (_, desc) = here
        .qmp
        .refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(desc.contains("handed over"), "{desc}");
    assert_eq!(here.status(), "postmigrate");
}

fn moves(accel: &str, more: &[&str]) {
    let _turn = turn();
    let mut options = vec!["--accel", accel];
    options.extend(more);
    let mut args = options.clone();
    // KVM's exits are dear where it is emulated.
    let workload = if accel == "threads" {
        "rate=unlimited"
    } else {
        "rate=20000"
    };
    args.extend(["--backing", "memfd", "--workload", workload]);
    let mut here = Side::run(&args);
    let mut writes = 0;
    for _ in 0..3 {
        writes = here.runs_on(writes);
        let waiting = Waiting::start(&options);
        let at = waiting.at.clone();
        let (moved, output) = here.migrate(&at, &["--mode", "cpr-transfer", "--json"]);
        here = moved;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |field: &str| report[field].as_u64().unwrap();
        assert_eq!(number("total_bytes"), 16 << 20);
        assert!(number("transferred_bytes") < 1 << 20, "{report}");
        assert_eq!((number("normal_pages"), number("zero_pages")), (0, 0));
        println!(
            "{accel} {more:?}: {} bytes sent, downtime {} us",
            number("transferred_bytes"),
            number("downtime_us")
        );
        let mut there = waiting.arrive();
        there.qmp.wait_status("running");
        let there_writes = there.check();
        assert!(there_writes >= writes, "{there_writes} {writes}");
        is_gone(&mut here);
        let now = here.qmp.execute("query-migrate", json!({}));
        let may = &now["x-paguro-advice"]["may"];
        assert_eq!(may.as_array().unwrap().len(), 1, "{now}");
        assert!(may[0].as_str().unwrap().contains("quit"), "{now}");
        // What was set for it was put back.
        let set = here.qmp.execute("query-migrate-parameters", json!({}));
        assert_eq!(set["mode"], "normal");
        writes = there.runs_on(there_writes);
        here.quit();
        there.check();
        here = there;
        here.qmp.execute("cont", json!({}));
    }
    here.quit();
}

#[test]
fn a_guest_of_threads_takes_its_ram_along() {
    moves("threads", &[]);
    moves("threads", &["--pages", "thp", "--x-ram-split", "6M"]);
}

#[test]
fn a_guest_of_kvm_takes_its_ram_along() {
    if has_kvm() {
        moves("kvm", &["--cpus", "2"]);
        let dma = ["--x-dma", "rate=1000"];
        moves("kvm,dirty-ring-size=4096", &dma);
    }
}

#[test]
fn huge_pages_are_taken_along() {
    let Some(_pages) = HugePages::take(8) else {
        return;
    };
    moves("threads", &["--pages", "2m"]);
    if has_kvm() {
        moves("kvm", &["--pages", "2m"]);
    }
}

/// Nothing of it is in the page tables there before the guest, which stands still, wants it.
#[test]
fn what_was_handed_over_can_be_saved_before_it_is_touched() {
    let huge = HugePages::take(8);
    let pages: &[&str] = match huge {
        Some(_) => &["4k", "2m"],
        None => &["4k"],
    };
    let _turn = turn();
    for pages in pages {
        let args = ["--backing", "memfd", "--pages", pages];
        let mut here = Side::run(&args);
        wait_written(&mut here.qmp, here.machine.pid());
        here.qmp.execute("stop", json!({}));
        let waiting = Waiting::start(&["--pages", pages]);
        let at = waiting.at.clone();
        let (here, output) = here.migrate(&at, &["--mode", "cpr-transfer"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let there = waiting.arrive();
        let file = there.dir.path().join("a.snap");
        drop(there.qmp);
        let output = there.machine.snapshot(&file, &["--stop"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let file = SnapshotFile::open(&file).unwrap();
        let report = paguro_oracle::check(&file, file.device_writers()).unwrap();
        assert!(report.is_right(), "{pages}: {:?}", report.wrong);
        assert!(report.vcpus[0].done > 0, "{pages}: nothing of it was saved");
        drop(here);
    }
}

/// As clients of QEMU do it.
#[test]
fn ram_may_be_handed_over_at_an_address_of_its_own() {
    let _turn = turn();
    let args = ["--backing", "memfd", "--workload", "rate=10000"];
    let mut here = Side::run(&[&args[..], &["--x-ram-split", "6M"]].concat());
    let writes = here.runs_on(0);
    let dir = tempfile::tempdir().unwrap();
    let channel = |kind: &str| {
        let path = dir.path().join(format!("{kind}.sock"));
        let addr = json!({ "transport": "socket", "type": "unix", "path": path });
        json!({ "channel-type": kind, "addr": addr })
    };
    let (main, cpr) = (channel("main"), channel("cpr"));
    let (main_text, cpr_text) = (main.to_string(), cpr.to_string());
    let incoming = ["--incoming", &main_text, "--incoming", &cpr_text];
    // Given, it must be right; and so must be where it is split, which is learnt.
    let machine = Machine::run_in_turn(
        dir.path(),
        &[&incoming[..], &["--memory", "16M", "--paused"]].concat(),
    );
    let channels = json!({ "channels": [main, cpr] });
    let (_, desc) = here.qmp.refused("migrate", channels.clone());
    assert!(desc.contains("'mode'"), "{desc}");
    set_mode(&mut here.qmp);
    here.qmp.set(&[("pause-before-switchover", true)]);
    here.qmp.execute("migrate", channels);
    here.qmp.wait_migration("pre-switchover");
    let go_on = json!({ "state": "pre-switchover" });
    here.qmp.execute("migrate-continue", go_on);
    here.qmp.wait_migration("completed");
    let qmp = machine.connect();
    let mut there = Side { dir, machine, qmp };
    there.qmp.wait_status("paused");
    assert!(there.check() >= writes);
    is_gone(&mut here);
    here.quit();
    let writes = there.check();
    there.runs_on(writes);
    there.quit();
}

pub fn set_mode(qmp: &mut Qmp) {
    let mode = json!({ "mode": "cpr-transfer" });
    qmp.execute("migrate-set-parameters", mode);
}
