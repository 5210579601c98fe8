//! Two sides, a network between them, and an operator.
//!
//! What the machines cannot see is here: the guests themselves, the processes, the bytes that are
//! under way. An action that takes time (stopping, loading, starting, writing EOF) is done by a
//! later step, so that anything may happen before it; all others are done at once, because a crash
//! or a loss between two of them is the same as one after both with what was sent lost.

use super::broken::{DestinationSabotage, FarMachine, NearMachine, SourceSabotage};
use crate::*;

/// What is being modelled.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub source: SourceConfig,
    pub destination: DestinationConfig,
    pub source_sabotage: SourceSabotage,
    pub destination_sabotage: DestinationSabotage,
    pub operator: Operator,
    /// A source that sends no id and never asks.
    pub stock: bool,
    /// Connections of their own that a source tries.
    pub asks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Says `cont` on one side only when he knows that the other does not run and cannot start by
    /// itself.
    Careful,
    /// Says `cont` wherever it is taken.
    Careless,
}

impl Setting {
    pub fn new() -> Self {
        Self {
            source: SourceConfig {
                return_path: true,
                reconnects: true,
                pause_before_switchover: false,
            },
            destination: DestinationConfig {
                return_path: true,
                paused: false,
            },
            source_sabotage: SourceSabotage::None,
            destination_sabotage: DestinationSabotage::None,
            operator: Operator::Careful,
            stock: false,
            asks: 3,
        }
    }
}

/// Bytes on the way to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forth {
    Start,
    Ping(u32),
    Eof,
    Forget,
}

/// Bytes on the way to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Back {
    Pong(u32),
    Shut(u32),
}

/// One end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    Open,
    /// Open, and its owner knows that the other end is lost.
    Lost,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Near {
    pub machine: NearMachine,
    /// The process is there.
    pub alive: bool,
    pub running: bool,
    pub end: End,
    pub todo: Vec<SourceEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Far {
    pub machine: FarMachine,
    pub alive: bool,
    /// A vCPU may execute an instruction.
    pub running: bool,
    /// The guest is here, whole.
    pub whole: bool,
    pub end: End,
    pub todo: Vec<DestinationEvent>,
}

/// A query under way. Those of earlier tries may arrive, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flying {
    pub verb: Verb,
    /// Its answer will be heard.
    pub heard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub near: Near,
    pub far: Far,
    /// The channel is cut: what is written is lost.
    pub cut: bool,
    pub forth: Vec<Forth>,
    pub back: Vec<Back>,
    pub flying: Vec<Flying>,
    /// The destination's answer will be heard when it comes.
    pub heard: bool,
    /// The answer, under way.
    pub answer: Option<Answer>,
    pub asks: u8,
    /// The operator cancelled.
    pub cancelled: bool,
    /// The operator said `migrate-continue` in doubt.
    pub continued: bool,
    /// Another migration's source has spoken.
    pub stranger: bool,
    pub history: History,
}

/// What was, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// A byte of EOF left the source.
    pub permitted: bool,
    /// The source told the destination to forget it.
    pub forgot: bool,
    /// The destination was whole once.
    pub loaded: bool,
    /// The destination ended or gave up a whole copy of its own accord, unasked.
    pub destroyed: bool,
    /// The operator ended the source, or the destination.
    pub quit: [bool; 2],
}

pub fn id() -> MigrationId {
    MigrationId::new([7; 16])
}

pub fn stranger() -> MigrationId {
    MigrationId::new([9; 16])
}

impl World {
    pub fn new(setting: &Setting) -> Self {
        Self {
            near: Near {
                machine: NearMachine::new(setting.source, setting.source_sabotage),
                alive: true,
                running: true,
                end: End::Open,
                todo: Vec::new(),
            },
            far: Far {
                machine: FarMachine::new(setting.destination, setting.destination_sabotage),
                alive: true,
                running: false,
                whole: false,
                end: End::Open,
                todo: Vec::new(),
            },
            cut: false,
            forth: Vec::new(),
            back: Vec::new(),
            flying: Vec::new(),
            heard: false,
            answer: None,
            asks: setting.asks,
            cancelled: false,
            continued: false,
            stranger: false,
            history: History::default(),
        }
    }

    /// The source's guest runs.
    pub fn runs_here(&self) -> bool {
        self.near.alive && self.near.running
    }

    /// The destination's guest may run.
    pub fn runs_there(&self) -> bool {
        self.far.alive && self.far.running
    }

