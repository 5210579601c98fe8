//! A channel that breaks, falls silent, or is slow, in each phase and in either direction; and
//! that comes back, or not.

use std::time::{Duration, Instant};

use fastrand::Rng;
use paguro_lab::Accel;
use serde_json::json;

use crate::pair::{Pair, Tally, turn};
use crate::relay::{Act, At};
use crate::rng::seeded;
use crate::side::{Judged, SILENCE_MS, accel};

const PAGE: u64 = 4096;
/// By these a destination knows what a connection is.
const MAGIC_BYTES: u64 = 4;
/// A page of zeros: where it is, and that it is one.
const SHORTEST_PAGE: u64 = 9;
/// The devices in bytes of the stream, at least: of a machine of threads, and of one with KVM.
const DEVICES: [u64; 2] = [200, 4096];

/// A phase of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Header, configuration, the list of RAM blocks, the return path.
    Header,
    /// RAM while the guest runs.
    Ram,
    /// The rest of RAM and the devices, the guest being stopped.
    Rest,
    /// What the destination says first.
    Answers,
    Ping2,
    Pong2,
    /// The permission is sent, and does not come.
    Eof,
    /// The permission came; what is behind it does not.
    Description,
    Shut,
}

const PHASES: [Phase; 9] = [
    Phase::Header,
    Phase::Ram,
    Phase::Rest,
    Phase::Answers,
    Phase::Ping2,
    Phase::Pong2,
    Phase::Eof,
    Phase::Description,
    Phase::Shut,
];

#[test]
fn a_channel_may_break_at_any_byte() {
    let mut rng = seeded("cuts");
    let mut tally = Tally::default();
    let acts = [
        Act::Cut,
        Act::Swallow,
        Act::Delay(Duration::from_millis(375)),
    ];
    let mut trials: Vec<_> = PHASES
        .iter()
        .flat_map(|phase| acts.map(|act| (*phase, act)))
        .collect();
    trials = if crate::is_full() {
        (0..crate::kills() / 50)
            .flat_map(|_| trials.clone())
            .collect()
    } else {
        // One of each phase.
        PHASES
            .map(|phase| (phase, acts[rng.u64(..3) as usize]))
            .to_vec()
    };
    for (phase, act) in trials {
        let _turn = turn();
        let verdict = cut(phase, act, &mut rng);
        let name = match act {
            Act::Cut => "cut",
            Act::Swallow => "silent",
            _ => "slow",
        };
        let verdict = verdict.map(|verdict| format!("{name} in {phase:?}: {verdict}"));
        tally.add(&format!("{act:?} in {phase:?}"), verdict);
    }
    tally.end("cuts");
}

fn cut(phase: Phase, act: Act, rng: &mut Rng) -> Judged<&'static str> {
    let mut pair = Pair::new(if rng.bool() { "unlimited" } else { "10000" });
    let at = match phase {
        Phase::Header => At::Forward(rng.u64(..120)),
        Phase::Ram => At::Forward(200 + rng.u64(..4 << 20)),
        Phase::Answers => At::Back(rng.u64(..40)),
        Phase::Ping2 => At::Ping2(rng.u64(..9)),
        Phase::Pong2 => At::Pong2(rng.u64(..8)),
        Phase::Eof => At::Eof(0),
        Phase::Description => At::Eof(1 + rng.u64(..64)),
        Phase::Shut => At::Shut(rng.u64(..8)),
        // Told once it is known where the rest begins.
        Phase::Rest => At::Forward(u64::MAX),
    };
    if phase == Phase::Rest {
        let wanted = json!([{ "capability": "pause-before-switchover", "state": true }]);
        let wanted = json!({ "capabilities": wanted });
        pair.source.must("migrate-set-capabilities", wanted)?;
        pair.migrate(0)?;
        pair.source.wait_for(&["pre-switchover"])?;
        // All that was sent has come through here; on a busy host it may take its time.
        let mut before = pair.relay.marks().forward_bytes;
        let mut quiet = 0;
        while quiet < 20 {
            // Quiet is what does not come for a while.
            std::thread::sleep(Duration::from_millis(20));
            let now = pair.relay.marks().forward_bytes;
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
        // What is certain to come: something of each page that is dirty by now (a guest that gets
        // no time may have left none), and of the devices.
        let now = pair.source.must("query-migrate", json!({}))?;
        let pages = now["ram"]["remaining"].as_u64().unwrap_or(0) / PAGE;
        let certain =
            (SHORTEST_PAGE * pages).min(4096) + DEVICES[usize::from(accel() == Accel::Kvm)];
        pair.relay
            .plan(At::Forward(before + rng.u64(..certain)), act);
        pair.source
            .must("migrate-continue", json!({ "state": "pre-switchover" }))?;
    } else {
        pair.relay.plan(at, act);
        pair.migrate(0)?;
    }
    pair.relay.wait_fired()?;
    let fired = Instant::now();
    if let Act::Delay(_) = act {
        pair.moved()?;
        return Ok("moved all the same");
    }
    if let At::Forward(0..MAGIC_BYTES) = at {
        return met_nobody(&mut pair);
    }
    judge(&mut pair, phase, fired, rng, &|pair| pair.relay.mend())
}

