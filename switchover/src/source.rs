//! The control side of a source.

use crate::actions::{Actions, Unexpected};
use crate::outcome::{Answer, PING_LOADED, SHUT_ABANDONED, SHUT_CONFIRMED, SHUT_FAILED, Verb};
use crate::reason::Reason;

mod words;

pub use words::{Eof, SourceAction, SourceConfig, SourceEvent, SourceState, Telling, Wanted};

/// A source's control side. See the [crate](crate).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    config: SourceConfig,
    pub(crate) state: SourceState,
}

type Step = Result<Actions<SourceAction>, Unexpected>;

impl Source {
    /// A source that begins to connect.
    pub fn new(config: SourceConfig) -> Self {
        Self {
            config,
            state: SourceState::Setup,
        }
    }

    /// Where it is.
    pub fn state(&self) -> SourceState {
        self.state
    }

    /// Whether the destination can be asked once more.
    pub(crate) fn reconnects(&self) -> bool {
        self.config.reconnects
    }

    /// Whether whoever writes EOF has yet to say what became of it.
    pub fn awaits_word_of_eof(&self) -> bool {
        matches!(
            self.state,
            SourceState::Permitted {
                eof: Eof::Writing | Eof::Torn | Eof::Overdue { .. },
            }
        )
    }

    /// Whether the channel has a way back.
    pub(crate) fn returns(&self) -> bool {
        self.config.return_path
    }

    /// Takes an event; says what is to be done, in this order. The state has changed already: what
    /// is asked for meanwhile is answered as if it were done.
    ///
    /// # Errors
    ///
    /// The event changes nothing here.
    pub fn on(&mut self, event: SourceEvent) -> Step {
        use SourceEvent as E;
        match event {
            E::Ready => self.ready(),
            E::Converged => self.converged(),
            E::Stopped => self.stopped(),
            E::Sent => self.sent(),
            E::Pong(value) => self.pong(value),
            E::EofWritten => self.eof_out(true),
            E::EofTorn => self.eof_out(false),
            E::EofWithheld => self.eof_withheld(),
            E::Overdue => self.overdue(),
            E::Shut(code) => self.shut(code),
            E::Failed(why) => self.failed(why),
            E::Ended => self.ended(),
            E::Answer(answer) => self.answer(answer),
            E::NoAnswer => self.no_answer(),
            E::Retry => self.retry(),
            E::Cancel => self.cancel(),
            E::Continue => self.go_on(),
            E::Cont => self.cont(),
            E::Quit => self.quit(),
        }
    }

    fn to(&mut self, state: SourceState, actions: Actions<SourceAction>) -> Step {
        self.state = state;
        Ok(actions)
    }

    fn ready(&mut self) -> Step {
        match self.state {
            SourceState::Setup => self.to(SourceState::Active, Actions::none()),
            _ => late("connected too late"),
        }
    }

    fn converged(&mut self) -> Step {
        match self.state {
            SourceState::Active => self.to(SourceState::Stopping, one(SourceAction::PauseVm)),
            _ => late("converged too late"),
        }
    }

    fn stopped(&mut self) -> Step {
        match self.state {
            SourceState::Stopping if self.config.pause_before_switchover => {
                self.to(SourceState::PreSwitchover, Actions::none())
            }
            SourceState::Stopping => self.to(SourceState::Device, one(SourceAction::SendRest)),
            // Given up while the guest was being stopped.
            SourceState::Ending { .. } | SourceState::Resumed { .. } => {
                Ok(one(SourceAction::ResumeVm))
            }
            _ => late("stopped too late"),
        }
    }

    fn sent(&mut self) -> Step {
        if self.state != SourceState::Device {
            return late("sent too late");
        }
        if !self.config.return_path {
            return self.permit(Actions::none());
        }
        let ping = one(SourceAction::SendPing(PING_LOADED));
        self.to(SourceState::Loading, ping)
    }

    fn pong(&mut self, value: u32) -> Step {
        match self.state {
            SourceState::Loading if value == PING_LOADED => self.permit(Actions::none()),
            _ => late("a PONG that nobody waits for"),
        }
    }

    /// The point of no return: it is passed here, before EOF is given to anybody who could send it.
    pub(crate) fn permit(&mut self, first: Actions<SourceAction>) -> Step {
        let actions = first.and(SourceAction::HoldVm).and(SourceAction::SendEof);
        self.to(SourceState::Permitted { eof: Eof::Writing }, actions)
    }

