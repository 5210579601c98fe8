//! The control side of a destination.

use crate::actions::{Actions, Unexpected};
use crate::outcome::{
    Answer, IdFinder, MigrationId, PING_LOADED, Query, SHUT_ABANDONED, SHUT_CONFIRMED, SHUT_FAILED,
    Verb,
};
use crate::reason::Reason;

mod words;

pub use words::{DestinationAction, DestinationConfig, DestinationEvent, DestinationState};

/// A destination's control side. See the [crate](crate).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    config: DestinationConfig,
    pub(crate) state: DestinationState,
    /// The channel is there, as far as is known.
    channel: bool,
    /// The guest ran at the source.
    ran: bool,
    finder: IdFinder,
    id: Option<MigrationId>,
}

type Step = Result<Actions<DestinationAction>, Unexpected>;

impl Destination {
    /// A destination that listens.
    pub fn new(config: DestinationConfig) -> Self {
        Self {
            config,
            state: DestinationState::Listening,
            channel: false,
            ran: true,
            finder: IdFinder::default(),
            id: None,
        }
    }

    /// Where it is.
    pub fn state(&self) -> DestinationState {
        self.state
    }

    /// The migration's id, if the source sent one. A stock QEMU does not: it never asks for the
    /// outcome, and nobody need listen for it.
    pub fn id(&self) -> Option<MigrationId> {
        self.id
    }

    /// Takes an event; says what is to be done, in this order. The state has changed already: what
    /// is asked for meanwhile is answered as if it were done.
    ///
    /// # Errors
    ///
    /// The event changes nothing here.
    pub fn on(&mut self, event: DestinationEvent) -> Step {
        use DestinationEvent as E;
        match event {
            E::Connected => self.connected(),
            E::Ping(value) => self.ping(value),
            E::Loaded { ran } => self.loaded(ran),
            E::Eof => self.eof(),
            E::Forget => self.forget(),
            E::Failed(why) => self.failed(why),
            E::Started => self.started(),
            E::NotStarted => self.not_started(),
            E::Query(query) => self.query(query),
            E::LingerOver => self.linger_over(),
            E::Cont => self.cont(),
            E::Quit => self.quit(),
        }
    }

    fn to(&mut self, state: DestinationState, actions: Actions<DestinationAction>) -> Step {
        self.state = state;
        Ok(actions)
    }

    fn connected(&mut self) -> Step {
        match self.state {
            DestinationState::Listening => {
                self.channel = true;
                self.to(DestinationState::Active, Actions::none())
            }
            _ => late("a second source"),
        }
    }

    fn ping(&mut self, value: u32) -> Step {
        match self.state {
            DestinationState::Active if value == PING_LOADED => self.to(
                DestinationState::Loading { permitted: false },
                one(DestinationAction::LoadDevices),
            ),
            DestinationState::Active => {
                if let Some(id) = self.finder.take(value) {
                    self.id = Some(id);
                }
                Ok(self.back(DestinationAction::SendPong(value)))
            }
            DestinationState::Loaded => Ok(self.back(DestinationAction::SendPong(value))),
            _ => late("a PING that came too late"),
        }
    }

    fn loaded(&mut self, ran: bool) -> Step {
        let DestinationState::Loading { permitted } = self.state else {
            return late("loaded too late");
        };
        self.ran = ran;
        // A stock QEMU runs on when its channel is lost before SHUT, whatever it has permitted.
        if permitted && (self.channel || !self.config.return_path || self.id.is_some()) {
            return self.permitted(false);
        }
        if self.channel {
            self.to(
                DestinationState::Loaded,
                self.back(DestinationAction::SendPong(PING_LOADED)),
            )
        } else {
            self.wait()
        }
    }

    fn eof(&mut self) -> Step {
        match self.state {
            DestinationState::Active => self.to(
                DestinationState::Loading { permitted: true },
                one(DestinationAction::LoadDevices),
            ),
            DestinationState::Loading { .. } => self.to(
                DestinationState::Loading { permitted: true },
                Actions::none(),
            ),
            DestinationState::Loaded => self.permitted(false),
            DestinationState::Abandoned { .. } => late("EOF, after the source took it back"),
            DestinationState::Listening
            | DestinationState::Waiting { .. }
            | DestinationState::Starting { .. }
            | DestinationState::Owner { .. }
            | DestinationState::Gone { .. } => late("EOF, when it no longer mattered"),
        }
    }