/// What came was too little to be known for a stream: whoever knocks does not end the waiting.
fn met_nobody(pair: &mut Pair) -> Judged<&'static str> {
    let now = pair.source.wait_for(&["failed", "completed"])?;
    let marks = pair.relay.marks();
    pair.source_ran_on(&now, &marks)?;
    pair.destination.must_stand_empty()?;
    if pair.watch.there_ran() {
        Err("the destination ran".to_owned())
    } else {
        Ok("source ran on, destination waits for a stream")
    }
}

/// What must be so after nothing came through from there on, and when it does again.
pub fn judge(
    pair: &mut Pair,
    phase: Phase,
    fired: Instant,
    rng: &mut Rng,
    mend: &dyn Fn(&Pair),
) -> Judged<&'static str> {
    match phase {
        Phase::Eof | Phase::Description | Phase::Shut => in_the_window(pair, phase, rng, mend),
        _ => {
            let now = pair
                .source
                .wait_for(&["failed", "completed", "x-paguro-in-doubt"])?;
            noticed(fired)?;
            let marks = pair.relay.marks();
            if now["status"] != "failed" {
                return Err(format!("the permission was not sent, and it is {now}"));
            }
            pair.source_ran_on(&now, &marks)?;
            if marks.pong2_in {
                // Whole, it waits; and is told once it can be.
                pair.destination.wait_for(&["x-paguro-in-doubt"])?;
                noticed(fired)?;
                pair.destination.must_stand("inmigrate")?;
                pair.destination.must_advise(&["`cont`"])?;
                mend(pair);
                pair.destination_gave_up()?;
                pair.source_ran_on(&now, &marks)?;
                Ok("source ran on, loaded destination waited, was told and ended")
            } else {
                pair.destination_gave_up()?;
                noticed(fired)?;
                Ok("source ran on, destination ended")
            }
        }
    }
}

/// The silence that was configured, and what a busy host adds.
fn noticed(fired: Instant) -> Judged {
    let limit = Duration::from_millis(3 * SILENCE_MS) + Duration::from_secs(5);
    if fired.elapsed() > limit {
        Err(format!("noticed after {:?} only", fired.elapsed()))
    } else {
        Ok(())
    }
}

/// The permission was sent.
fn in_the_window(
    pair: &mut Pair,
    phase: Phase,
    rng: &mut Rng,
    mend: &dyn Fn(&Pair),
) -> Judged<&'static str> {
    let fired = Instant::now();
    let now = pair
        .source
        .wait_for(&["failed", "completed", "x-paguro-in-doubt"])?;
    noticed(fired)?;
    if now["status"] == "completed" && pair.relay.marks().shut_out {
        moved_by_asking(pair)?;
        return Ok("confirmed before nothing came through any more, moved");
    }
    if now["status"] != "x-paguro-in-doubt" {
        return Err(format!(
            "the permission was sent and not confirmed, and it is {now}"
        ));
    }
    pair.source.must_stand("postmigrate")?;
    pair.source.must_advise(&["migrate_cancel", "`cont`"])?;
    if phase == Phase::Eof {
        pair.destination.wait_for(&["x-paguro-in-doubt"])?;
        noticed(fired)?;
        pair.destination.must_stand("inmigrate")?;
        pair.destination.must_advise(&["`cont`"])?;
    } else {
        pair.destination.wait_for(&["completed"])?;
        pair.destination.must_run()?;
    }
    match rng.u64(..3) {
        0 => {
            // Reached again, the destination learns that it may run, or says that it does.
            mend(pair);
            moved_by_asking(pair)?;
            Ok("doubt resolved by reconnecting, moved")
        }
        1 => {
            pair.source.must("migrate_cancel", json!({}))?;
            pair.source.must_stand("postmigrate")?;
            mend(pair);
            if phase != Phase::Eof {
                // Too late: it runs there.
                moved_by_asking(pair)?;
                return Ok("doubt, `migrate_cancel` too late, moved");
            }
            pair.source.wait_for(&["cancelled"])?;
            pair.destination_gave_up()?;
            pair.source.must_run()?;
            pair.must_have_run_once()?;
            Ok("doubt, `migrate_cancel`, source ran on, destination ended")
        }
        _ => {
            // Taken back, and then after all not: what was asked first may still arrive.
            pair.source.must("migrate_cancel", json!({}))?;
            let state = json!({ "state": "x-paguro-in-doubt" });
            pair.source.must("migrate-continue", state)?;
            mend(pair);
            let ends = ["completed", "failed", "cancelled"];
            if pair.source.wait_for(&ends)?["status"] != "completed" {
                if phase != Phase::Eof {
                    return Err("it took the guest back although that runs elsewhere".to_owned());
                }
                pair.destination_gave_up()?;
                pair.source.must_run()?;
                pair.must_have_run_once()?;
                return Ok("doubt, `migrate_cancel`, `migrate-continue` too late, source ran on");
            }
            moved_by_asking(pair)?;
            Ok("doubt, `migrate_cancel`, `migrate-continue`, moved")
        }
    }
}

/// As [`Pair::moved`], the permission having come by a query.
fn moved_by_asking(pair: &mut Pair) -> Judged {
    pair.source.wait_for(&["completed"])?;
    pair.destination.wait_for(&["completed"])?;
    pair.source.must_stand("postmigrate")?;
    pair.destination.must_run()?;
    pair.must_have_run_once()
}
