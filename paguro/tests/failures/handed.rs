//! A channel that breaks about the permission to run, after RAM was handed over: there is one RAM,
//! so that a source must not run again once the destination has.

use std::thread::JoinHandle;

use paguro_lab::{Backing, MachineOptions};
use paguro_testkit::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pair::turn;
use crate::relay::{Act, At, Place, Relay};
use crate::side::{Judged, Side, options};

/// Where `At` the plan says, the channel is cut; then the destination is here, too.
fn cut(at: At) -> (Side, Side, Relay, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| Place::unix(dir.path(), name);
    let (relayed, direct, cpr) = (place("relay"), place("direct"), place("cpr"));
    let mut source = Side::start(&MachineOptions {
        workload: "rate=10000".parse().unwrap(),
        backing: Backing::Memfd,
        ..options()
    });
    let channel = |kind: &str, at: &Place| {
        let Place::Unix(path) = at else {
            panic!("these are unix sockets")
        };
        let addr = json!({ "transport": "socket", "type": "unix", "path": path });
        json!({ "channel-type": kind, "addr": addr })
    };
    let destination = start_destination(&direct, &channel("cpr", &cpr));
    let relay = Relay::start(&relayed, &direct, || {});
    relay.plan(at, Act::Cut);
    source.must_have_written(4000).unwrap();
    let mode = json!({ "mode": "cpr-transfer" });
    source.must("migrate-set-parameters", mode).unwrap();
    let channels = [channel("main", &relayed), channel("cpr", &cpr)];
    let settings = json!({ "on-disconnect": "cancel" });
    let migrate = json!({ "channels": channels, "x-paguro-settings": settings });
    source.must("migrate", migrate).unwrap();
    let destination = destination.join().unwrap();
    relay.wait_fired().unwrap();
    (source, destination, relay, dir)
}

/// It answers over QMP only when RAM was handed over; a source can come when the last of its two sockets,
/// that for the rest, is there.
fn start_destination(main: &Place, cpr: &Value) -> JoinHandle<Side> {
    let options = MachineOptions {
        incoming: vec![main.uri().into(), cpr.to_string().into()],
        ..options()
    };
    let Place::Unix(socket) = main else {
        panic!("these are unix sockets")
    };
    let starting = std::thread::spawn(move || Side::start(&options));
    wait_until("the socket for a machine that comes in", || {
        socket.exists() || starting.is_finished()
    });
    starting
}

fn stands(source: &mut Side) -> Judged {
    let status = source.must("query-status", json!({}))?;
    if status["status"] == "postmigrate" {
        Ok(())
    } else {
        Err(format!("{status}"))
    }
}

/// The destination runs, and the source cannot know: when it can ask, it learns that it is done.
fn learns_that_it_is_done() -> Judged {
    let (mut source, mut destination, relay, _dir) = cut(At::Shut(0));
    source.wait_for(&["x-paguro-in-doubt"])?;
    stands(&mut source)?;
    source.must_advise(&["`migrate_cancel`", "has never run"])?;
    destination.wait_for(&["completed"])?;
    destination.must_run()?;
    // Too late: it is not taken back.
    source.must("migrate_cancel", json!({}))?;
    stands(&mut source)?;
    relay.mend();
    source.wait_for(&["completed"])?;
    source.must_advise(&["`quit`"])?;
    match source.must("cont", json!({})) {
        Err(error) if error.contains("handed over") => {}
        other => return Err(format!("`cont`: {other:?}")),
    }
    stands(&mut source)?;
    destination.must_run()
}

/// The permission was sent and never came: who knows that the destination never ran and is dead may
/// let the guest run on at the source, in RAM that is right.
fn runs_on_if_the_destination_never_ran() -> Judged {
    let (mut source, mut destination, _relay, _dir) = cut(At::Eof(0));
    source.wait_for(&["x-paguro-in-doubt"])?;
    source.must_stand("postmigrate")?;
    source.must_advise(&["`cont`", "has never run"])?;
    destination.kill();
    source.must("cont", json!({}))?;
    source.must_run()
}

/// And so it may be taken back from one that lives.
fn is_taken_back() -> Judged {
    let (mut source, mut destination, relay, _dir) = cut(At::Eof(0));
    source.wait_for(&["x-paguro-in-doubt"])?;
    source.must("migrate_cancel", json!({}))?;
    source.must_stand("postmigrate")?;
    relay.mend();
    source.wait_for(&["cancelled"])?;
    destination.must_fail()?;
    source.must_run()
}

/// A client that is gone takes nothing back: only an operator may.
fn goes_on_without_its_client() -> Judged {
    let (mut source, mut destination, relay, _dir) = cut(At::Eof(0));
    source.wait_for(&["x-paguro-in-doubt"])?;
    source.reconnect();
    source.must_stand("postmigrate")?;
    relay.mend();
    source.wait_for(&["completed"])?;
    destination.must_run()
}

#[test]
fn in_doubt_one_ram_is_never_written_by_two_guests() {
    let _turn = turn();
    for (name, trial) in [
        ("done", learns_that_it_is_done as fn() -> Judged),
        ("runs on", runs_on_if_the_destination_never_ran),
        ("taken back", is_taken_back),
        ("goes on", goes_on_without_its_client),
    ] {
        if let Err(error) = trial() {
            panic!("{name}: {error}");
        }
        println!("{name}: as it should be");
    }
}
