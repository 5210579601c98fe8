//! The two machines against a hostile network, crashes, and an operator: all of it.

mod broken;
mod explore;
mod steps;
mod world;

use std::collections::HashSet;

use crate::outcome::{SHUT_ABANDONED, SHUT_CONFIRMED, SHUT_FAILED};
use crate::*;
use broken::{DestinationSabotage, SourceSabotage};
use explore::{Broken, Explored, explore};
use world::{Operator, Setting};

/// Explores, prints how much that was, and demands that all holds.
fn holds(what: &str, setting: Setting) -> Explored {
    let started = std::time::Instant::now();
    let all = match explore(&setting) {
        Ok(all) => all,
        Err(Broken { rule, trace }) => panic!("{what}: {rule}:\n  {}", trace.join("\n  ")),
    };
    println!(
        "{what}: {} states, {} steps, {} ends, {:.1} s",
        all.states,
        all.steps,
        all.ends,
        started.elapsed().as_secs_f64()
    );
    for (outcome, count) in &all.outcomes {
        println!("  {count:6}  {outcome}");
    }
    all
}

/// Demands that a rule is found broken, and that it is this one.
fn breaks(what: &str, setting: Setting, rule: &str) {
    let broken = explore(&setting).expect_err(what);
    println!(
        "{what}: not \"{}\":\n  {}",
        broken.rule,
        broken.trace.join("\n  ")
    );
    assert_eq!(broken.rule, rule, "{what}");
}

#[test]
fn never_both_and_never_none() {
    let all = holds("both ways", Setting::new());
    // What it is all about does happen.
    for outcome in [
        "completed | completed*",
        "failed* | dead",
        "cancelled* | dead",
        "x-paguro-in-doubt | completed*",
        "x-paguro-in-doubt | x-paguro-in-doubt",
        "x-paguro-in-doubt | cancelled",
        "x-paguro-in-doubt | dead",
        "dead | x-paguro-in-doubt",
        "dead | completed*",
        "completed | dead",
    ] {
        assert!(all.outcomes.contains_key(outcome), "no run ends {outcome}");
    }
}

#[test]
fn so_it_is_with_a_pause_before_switchover_and_a_paused_destination() {
    let mut setting = Setting::new();
    setting.asks = 2;
    setting.source.pause_before_switchover = true;
    setting.destination.paused = true;
    holds("pause-before-switchover, --paused", setting);
}

#[test]
fn so_it_is_where_nobody_can_connect_again_or_answer() {
    let mut setting = Setting::new();
    setting.source.reconnects = false;
    holds("fd:", setting);
    setting.source.return_path = false;
    setting.destination.return_path = false;
    holds("one way", setting);
}

#[test]
fn a_careless_operator_can_have_both() {
    let mut setting = Setting::new();
    setting.operator = Operator::Careless;
    breaks("cont on both sides", setting, "never do both run");
}

#[test]
fn towards_a_stock_source_only_a_paused_destination_is_safe() {
    let mut setting = Setting::new();
    setting.stock = true;
    setting.source.reconnects = false;
    setting.source_sabotage = SourceSabotage::Stock;
    breaks("stock source", setting, "never do both run");
    setting.destination.paused = true;
    holds("stock source, --paused", setting);
}

#[test]
fn what_is_broken_on_purpose_at_the_source_is_found() {
    for (sabotage, rule) in [
        (
            SourceSabotage::EofBeforePong,
            "the permission is sent when everything is loaded, and not before",
        ),
        (SourceSabotage::ResumesWithoutShut, "never do both run"),
        (SourceSabotage::PermitsAfterWriting, "never do both run"),
        (SourceSabotage::ResumesOnAsking, "never do both run"),
        (SourceSabotage::ResumesOnUnknown, "never do both run"),
        (
            SourceSabotage::StaysStopped,
            "the source runs on wherever the permission was not sent",
        ),
        (
            SourceSabotage::TellsNobody,
            "a destination that waits is told when the source runs on",
        ),
    ] {
        let mut setting = Setting::new();
        setting.source_sabotage = sabotage;
        breaks(&format!("{sabotage:?}"), setting, rule);
    }
}

