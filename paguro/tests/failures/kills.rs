//! `kill -9` of either side, at random moments and in the window between permission and
//! confirmation.

use std::time::Duration;

use fastrand::Rng;
use paguro_testkit::wait;

use crate::pair::{Pair, Tally, Verdict, turn};
use crate::relay::{Act, At};
use crate::rng::seeded;

/// A migration takes about that long here, with [`BANDWIDTH`].
const TAKES_MS: u64 = 700;
const BANDWIDTH: u64 = 32 << 20;

/// Where a side is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So long after `migrate`.
    After(Duration),
    /// While the relay holds that.
    Held(At),
}

#[test]
fn whoever_is_killed_the_guest_never_runs_twice() {
    let mut rng = seeded("kills");
    let mut tally = Tally::default();
    let count = crate::kills();
    // Of fifty, 26 at random moments, 4 each before PING 2 and before PONG 2, and 16 in the window.
    let order = [
        At::Eof(0),
        At::Shut(0),
        At::Shut(0),
        At::Eof(0),
        At::Ping2(0),
        At::Pong2(0),
    ];
    for trial in 0..count {
        let _turn = turn();
        let source = trial % 2 == 0;
        let moment = match trial % 25 {
            held @ 0..12 if held % 2 == 0 || count > 12 => {
                let at = match trial % 50 / 25 {
                    // Source and destination change places.
                    0 => order[held / 2],
                    _ => order[(11 - held) / 2],
                };
                Moment::Held(at)
            }
            _ => Moment::After(Duration::from_micros(rng.u64(..1000 * TAKES_MS))),
        };
        let what = format!(
            "{} killed, {moment:?}",
            if source { "source" } else { "destination" }
        );
        let verdict = kill(source, moment, &mut rng);
        let who = if source { "source" } else { "destination" };
        let place = match moment {
            Moment::After(_) => "at a random moment",
            Moment::Held(At::Ping2(_)) => "before PING 2",
            Moment::Held(At::Pong2(_)) => "before PONG 2",
            Moment::Held(At::Eof(_)) => "permission sent, not received",
            Moment::Held(_) => "permission received, confirmation not",
        };
        tally.add(
            &what,
            verdict.map(|verdict| format!("{who} killed {place}: {verdict}")),
        );
    }
    tally.end("kills");
}

fn kill(source: bool, moment: Moment, rng: &mut Rng) -> Verdict {
    let rate = if rng.bool() { "unlimited" } else { "10000" };
    let mut pair = Pair::new(rate);
    if let Moment::Held(at) = moment {
        pair.relay.plan(at, Act::Hold);
    }
    let bandwidth = match moment {
        Moment::After(_) => BANDWIDTH,
        Moment::Held(_) => 0,
    };
    pair.migrate(bandwidth)?;
    match moment {
        // The moment is what is drawn, here and below.
        Moment::After(time) => std::thread::sleep(time),
        Moment::Held(_) => {
            pair.relay.wait_fired()?;
            std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        }
    }
    // Both stand now, whatever they do later.
    if source {
        pair.source.kill()
    } else {
        pair.destination.kill()
    }
    // What was sent may still arrive after its sender died, or not.
    pair.relay
        .release(if rng.bool() { Act::Hold } else { Act::Cut });
    if source {
        source_killed(&mut pair)
    } else {
        destination_killed(&mut pair, rng)
    }
}

fn destination_killed(pair: &mut Pair, rng: &mut Rng) -> Verdict {
    let now = pair
        .source
        .wait_for(&["failed", "completed", "x-paguro-in-doubt"])?;
    let marks = pair.relay.marks();
    match now["status"].as_str() {
        Some("failed") => pair.source_ran_on(&now, &marks),
        Some("completed") => {
            if !marks.shut_out {
                return Err(format!("completed without a confirmation: {marks:?}"));
            }
            pair.source_is_done(&marks)?;
            // The guest died with its new process; an operator may have the old state back.
            pair.there_is_dead()?;
            pair.source.must("cont", serde_json::json!({}))?;
            pair.source.must_run()?;
            Ok("after confirmation, source whole and done")
        }
        _ => pair.doubt_at_source(rng),
    }
}

fn source_killed(pair: &mut Pair) -> Verdict {
    // Before it had connected nothing happens to the destination.
    let before = pair.relay.marks();
    let told = wait(|| {
        if pair.destination.ended().is_some() {
            return Some(gave_up(pair));
        }
        // Asked while it ends it does not answer.
        let now = pair.destination.migration().ok()?;
        let marks = pair.relay.marks();
        match now["status"].as_str() {
            Some("completed") => {
                let runs = pair.destination_runs(&marks);
                Some(runs.map(|()| "permission received, destination runs"))
            }
            Some("x-paguro-in-doubt") => Some(pair.doubt_at_destination(&marks)),
            Some("setup" | "none") if before.forward_bytes == 0 => {
                // What was sent may still come; that nothing does cannot be waited for.
                std::thread::sleep(Duration::from_millis(50));
                let nothing_came = pair.relay.marks().forward_bytes == 0;
                let empty = |()| "before it connected, destination waits on";
                nothing_came.then(|| pair.destination.must_stand_empty().map(empty))
            }
            _ => None,
        }
    });
    told.unwrap_or_else(|| Err("the destination comes to no end".to_owned()))
}

fn gave_up(pair: &mut Pair) -> Verdict {
    pair.destination_gave_up()?;
    let marks = pair.relay.marks();
    if marks.pong2_in || marks.eof_out {
        Err(format!("it gave a whole guest up: {marks:?}"))
    } else {
        Ok("before permission, destination ended")
    }
}