    fn eof_out(&mut self, whole: bool) -> Step {
        match self.state {
            SourceState::Permitted {
                eof: Eof::Writing | Eof::Overdue { .. },
            } if whole => {
                if self.config.return_path {
                    self.to(
                        SourceState::Permitted { eof: Eof::Written },
                        Actions::none(),
                    )
                } else {
                    self.to(SourceState::Completed, one(SourceAction::CloseChannel))
                }
            }
            SourceState::Permitted {
                eof: Eof::Overdue { wanted },
            } => self.doubt(wanted),
            SourceState::Permitted { .. } => self.doubt(Wanted::Run),
            // The operator ended this side meanwhile: it is told how far it came.
            SourceState::Gone { permitted: true } if whole && !self.config.return_path => {
                self.to(SourceState::Completed, Actions::none())
            }
            _ => late("EOF was written, and it no longer mattered"),
        }
    }

    fn eof_withheld(&mut self) -> Step {
        match self.state {
            SourceState::Permitted {
                eof:
                    Eof::Overdue {
                        wanted: Wanted::Back { why },
                    },
            } => self.run_on(why, self.due(), false),
            SourceState::Permitted { .. } => self.run_on(Reason::Withheld, self.due(), false),
            SourceState::Gone { permitted: true } => {
                self.to(SourceState::Gone { permitted: false }, Actions::none())
            }
            _ => late("EOF was withheld, and it no longer mattered"),
        }
    }

    /// A guest does not stand still for ever for a command or a disk: an operator may decide from here
    /// on, and the word is still believed when it comes.
    fn overdue(&mut self) -> Step {
        match self.state {
            SourceState::Permitted { eof: Eof::Writing } if !self.config.return_path => {
                let wanted = Wanted::Run;
                self.to(Self::overdue_with(wanted), Actions::none())
            }
            _ => late("EOF is waited for no longer"),
        }
    }

    fn overdue_with(wanted: Wanted) -> SourceState {
        SourceState::Permitted {
            eof: Eof::Overdue { wanted },
        }
    }

    fn shut(&mut self, code: u32) -> Step {
        match (self.state, code) {
            (SourceState::Permitted { .. } | SourceState::InDoubt { .. }, SHUT_CONFIRMED) => {
                self.to(SourceState::Completed, one(SourceAction::CloseChannel))
            }
            (SourceState::Permitted { .. } | SourceState::InDoubt { .. }, SHUT_ABANDONED) => {
                self.run_on(Reason::Abandoned, Telling::Needless, false)
            }
            // It failed, but may have run before that: a stock QEMU may.
            (SourceState::Permitted { eof: Eof::Written } | SourceState::InDoubt { .. }, code) => {
                let why = Reason::Peer { code };
                self.doubt(Wanted::Back { why })
            }
            (SourceState::Permitted { .. }, code) => self.failed(Reason::Peer { code }),
            (
                SourceState::Setup
                | SourceState::Active
                | SourceState::Stopping
                | SourceState::PreSwitchover
                | SourceState::Device
                | SourceState::Loading,
                code,
            ) => self.give_up(match code {
                SHUT_CONFIRMED => Reason::OutOfTurn,
                code => Reason::Peer { code },
            }),
            (
                SourceState::Completed
                | SourceState::Ending { .. }
                | SourceState::Resumed { .. }
                | SourceState::Gone { .. },
                _,
            ) => late("a SHUT that nobody waits for"),
        }
    }

    fn failed(&mut self, why: Reason) -> Step {
        match self.state {
            SourceState::Setup
            | SourceState::Active
            | SourceState::Stopping
            | SourceState::PreSwitchover
            | SourceState::Device
            | SourceState::Loading => self.give_up(why),
            // That word may never come.
            SourceState::Permitted { eof: Eof::Writing } if !self.config.return_path => self.to(
                Self::overdue_with(Wanted::Run),
                one(SourceAction::CloseChannel),
            ),
            SourceState::Permitted { eof: Eof::Writing } => self.to(
                SourceState::Permitted { eof: Eof::Torn },
                one(SourceAction::CloseChannel),
            ),
            SourceState::Permitted {
                eof: Eof::Overdue { .. },
            } => self.to(self.state, one(SourceAction::CloseChannel)),
            SourceState::Permitted { eof: Eof::Torn } => late("it failed before"),
            SourceState::Permitted { eof: Eof::Written } => self.doubt(Wanted::Run),
            SourceState::InDoubt { .. }
            | SourceState::Completed
            | SourceState::Ending { .. }
            | SourceState::Resumed { .. }
            | SourceState::Gone { .. } => late("it failed when it no longer mattered"),
        }
    }