    fn forget(&mut self) -> Step {
        match self.state {
            DestinationState::Active
            | DestinationState::Loading { permitted: false }
            | DestinationState::Loaded => self.end(Reason::TakenBack, None),
            _ => late("told to forget it when it no longer could"),
        }
    }

    fn failed(&mut self, why: Reason) -> Step {
        let lost = why != Reason::Here;
        match self.state {
            DestinationState::Listening | DestinationState::Active => {
                self.end(why, Some(SHUT_ABANDONED))
            }
            DestinationState::Loading { permitted: true } if lost => {
                self.channel = false;
                Ok(one(DestinationAction::CloseChannel))
            }
            // The PONG did not go out, so that the permission cannot be on its way.
            DestinationState::Loading { .. } => self.end(why, Some(SHUT_ABANDONED)),
            DestinationState::Loaded => self.wait(),
            DestinationState::Starting { .. } => {
                self.channel = false;
                Ok(one(DestinationAction::CloseChannel))
            }
            DestinationState::Waiting { .. }
            | DestinationState::Owner { .. }
            | DestinationState::Abandoned { .. }
            | DestinationState::Gone { .. } => late("it failed when it no longer mattered"),
        }
    }

    /// The right to run is here: it is used, or kept for the operator's `cont`.
    pub(crate) fn permitted(&mut self, asked: bool) -> Step {
        if self.ran && !self.config.paused {
            let state = DestinationState::Starting { asked };
            return self.to(state, one(DestinationAction::RunVm));
        }
        let actions = self
            .shut(SHUT_CONFIRMED)
            .and_if(asked, DestinationAction::Answer(Answer::Permitted));
        self.to(DestinationState::Owner { started: false }, actions)
    }

    fn started(&mut self) -> Step {
        match self.state {
            DestinationState::Starting { asked } => {
                let actions = self
                    .shut(SHUT_CONFIRMED)
                    .and_if(asked, DestinationAction::Answer(Answer::Permitted));
                self.to(DestinationState::Owner { started: true }, actions)
            }
            _ => late("started"),
        }
    }

    /// It did not start: nothing is lost by that, so nothing is given up.
    fn not_started(&mut self) -> Step {
        match self.state {
            DestinationState::Starting { asked } => {
                let actions = self
                    .shut(SHUT_FAILED)
                    .and_if(asked, DestinationAction::Answer(Answer::CannotRun));
                self.to(DestinationState::Waiting { stuck: true }, actions)
            }
            DestinationState::Owner { .. } => {
                self.to(DestinationState::Owner { started: false }, Actions::none())
            }
            _ => late("not started"),
        }
    }

    fn query(&mut self, query: Query) -> Step {
        if Some(query.id) != self.id {
            return match query.verb {
                Verb::Known => late("another migration's source has its answer"),
                Verb::Run | Verb::Forget => Ok(one(DestinationAction::Refuse)),
            };
        }
        match query.verb {
            Verb::Run => self.told_to_run(),
            Verb::Forget => self.told_to_forget(),
            Verb::Known => self.linger_over(),
        }
    }

    fn told_to_run(&mut self) -> Step {
        let answer = match self.state {
            DestinationState::Loaded => {
                self.channel = false;
                return Ok(prepend(
                    DestinationAction::CloseChannel,
                    self.permitted(true)?,
                ));
            }
            DestinationState::Waiting { stuck: false } => return self.permitted(true),
            DestinationState::Waiting { stuck: true } => Answer::CannotRun,
            DestinationState::Starting { .. } => {
                return self.to(DestinationState::Starting { asked: true }, Actions::none());
            }
            DestinationState::Owner { .. } => Answer::Permitted,
            DestinationState::Abandoned { .. } => Answer::Abandoned,
            DestinationState::Listening
            | DestinationState::Active
            | DestinationState::Loading { .. }
            | DestinationState::Gone { .. } => Answer::Unknown,
        };
        Ok(one(DestinationAction::Answer(answer)))
    }

