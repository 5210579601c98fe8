//! How pages travel, as both sides are told; and what may be changed while they do.

use paguro_testkit::wait_until;
use serde_json::{Value, json};

use crate::machine::{text, turn};
use crate::migrating::Side;

/// A guest moves, told so by `source` here and `destination` there; the report.
fn moved(workload: &str, source: &[&str], destination: &[&str]) -> Value {
    let mut here = Side::run(&["--workload", workload]);
    here.runs_on(1000);
    let dir = tempfile::tempdir().unwrap();
    let at = format!("unix:{}", dir.path().join("in.sock").display());
    let mut args = vec!["--incoming", &at];
    args.extend(destination);
    let mut there = Side::run(&args);
    let mut args = vec!["--json"];
    args.extend(source);
    let (here, output) = here.migrate(&at, &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    there.qmp.wait_status("running");
    let writes = there.check();
    there.runs_on(writes);
    there.quit();
    here.quit();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn pages_take_the_way_that_both_sides_are_told() {
    let _turn = turn();
    let many = ["--multifd-channels", "4"];
    let report = moved("rate=20000", &many, &many);
    assert!(report["multifd_bytes"].as_u64() > Some(0), "{report}");
    let plain = report["transferred_bytes"].as_u64();
    let zstd = [&many[..], &["--multifd-compression", "zstd"]].concat();
    let report = moved("rate=20000", &zstd, &zstd);
    assert!(report["multifd_bytes"].as_u64() > Some(0), "{report}");
    assert!(report["transferred_bytes"].as_u64() < plain, "{report}");
}

/// Of pages in which eight bytes change, little more is sent than these.
#[test]
fn of_pages_that_were_sent_only_the_difference_is() {
    let _turn = turn();
    let here = [
        "--xbzrle",
        "--xbzrle-cache-size=64M",
        "--max-bandwidth=16M",
        "--downtime-limit=1",
        "--timeout=4",
        "--at-timeout=switchover",
    ];
    let report = |bytes: &str| {
        let workload = format!("rate=unlimited,bytes={bytes},set=8M,pattern=random");
        let report = moved(&workload, &here, &[]);
        move |field: &str| report[field].as_u64().unwrap()
    };
    let number = report("8");
    assert!(number("xbzrle_pages") > 0);
    assert!(number("xbzrle_bytes") < 64 * number("xbzrle_pages"));
    assert_eq!(number("xbzrle_overflows"), 0);
    // Of pages in which all changes the difference would be longer than they are.
    assert!(report("page")("xbzrle_overflows") > 0);
}

#[test]
fn what_is_never_told_alike_is_a_clear_error() {
    let _turn = turn();
    let mut here = Side::run(&[]);
    let (_there, at) = Side::incoming("unix", &[]);
    let (_, desc) = here.qmp.refused(
        "migrate-set-capabilities",
        json!({ "capabilities": [
            { "capability": "xbzrle", "state": true },
            { "capability": "multifd", "state": true },
        ]}),
    );
    assert_eq!(desc, "multifd is not compatible with xbzrle");
    let (_, desc) = here.qmp.refused(
        "migrate-set-capabilities",
        json!({ "capabilities": [{ "capability": "dirty-limit", "state": true }] }),
    );
    assert!(desc.contains("dirty-ring-size"), "{desc}");
    here.qmp.set(&[("multifd", true)]);
    // Where a second connection has nowhere to go it is refused at once.
    let (_, desc) = here
        .qmp
        .refused("migrate", json!({ "uri": "exec:cat >/dev/null" }));
    assert!(desc.contains("multifd"), "{desc}");
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("failed");
    assert_eq!(here.status(), "running");
}

/// A migration that would take for ever is given what it lacks.
#[test]
fn limits_can_be_changed_while_it_runs() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=50000"]);
    here.runs_on(20_000);
    let (mut there, at) = Side::incoming("unix", &[]);
    let slow = json!({ "max-bandwidth": 200_000, "downtime-limit": 1 });
    here.qmp.execute("migrate-set-parameters", slow);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("active");
    wait_until("what goes at that pace", || {
        let now = here.qmp.execute("query-migrate", json!({}));
        assert_eq!(now["status"], "active", "{now}");
        now["ram"]["transferred"].as_u64() > Some(100_000)
    });
    let fast = json!({ "max-bandwidth": 0, "downtime-limit": 300 });
    here.qmp.execute("migrate-set-parameters", fast);
    here.qmp.wait_migration("completed");
    there.qmp.wait_status("running");
    there.check();
}

#[test]
fn every_pass_is_told() {
    let _turn = turn();
    let mut here = Side::run(&["--workload", "rate=10000"]);
    here.runs_on(1000);
    here.qmp.set(&[("events", true)]);
    let (_there, at) = Side::incoming("unix", &[]);
    here.qmp.execute("migrate", json!({ "uri": at }));
    here.qmp.wait_migration("completed");
    let events = here.qmp.events_until("MIGRATION_PASS");
    let passes = events
        .iter()
        .filter(|event| event["event"] == "MIGRATION_PASS");
    let passes: Vec<_> = passes
        .map(|event| event["data"]["pass"].as_u64().unwrap())
        .collect();
    assert!(!passes.is_empty());
    assert!(passes.is_sorted(), "{passes:?}");
    assert_eq!(passes[0], 1);
}