    fn ended(&mut self) -> Step {
        let SourceState::Ending { why, telling } = self.state else {
            return late("threads ended");
        };
        self.state = SourceState::Resumed { why, telling };
        match telling {
            Telling::Due => self.tell(),
            _ => Ok(Actions::none()),
        }
    }

    fn answer(&mut self, answer: Answer) -> Step {
        match (self.state, answer) {
            (SourceState::InDoubt { asking: true, .. }, Answer::Permitted) => {
                self.to(SourceState::Completed, one(SourceAction::Acknowledge))
            }
            (
                SourceState::InDoubt {
                    wanted,
                    asking: true,
                },
                Answer::Abandoned,
            ) => self.resume_acknowledged(wanted),
            (SourceState::InDoubt { asking: true, .. }, Answer::CannotRun) => {
                self.doubt(Wanted::Back {
                    why: Reason::Peer { code: SHUT_FAILED },
                })
            }
            (SourceState::InDoubt { asking: true, .. }, Answer::Unknown) => self.no_answer(),
            (
                SourceState::Resumed {
                    why,
                    telling: Telling::Asking,
                },
                answer,
            ) => {
                let (telling, action) = match answer {
                    Answer::Abandoned => (Telling::Told, SourceAction::Acknowledge),
                    Answer::Permitted => (Telling::Contradicted, SourceAction::Acknowledge),
                    Answer::CannotRun | Answer::Unknown => return self.no_answer(),
                };
                self.to(SourceState::Resumed { why, telling }, one(action))
            }
            _ => late("an answer that nobody waits for"),
        }
    }

    fn no_answer(&mut self) -> Step {
        match self.state {
            SourceState::InDoubt {
                wanted,
                asking: true,
            } => self.to(
                SourceState::InDoubt {
                    wanted,
                    asking: false,
                },
                Actions::none(),
            ),
            SourceState::Resumed {
                why,
                telling: Telling::Asking,
            } => self.to(
                SourceState::Resumed {
                    why,
                    telling: Telling::Due,
                },
                Actions::none(),
            ),
            _ => late("no answer, and nobody waits for one"),
        }
    }

    fn retry(&mut self) -> Step {
        match self.state {
            SourceState::InDoubt {
                wanted,
                asking: false,
            } if self.config.reconnects => self.doubt(wanted),
            SourceState::Resumed {
                telling: Telling::Due,
                ..
            } => self.tell(),
            _ => late("there is nothing to try again"),
        }
    }

    fn cancel(&mut self) -> Step {
        match self.state {
            SourceState::Setup
            | SourceState::Active
            | SourceState::Stopping
            | SourceState::PreSwitchover
            | SourceState::Device
            | SourceState::Loading => self.give_up(Reason::Cancelled),
            // Closing it ends the wait: a file then has no name, and what a command has is to be
            // seen.
            SourceState::Permitted {
                eof: Eof::Writing | Eof::Overdue { .. },
            } if !self.config.return_path => self.to(
                Self::overdue_with(Wanted::Back {
                    why: Reason::Cancelled,
                }),
                one(SourceAction::CloseChannel),
            ),
            SourceState::Permitted { .. } => not_now(
                "the destination was just given the permission to run; \
                 its confirmation or a timeout comes first",
            ),
            SourceState::InDoubt { .. } => self.doubt(Wanted::Back {
                why: Reason::Cancelled,
            }),
            SourceState::Ending { .. } => late("it is ending already"),
            SourceState::Completed | SourceState::Resumed { .. } | SourceState::Gone { .. } => {
                late("there is nothing to cancel")
            }
        }
    }

    fn go_on(&mut self) -> Step {
        match self.state {
            SourceState::PreSwitchover => self.to(SourceState::Device, one(SourceAction::SendRest)),
            SourceState::InDoubt { .. } => self.doubt(Wanted::Run),
            _ => not_now("the migration does not wait for migrate-continue"),
        }
    }