    fn told_to_forget(&mut self) -> Step {
        let answer = match self.state {
            DestinationState::Active
            | DestinationState::Loading { permitted: false }
            | DestinationState::Loaded
            | DestinationState::Waiting { .. } => {
                let actions = Actions::none()
                    .and_if(self.channel, DestinationAction::CloseChannel)
                    .and(DestinationAction::Answer(Answer::Abandoned));
                self.channel = false;
                let why = Reason::TakenBack;
                return self.to(DestinationState::Abandoned { why }, actions);
            }
            DestinationState::Starting { .. } => {
                return self.to(DestinationState::Starting { asked: true }, Actions::none());
            }
            DestinationState::Owner { .. } => Answer::Permitted,
            DestinationState::Abandoned { .. } => Answer::Abandoned,
            DestinationState::Loading { permitted: true }
            | DestinationState::Listening
            | DestinationState::Gone { .. } => Answer::Unknown,
        };
        Ok(one(DestinationAction::Answer(answer)))
    }

    fn linger_over(&mut self) -> Step {
        match self.state {
            DestinationState::Abandoned { why } => {
                self.to(DestinationState::Gone { why }, one(DestinationAction::End))
            }
            DestinationState::Owner { .. } => Ok(one(DestinationAction::StopListening)),
            _ => late("the source's answer is still to come"),
        }
    }

    fn cont(&mut self) -> Step {
        match self.state {
            // As QEMU's: what comes in is to run when it is there.
            DestinationState::Listening
            | DestinationState::Active
            | DestinationState::Loading { .. }
            | DestinationState::Loaded => {
                self.config.paused = false;
                Ok(Actions::none())
            }
            // The operator takes the decision upon himself.
            DestinationState::Waiting { .. } => self.to(
                DestinationState::Starting { asked: false },
                one(DestinationAction::RunVm),
            ),
            DestinationState::Owner { started: false } => self.to(
                DestinationState::Owner { started: true },
                one(DestinationAction::RunVm),
            ),
            DestinationState::Starting { .. } | DestinationState::Owner { started: true } => {
                late("it was started already")
            }
            DestinationState::Abandoned { .. } => {
                not_now("the source took the machine back; this copy will never run")
            }
            DestinationState::Gone { .. } => not_now("the process is ending"),
        }
    }

    fn quit(&mut self) -> Step {
        let shut = match self.state {
            DestinationState::Active
            | DestinationState::Loading { .. }
            | DestinationState::Loaded => Some(SHUT_ABANDONED),
            DestinationState::Listening
            | DestinationState::Waiting { .. }
            | DestinationState::Starting { .. }
            | DestinationState::Owner { .. }
            | DestinationState::Abandoned { .. }
            | DestinationState::Gone { .. } => None,
        };
        self.end(Reason::Quit, shut)
    }

    /// Everything is kept until somebody decides.
    fn wait(&mut self) -> Step {
        let actions = Actions::none().and_if(self.channel, DestinationAction::CloseChannel);
        self.channel = false;
        self.to(DestinationState::Waiting { stuck: false }, actions)
    }

    /// The process ends; the source, if the channel is there, may know why.
    pub(crate) fn end(&mut self, why: Reason, shut: Option<u32>) -> Step {
        let actions = match shut {
            Some(code) => self.shut(code),
            None => Actions::none().and_if(self.channel, DestinationAction::CloseChannel),
        };
        self.channel = false;
        self.to(
            DestinationState::Gone { why },
            actions.and(DestinationAction::End),
        )
    }

    /// The last word over the return path.
    fn shut(&mut self, code: u32) -> Actions<DestinationAction> {
        let channel = std::mem::take(&mut self.channel);
        self.back_if(channel, DestinationAction::SendShut(code))
            .and_if(channel, DestinationAction::CloseChannel)
    }

    fn back(&self, action: DestinationAction) -> Actions<DestinationAction> {
        self.back_if(self.channel, action)
    }

    fn back_if(&self, channel: bool, action: DestinationAction) -> Actions<DestinationAction> {
        Actions::none().and_if(channel && self.config.return_path, action)
    }
}

fn one(action: DestinationAction) -> Actions<DestinationAction> {
    Actions::none().and(action)
}

fn prepend(
    first: DestinationAction,
    then: Actions<DestinationAction>,
) -> Actions<DestinationAction> {
    then.into_iter()
        .fold(one(first), |actions, action| actions.and(action))
}

fn late(what: &'static str) -> Step {
    Err(Unexpected::Late(what))
}

fn not_now(why: &'static str) -> Step {
    Err(Unexpected::NotNow(why))
}