#[test]
fn what_is_broken_on_purpose_at_the_destination_is_found() {
    for (sabotage, rule) in [
        (DestinationSabotage::RunsWithoutEof, "never do both run"),
        (
            DestinationSabotage::RunsAfterAbandoning,
            "never do both run",
        ),
        (
            DestinationSabotage::AbandonsWhileRunning,
            "never do both run",
        ),
        (
            DestinationSabotage::ObeysAnybody,
            "no side destroys its copy before the other has confirmed",
        ),
        (
            DestinationSabotage::EndsWhenLoaded,
            "no side destroys its copy before the other has confirmed",
        ),
        (
            DestinationSabotage::PongsBeforeLoading,
            "the permission is sent when everything is loaded, and not before",
        ),
    ] {
        let mut setting = Setting::new();
        setting.destination_sabotage = sabotage;
        breaks(&format!("{sabotage:?}"), setting, rule);
    }
}

const REASONS: [Reason; 4] = [
    Reason::Channel,
    Reason::Silence,
    Reason::Here,
    Reason::OutOfTurn,
];

fn source_events() -> Vec<SourceEvent> {
    use SourceEvent as E;
    let mut all = vec![
        E::Ready,
        E::Converged,
        E::Stopped,
        E::Sent,
        E::EofWritten,
        E::EofTorn,
        E::EofWithheld,
        E::Overdue,
        E::Ended,
        E::NoAnswer,
        E::Retry,
        E::Cancel,
        E::Continue,
        E::Cont,
        E::Quit,
    ];
    all.extend([0, 1, 2, 3, u32::MAX].map(E::Pong));
    all.extend([SHUT_CONFIRMED, SHUT_FAILED, SHUT_ABANDONED, u32::MAX].map(E::Shut));
    all.extend(REASONS.map(E::Failed));
    all.extend(ANSWERS.map(E::Answer));
    all
}

const ANSWERS: [Answer; 4] = [
    Answer::Permitted,
    Answer::Abandoned,
    Answer::CannotRun,
    Answer::Unknown,
];

fn destination_events() -> Vec<DestinationEvent> {
    use DestinationEvent as E;
    let mut all = vec![
        E::Connected,
        E::Loaded { ran: true },
        E::Loaded { ran: false },
        E::Eof,
        E::Forget,
        E::Started,
        E::NotStarted,
        E::LingerOver,
        E::Cont,
        E::Quit,
    ];
    all.extend([1, 2].into_iter().chain(world::id().pings()).map(E::Ping));
    all.extend(REASONS.map(E::Failed));
    for id in [world::id(), world::stranger()] {
        all.extend([Verb::Run, Verb::Forget, Verb::Known].map(|verb| E::Query(Query { id, verb })));
    }
    all
}

/// Every event in every state of a machine that it can come to, whatever it is told; `look` sees
/// each that was taken.
fn everything<M: Clone + Eq + std::hash::Hash, E: Copy, A: Copy>(
    first: M,
    events: &[E],
    on: impl Fn(&mut M, E) -> Result<Actions<A>, Unexpected>,
    look: impl Fn(&M, E, Vec<A>, &M),
) -> usize {
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = vec![first];
    while let Some(from) = queue.pop() {
        for &event in events {
            let mut to = from.clone();
            match on(&mut to, event) {
                Ok(actions) => look(&from, event, actions.into_iter().collect(), &to),
                Err(_) => assert!(to == from, "what is refused changes nothing"),
            }
            if seen.insert(to.clone()) {
                queue.push(to);
            }
        }
    }
    seen.len()
}

fn yes_and_no() -> impl Iterator<Item = (bool, bool)> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter()
}