    /// Hands an event to the source, and does what it asks for.
    pub fn hand_source(&mut self, event: SourceEvent) {
        let ending = |w: &Self| matches!(w.near.machine.state(), SourceState::Ending { .. });
        let was = ending(self);
        let Ok(actions) = self.near.machine.on(event) else {
            return;
        };
        for action in actions {
            self.do_at_source(action);
        }
        if ending(self) && !was {
            self.near.todo.push(SourceEvent::Ended);
        }
    }

    fn do_at_source(&mut self, action: SourceAction) {
        match action {
            SourceAction::PauseVm => self.near.todo.push(SourceEvent::Stopped),
            SourceAction::SendRest => self.near.todo.push(SourceEvent::Sent),
            SourceAction::SendPing(value) => self.send(Forth::Ping(value)),
            SourceAction::HoldVm => {}
            SourceAction::SendEof => self.near.todo.push(SourceEvent::EofWritten),
            SourceAction::SendForget => {
                self.history.forgot = true;
                self.send(Forth::Forget);
            }
            SourceAction::CloseChannel => self.near.end = End::Closed,
            SourceAction::ResumeVm => self.near.running = true,
            SourceAction::Ask(verb) => self.ask(verb),
            SourceAction::Acknowledge => {
                self.flying.push(Flying {
                    verb: Verb::Known,
                    heard: false,
                });
                self.flying.sort();
            }
            SourceAction::End => self.crash_source(),
        }
    }

    fn ask(&mut self, verb: Verb) {
        self.history.forgot |= verb == Verb::Forget;
        for old in &mut self.flying {
            old.heard = false;
        }
        self.heard = false;
        self.answer = None;
        // With none left, the network is out of order: a step says that there was no answer.
        if let Some(left) = self.asks.checked_sub(1) {
            self.asks = left;
            self.flying.push(Flying { verb, heard: true });
            self.flying.sort();
        }
    }

    pub fn send(&mut self, bytes: Forth) {
        if self.near.end == End::Open && !self.cut && self.far.alive && self.far.end != End::Closed
        {
            self.forth.push(bytes);
        }
    }

    fn send_back(&mut self, bytes: Back) {
        if self.far.end == End::Open && !self.cut && self.near.alive && self.near.end != End::Closed
        {
            self.back.push(bytes);
        }
    }

    /// Hands an event to the destination, and does what it asks for.
    pub fn hand_destination(&mut self, event: DestinationEvent) {
        let was_whole = self.far.whole;
        let Ok(actions) = self.far.machine.on(event) else {
            return;
        };
        let state = self.far.machine.state();
        for action in actions {
            self.do_at_destination(action);
        }
        if matches!(
            state,
            DestinationState::Abandoned { .. } | DestinationState::Gone { .. }
        ) {
            self.far.whole = false;
            self.history.destroyed |= was_whole && !self.history.forgot && !self.history.quit[1];
        }
    }

    fn do_at_destination(&mut self, action: DestinationAction) {
        match action {
            DestinationAction::SendPong(value) => self.send_back(Back::Pong(value)),
            DestinationAction::LoadDevices => {
                self.far.todo.push(DestinationEvent::Loaded { ran: true });
            }
            DestinationAction::RunVm => {
                self.far.running = true;
                self.far.todo.push(DestinationEvent::Started);
            }
            DestinationAction::SendShut(code) => self.send_back(Back::Shut(code)),
            DestinationAction::CloseChannel => self.far.end = End::Closed,
            DestinationAction::Answer(answer) => {
                if std::mem::take(&mut self.heard) {
                    self.answer = Some(answer);
                }
            }
            DestinationAction::Refuse => {
                if std::mem::take(&mut self.heard) {
                    self.answer = Some(Answer::Unknown);
                }
            }
            DestinationAction::StopListening => {}
            DestinationAction::End => self.crash_destination(),
        }
    }

    /// The source's process is no more. What it has sent is under way.
    pub fn crash_source(&mut self) {
        self.near.alive = false;
        self.near.running = false;
        self.near.end = End::Closed;
        self.near.todo.clear();
        self.back.clear();
        self.answer = None;
        self.heard = false;
        for old in &mut self.flying {
            old.heard = false;
        }
    }

    /// The destination's process is no more.
    pub fn crash_destination(&mut self) {
        self.far.alive = false;
        self.far.running = false;
        self.far.whole = false;
        self.far.end = End::Closed;
        self.far.todo.clear();
        self.forth.clear();
        self.heard = false;
    }
}
