//! The machines with one thing broken on purpose, for the model to find.
//!
//! They stand around the real ones, which know nothing of it: an event goes in, or is answered wrongly;
//! what comes out is changed.

use std::ops::Deref;

use crate::actions::{Actions, Unexpected};
use crate::destination::Destination;
use crate::outcome::{PING_LOADED, SHUT_ABANDONED};
use crate::source::Source;
use crate::*;

/// What is broken in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceSabotage {
    /// Nothing.
    None,
    /// EOF goes out before the PONG came.
    EofBeforePong,
    /// The guest runs on if SHUT is lost.
    ResumesWithoutShut,
    /// Both, as a stock QEMU does.
    Stock,
    /// The permission counts as sent only when all of EOF was written.
    PermitsAfterWriting,
    /// The guest runs on when the destination was told to forget it, before it said that it did.
    ResumesOnAsking,
    /// A destination that knows nothing counts as one that will never run.
    ResumesOnUnknown,
    /// The guest stays stopped where it should run on.
    StaysStopped,
    /// Does not tell a loaded destination that the guest ran on.
    TellsNobody,
}

/// What is broken in a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationSabotage {
    /// Nothing.
    None,
    /// A loaded destination runs when the channel is lost.
    RunsWithoutEof,
    /// A destination that has abandoned its copy runs when it is permitted to.
    RunsAfterAbandoning,
    /// A loaded destination ends when the channel is lost.
    EndsWhenLoaded,
    /// A destination that runs says that it has abandoned its copy.
    AbandonsWhileRunning,
    /// It obeys the source of another migration.
    ObeysAnybody,
    /// It says that all is loaded before it is.
    PongsBeforeLoading,
}

/// A source, right or broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NearMachine {
    machine: Source,
    sabotage: SourceSabotage,
}

impl Deref for NearMachine {
    type Target = Source;

    fn deref(&self) -> &Source {
        &self.machine
    }
}

impl NearMachine {
    pub fn new(config: SourceConfig, sabotage: SourceSabotage) -> Self {
        let machine = Source::new(config);
        Self { machine, sabotage }
    }

    pub fn on(&mut self, event: SourceEvent) -> Result<Actions<SourceAction>, Unexpected> {
        use SourceSabotage as S;
        use SourceState as At;
        let machine = &mut self.machine;
        let before = machine.state;
        // Answered wrongly.
        match (self.sabotage, before, event) {
            (S::EofBeforePong, At::Device, SourceEvent::Sent) if machine.returns() => {
                return machine.permit(Actions::none().and(SourceAction::SendPing(PING_LOADED)));
            }
            (S::Stock, At::Device, SourceEvent::Sent) if machine.returns() => {
                return machine.permit(Actions::none());
            }
            (S::ResumesWithoutShut | S::Stock, At::Permitted { .. }, SourceEvent::Failed(why)) => {
                return machine.run_on(why, Telling::Needless, false);
            }
            (S::Stock, At::Permitted { eof }, SourceEvent::EofWritten | SourceEvent::EofTorn) => {
                let is_awaited = matches!(eof, Eof::Writing | Eof::Overdue { .. });
                if event == SourceEvent::EofTorn || !is_awaited {
                    return machine.run_on(Reason::Channel, Telling::Needless, false);
                }
            }
            (
                S::PermitsAfterWriting,
                At::Loading,
                SourceEvent::EofWritten | SourceEvent::EofTorn,
            ) => {
                machine.state = At::Permitted { eof: Eof::Written };
                return Ok(Actions::none());
            }
            (
                S::ResumesOnUnknown,
                At::InDoubt {
                    wanted,
                    asking: true,
                },
                SourceEvent::Answer(Answer::Unknown),
            ) => return machine.resume_acknowledged(wanted),
            _ => {}
        }
        let actions = machine.on(event)?;
        // What comes of it is changed.
        let permits = matches!(machine.state, At::Permitted { eof: Eof::Writing });
        match (self.sabotage, machine.state) {
            (S::PermitsAfterWriting, _) if permits && before != machine.state => {
                machine.state = before;
            }
            (
                S::ResumesOnAsking,
                At::InDoubt {
                    wanted: Wanted::Back { .. },
                    ..
                },
            ) => {
                machine.state = before;
                return machine.run_on(Reason::Cancelled, Telling::Due, false);
            }
            (
                S::TellsNobody,
                At::Ending {
                    why,
                    telling: Telling::Due,
                },
            ) => {
                let telling = Telling::Needless;
                machine.state = At::Ending { why, telling };
            }
            (S::StaysStopped, At::Ending { .. }) => {
                let mut all = actions.into_iter();
                if all.any(|action| action == SourceAction::CloseChannel) {
                    return Ok(without(actions, SourceAction::ResumeVm));
                }
            }
            _ => {}
        }
        Ok(actions)
    }
}

/// A destination, right or broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FarMachine {
    machine: Destination,
    sabotage: DestinationSabotage,
}

impl Deref for FarMachine {
    type Target = Destination;

    fn deref(&self) -> &Destination {
        &self.machine
    }
}

impl FarMachine {
    pub fn new(config: DestinationConfig, sabotage: DestinationSabotage) -> Self {
        let machine = Destination::new(config);
        Self { machine, sabotage }
    }

    pub fn on(
        &mut self,
        event: DestinationEvent,
    ) -> Result<Actions<DestinationAction>, Unexpected> {
        use DestinationSabotage as S;
        use DestinationState as At;
        let machine = &mut self.machine;
        let knows = |query: &Query| Some(query.id) == machine.id();
        match (self.sabotage, machine.state, event) {
            (S::PongsBeforeLoading, At::Active, DestinationEvent::Ping(PING_LOADED)) => {
                let first = Actions::none().and(DestinationAction::SendPong(PING_LOADED));
                Ok(machine.on(event)?.into_iter().fold(first, Actions::and))
            }
            (S::RunsAfterAbandoning, At::Abandoned { .. }, DestinationEvent::Eof) => {
                machine.permitted(false)
            }
            (S::RunsAfterAbandoning, At::Abandoned { .. }, DestinationEvent::Query(query))
                if query.verb == Verb::Run && knows(&query) =>
            {
                machine.permitted(true)
            }
            (S::RunsWithoutEof, At::Loaded, DestinationEvent::Failed(_)) => {
                machine.permitted(false)
            }
            (S::EndsWhenLoaded, At::Loaded, DestinationEvent::Failed(why)) => {
                machine.end(why, Some(SHUT_ABANDONED))
            }
            (S::AbandonsWhileRunning, At::Owner { .. }, DestinationEvent::Query(query))
                if query.verb == Verb::Forget && knows(&query) =>
            {
                Ok(Actions::none().and(DestinationAction::Answer(Answer::Abandoned)))
            }
            (S::ObeysAnybody, _, DestinationEvent::Query(query)) => {
                let id = machine.id().unwrap_or(query.id);
                machine.on(DestinationEvent::Query(Query { id, ..query }))
            }
            _ => machine.on(event),
        }
    }
}

fn without(actions: Actions<SourceAction>, gone: SourceAction) -> Actions<SourceAction> {
    let left = actions.into_iter().filter(|action| *action != gone);
    left.fold(Actions::none(), Actions::and)
}