#[test]
fn only_four_things_bring_back_a_guest_that_was_permitted_to_run_elsewhere() {
    for (return_path, pause_before_switchover) in yes_and_no() {
        let config = SourceConfig {
            return_path,
            reconnects: return_path,
            pause_before_switchover,
        };
        let states = everything(
            Source::new(config),
            &source_events(),
            Source::on,
            |from, event, actions, to| {
                let permitted = matches!(
                    from.state(),
                    SourceState::Permitted { .. }
                        | SourceState::InDoubt { .. }
                        | SourceState::Completed
                );
                let resumes = actions.contains(&SourceAction::ResumeVm);
                let may = matches!(
                    event,
                    SourceEvent::Shut(SHUT_ABANDONED)
                        | SourceEvent::EofWithheld
                        | SourceEvent::Answer(Answer::Abandoned)
                        | SourceEvent::Cont
                );
                assert!(!permitted || !resumes || may, "{from:?} {event:?}");
                let sends = actions.contains(&SourceAction::SendEof);
                assert!(
                    !sends || matches!(to.state(), SourceState::Permitted { .. }),
                    "{from:?} {event:?}"
                );
                let pong = event == SourceEvent::Pong(outcome::PING_LOADED);
                assert!(!sends || !return_path || pong, "{from:?} {event:?}");
            },
        );
        println!("{config:?}: {states} states");
    }
}

/// Nobody confirms there, so that no more than the operator can end the wait.
#[test]
fn whoever_goes_one_way_is_never_held_without_a_way_out() {
    let config = SourceConfig {
        return_path: false,
        reconnects: false,
        pause_before_switchover: true,
    };
    everything(
        Source::new(config),
        &source_events(),
        Source::on,
        |_, event, _, to| {
            let takes = |command| to.clone().on(command).is_ok();
            let free = takes(SourceEvent::Cancel) || takes(SourceEvent::Cont);
            assert!(to.held().is_none() || free, "{event:?}: {to:?}");
            let doubt = to.status() == MigrationStatus::InDoubt;
            let gone = matches!(to.state(), SourceState::Gone { .. });
            assert!(!doubt || gone || takes(SourceEvent::Cont), "{to:?}");
        },
    );
}

#[test]
fn only_a_permission_or_an_operator_starts_a_guest_and_never_one_that_was_abandoned() {
    for (return_path, paused) in yes_and_no() {
        let config = DestinationConfig {
            return_path,
            paused,
        };
        let states = everything(
            Destination::new(config),
            &destination_events(),
            Destination::on,
            |from, event, actions, to| {
                use DestinationState as S;
                let over = |state| matches!(state, S::Abandoned { .. } | S::Gone { .. });
                assert!(
                    !over(from.state()) || over(to.state()),
                    "{from:?} {event:?}"
                );
                let runs = actions.contains(&DestinationAction::RunVm);
                let eof = matches!(from.state(), S::Loading { permitted: true });
                let run = Query {
                    id: world::id(),
                    verb: Verb::Run,
                };
                let may = match event {
                    DestinationEvent::Eof | DestinationEvent::Cont => true,
                    DestinationEvent::Loaded { ran: true } => eof,
                    DestinationEvent::Query(query) => query == run,
                    _ => false,
                };
                assert!(!runs || may && !over(from.state()), "{from:?} {event:?}");
            },
        );
        println!("{config:?}: {states} states");
    }
}

/// Also one that comes while all is still being loaded, from a source that waits for no PONG.
#[test]
fn a_permission_is_not_forgotten() {
    for (return_path, paused) in yes_and_no() {
        let config = DestinationConfig {
            return_path,
            paused,
        };
        everything(
            Destination::new(config),
            &destination_events(),
            Destination::on,
            |from, event, _, to| {
                use DestinationState as S;
                let first = !matches!(from.state(), S::Loading { permitted: true });
                if event != DestinationEvent::Eof || !first {
                    return;
                }
                let mut then = to.clone();
                if matches!(then.state(), S::Loading { .. }) {
                    then.on(DestinationEvent::Loaded { ran: true }).unwrap();
                }
                let may_run = matches!(then.state(), S::Starting { .. } | S::Owner { .. });
                assert!(may_run, "{from:?} then {then:?}");
            },
        );
    }
}