    /// The operator takes the decision upon himself.
    fn cont(&mut self) -> Step {
        match self.state {
            SourceState::InDoubt { .. }
            | SourceState::Permitted {
                eof: Eof::Overdue { .. },
            } => self.run_on(Reason::Operator, self.due(), false),
            SourceState::Completed => {
                let telling = Telling::Needless;
                let why = Reason::Operator;
                self.to(
                    SourceState::Resumed { why, telling },
                    one(SourceAction::ResumeVm),
                )
            }
            SourceState::Stopping
            | SourceState::PreSwitchover
            | SourceState::Device
            | SourceState::Loading => {
                not_now("the migration has stopped the guest; cancel it first")
            }
            SourceState::Permitted { .. } => not_now(
                "the destination was just given the permission to run; \
                 its confirmation or a timeout comes first",
            ),
            SourceState::Setup
            | SourceState::Active
            | SourceState::Ending { .. }
            | SourceState::Resumed { .. }
            | SourceState::Gone { .. } => late("the migration does not hold the guest"),
        }
    }

    fn quit(&mut self) -> Step {
        let open = !matches!(
            self.state,
            SourceState::InDoubt { .. } | SourceState::Completed | SourceState::Resumed { .. }
        );
        let actions = Actions::none()
            .and_if(open, SourceAction::CloseChannel)
            .and(SourceAction::End);
        let state = match self.state {
            // It has ended, and stays what it is.
            SourceState::Completed => SourceState::Completed,
            SourceState::Permitted { .. } | SourceState::InDoubt { .. } => {
                SourceState::Gone { permitted: true }
            }
            SourceState::Gone { permitted } => SourceState::Gone { permitted },
            _ => SourceState::Gone { permitted: false },
        };
        self.to(state, actions)
    }

    /// Ends a migration whose permission was not sent.
    fn give_up(&mut self, why: Reason) -> Step {
        match self.state {
            SourceState::PreSwitchover | SourceState::Device => {
                self.run_on(why, Telling::Needless, false)
            }
            SourceState::Loading => self.run_on(why, self.due(), true),
            _ => {
                let telling = Telling::Needless;
                self.to(
                    SourceState::Ending { why, telling },
                    one(SourceAction::CloseChannel),
                )
            }
        }
    }

    /// The guest, which is stopped, runs on: the destination cannot run, or the operator knows.
    pub(crate) fn run_on(&mut self, why: Reason, telling: Telling, in_stream: bool) -> Step {
        let actions = one(SourceAction::ResumeVm)
            .and_if(in_stream, SourceAction::SendForget)
            .and(SourceAction::CloseChannel);
        self.to(SourceState::Ending { why, telling }, actions)
    }

    pub(crate) fn resume_acknowledged(&mut self, wanted: Wanted) -> Step {
        let why = match wanted {
            Wanted::Back { why } => why,
            Wanted::Run => Reason::Abandoned,
        };
        let telling = Telling::Told;
        let actions = one(SourceAction::ResumeVm).and(SourceAction::Acknowledge);
        self.to(SourceState::Ending { why, telling }, actions)
    }

    /// Everything is kept, and the destination is asked.
    fn doubt(&mut self, wanted: Wanted) -> Step {
        let first = matches!(self.state, SourceState::Permitted { .. });
        let asking = self.config.reconnects;
        let actions = Actions::none()
            .and_if(first, SourceAction::CloseChannel)
            .and_if(asking, SourceAction::Ask(wanted.verb()));
        self.to(SourceState::InDoubt { wanted, asking }, actions)
    }

    /// Whether a destination that may be loaded can be told.
    fn due(&self) -> Telling {
        if self.config.reconnects {
            Telling::Due
        } else {
            Telling::Needless
        }
    }

    fn tell(&mut self) -> Step {
        let SourceState::Resumed { why, .. } = self.state else {
            return late("there is nothing to tell");
        };
        let telling = Telling::Asking;
        self.to(
            SourceState::Resumed { why, telling },
            one(SourceAction::Ask(Verb::Forget)),
        )
    }
}

fn one(action: SourceAction) -> Actions<SourceAction> {
    Actions::none().and(action)
}

fn late(what: &'static str) -> Step {
    Err(Unexpected::Late(what))
}

fn not_now(why: &'static str) -> Step {
    Err(Unexpected::NotNow(why))
}
