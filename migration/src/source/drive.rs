//! Obeying the control side.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::command::Command;
use super::connection::{Close, Connection, Unmade, connect};
use super::outcome::Asking;
use super::standstill::Standstill;
use super::transfer::{Job, Transfer};
use super::{MigrateError, MigrateOptions, MigrateReport, Migration};
use crate::channel::{self, ChannelError};
use crate::handover::Offered;
use crate::machine::{Machine, Stay};
use crate::memory::Busy;
use crate::progress::Progress;
use crate::reason::Ended;
use crate::switchover::{MigrationStatus, Reason, SourceAction, SourceEvent, SourceState, Telling};
use crate::time::micros;

/// A destination that could not be asked is asked again after so long.
const RETRY: Duration = Duration::from_secs(1);

/// Sends `machine` to where `options` say. Blocks until it is decided where it runs; to be called in
/// a thread of its own, while `migration` is watched and commanded from others. While the outcome
/// is in doubt it goes on asking, for as long as it takes.
///
/// On success the machine is stopped (`postmigrate`), whole, and its copy runs at the destination,
/// or may.
///
/// # Errors
///
/// [`MigrateError`]; the machine is then as it was before, unless the error says otherwise
/// ([`NotResumed`](MigrateError::NotResumed), [`LeftInDoubt`](MigrateError::LeftInDoubt),
/// [`LostPages`](MigrateError::LostPages)).
pub fn migrate(
    machine: &dyn Machine,
    options: &MigrateOptions,
    migration: &Migration,
) -> Result<MigrateReport, MigrateError> {
    let memory = machine.memory();
    let Some(busy) = memory.begin() else {
        migration.fail(MigrateError::Busy);
        let _ = migration.on(SourceEvent::Ended);
        return Err(MigrateError::Busy);
    };
    let bytes = memory.ram().bytes() as u64;
    Progress::set(&migration.progress.total_bytes, bytes);
    std::thread::scope(|scope| {
        let mut driver = Driver {
            job: Job::new(machine, options, migration),
            scope,
            busy: Some(busy),
            transfer: None,
            connection: None,
            standstill: Standstill::default(),
            ending_since: None,
            asking: Asking::default(),
            over: None,
            offered: None,
        };
        driver.set_out();
        driver.obey();
        driver.result()
    })
}

struct Driver<'s, 'e> {
    job: Job<'e>,
    scope: &'s Scope<'s, 'e>,
    busy: Option<Busy>,
    /// What is sent. It outlives a connection.
    transfer: Option<Arc<Mutex<Transfer>>>,
    connection: Option<Connection<'s>>,
    standstill: Standstill<'e>,
    /// One way only: when EOF was given to the sender, until that is looked at no longer.
    ending_since: Option<Instant>,
    asking: Asking,
    /// When it was given up.
    over: Option<Instant>,
    /// Held to the end, which shows the destination that this side is there.
    offered: Option<Offered>,
}

impl<'s, 'e> Driver<'s, 'e> {
    /// Connects, and begins to send.
    fn set_out(&mut self) {
        let migration = self.job.migration;
        match self.try_set_out() {
            Ok(connection) => self.connection = Some(connection),
            Err(unmade) => unmade.end(|error| {
                if migration.status() == MigrationStatus::Cancelling {
                    tracing::debug!(%error, "cancelled while connecting");
                } else {
                    migration.fail(error);
                }
            }),
        }
    }

    fn try_set_out(&mut self) -> Result<Connection<'s>, Box<Unmade<'s>>> {
        let (options, migration) = (self.job.options, self.job.migration);
        options.check()?;
        let transfer = Arc::new(Mutex::new(Transfer::new(self.job)?));
        self.transfer = Some(transfer.clone());
        let connecting = channel::Options {
            stop: migration.connecting.clone(),
            ..options.channel.clone()
        };
        let (to, id) = (&options.address, migration.id());
        self.offered = options.mode.offer(to, &connecting, self.job.memory, id)?;
        connect(self.job, self.scope, &connecting, &transfer)
    }

    /// Action by action, until it is decided where the machine runs and nobody need be told.
    fn obey(&mut self) {
        loop {
            let state = self.job.migration.lock().source.state();
            match state {
                SourceState::Ending { .. } if self.is_idle() => {
                    self.end_connection();
                    // Another one may begin once this one is known to have ended, while a
                    // destination is told of it.
                    self.busy = None;
                    let _ = self.job.migration.on(SourceEvent::Ended);
                    let took = self.job.migration.began.elapsed();
                    Progress::set(&self.job.migration.progress.total_us, micros(took));
                    self.over = Some(Instant::now());
                    continue;
                }
                SourceState::Resumed { telling, .. } if self.is_idle() => match telling {
                    Telling::Needless | Telling::Told | Telling::Contradicted => break,
                    Telling::Due | Telling::Asking => {
                        let linger = self.job.options.linger;
                        if self.over.is_none_or(|over| over.elapsed() > linger) {
                            break;
                        }
                    }
                },
                SourceState::Completed | SourceState::Gone { .. } if self.is_idle() => break,
                _ => {}
            }
            match self.next() {
                Some(action) => self.act(action),
                None => self.look_at_the_clock(),
            }
        }
        self.end_connection();
        self.asking.end();
    }

    /// Time to try again, if there is something to try; or too late for an end of the channel that
    /// would be believed.
    fn look_at_the_clock(&mut self) {
        // A sender that ended with EOF in hand (the silence was over just then, or it has a bug) says no
        // more what became of it. First whether it has ended: what it had to say it said before.
        let is_gone = self
            .connection
            .as_ref()
            .is_some_and(Connection::is_sender_gone);
        if is_gone && self.job.migration.lock().source.awaits_word_of_eof() {
            let _ = self.job.migration.on(SourceEvent::EofTorn);
            return;
        }
        let silence = self.job.options.channel.silence;
        // What the channel finds out by itself comes first.
        let overdue =
            |since: &Instant| silence.is_some_and(|silence| since.elapsed() >= silence + RETRY);
        if !self.ending_since.as_ref().is_some_and(overdue) {
            let _ = self.job.migration.on(SourceEvent::Retry);
            return;
        }
        self.ending_since = None;
        if self.job.migration.on(SourceEvent::Overdue).is_ok() {
            let error = ChannelError::Timeout {
                doing: "see the end of",
                address: self.job.options.address.to_string(),
                within: silence.unwrap_or_default(),
            };
            self.job.migration.note(MigrateError::Channel(error));
        }
    }

    fn is_idle(&self) -> bool {
        self.job.migration.lock().actions.is_empty()
    }

    /// The next action; none after a while without one.
    fn next(&self) -> Option<SourceAction> {
        let inner = self.job.migration.lock();
        let quiet = |inner: &mut super::Inner| {
            inner.actions.is_empty() && !matches!(inner.source.state(), SourceState::Ending { .. })
        };
        let (mut inner, _) = self
            .job
            .migration
            .changed
            .wait_timeout_while(inner, RETRY, quiet)
            .unwrap_or_else(PoisonError::into_inner);
        inner.actions.pop_front()
    }

    fn act(&mut self, action: SourceAction) {
        tracing::debug!(?action, "source");
        match action {
            SourceAction::PauseVm => self.pause(),
            SourceAction::SendRest => self.send_rest(),
            SourceAction::SendPing(value) => {
                self.command(Command::Ping(value));
            }
            SourceAction::HoldVm => self.standstill.hold(Stay::InDoubt),
            SourceAction::SendEof => self.send_eof(),
            SourceAction::SendForget => {
                self.command(Command::Forget);
            }
            SourceAction::CloseChannel => self.close(),
            SourceAction::ResumeVm => self.resume(),
            SourceAction::Ask(verb) => self.asking.ask(self.job, self.scope, verb),
            SourceAction::Acknowledge => self.asking.acknowledge(self.job.migration.id()),
            SourceAction::End => {}
        }
    }

    /// False if there is no sender. It has said why.
    fn command(&self, command: Command) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|it| it.command(command))
    }

    fn pause(&mut self) {
        if let Some(connection) = &self.connection {
            connection.set_guest_waits(true);
        }
        match self.standstill.begin(self.job) {
            Ok(()) => {
                let _ = self.job.migration.on(SourceEvent::Stopped);
            }
            Err(error) => self.job.migration.fail(error),
        }
    }

    /// Lets the guest be as it was before.
    fn resume(&mut self) {
        // Nobody may have been told yet that pages of it are lost.
        if self.job.memory.is_spoilt() {
            self.standstill.leave(Stay::Spoilt);
        } else if let Err(source) = self.standstill.end() {
            self.job.migration.stuck(source);
        }
    }

    fn send_rest(&mut self) {
        match self.standstill.collect(self.job) {
            Ok(Some(sections)) => {
                self.command(Command::Rest(sections));
            }
            Ok(None) => {}
            Err(error) => self.job.migration.fail(error),
        }
    }

    fn send_eof(&mut self) {
        if self.connection.as_ref().is_some_and(|it| !it.returns()) {
            self.ending_since = Some(Instant::now());
        }
        if !self.command(Command::Eof) {
            // Nobody is left who could have written any of it.
            let _ = self.job.migration.on(SourceEvent::EofWithheld);
        }
    }

    /// Ends the channel: as a whole one if all was confirmed, else at once.
    fn close(&mut self) {
        let completed = self.job.migration.lock().source.state() == SourceState::Completed;
        let how = if completed {
            Close::Whole
        } else {
            Close::Broken
        };
        if completed && let Some(downtime) = self.standstill.elapsed() {
            let progress = &self.job.migration.progress;
            Progress::set(&progress.downtime_us, micros(downtime));
        }
        if let Some(connection) = &mut self.connection {
            connection.close(how);
        }
    }

    /// Waits for all threads of it; what still blocks is ended. Nothing is tracked any more.
    fn end_connection(&mut self) {
        self.connection = None;
        self.transfer = None;
    }

    fn result(mut self) -> Result<MigrateReport, MigrateError> {
        let (state, error) = {
            let inner = self.job.migration.lock();
            (inner.source.state(), inner.error.clone())
        };
        let took = micros(self.job.migration.began.elapsed());
        if Progress::get(&self.job.migration.progress.total_us) == 0 {
            Progress::set(&self.job.migration.progress.total_us, took);
        }
        match state {
            SourceState::Completed => {
                self.standstill.leave(self.job.options.mode.stay());
                let uri = self.job.options.address.to_string();
                Ok(MigrateReport {
                    warning: self.job.migration.warning(),
                    ..self.job.migration.progress.report(uri)
                })
            }
            SourceState::Resumed {
                why: Reason::Cancelled,
                ..
            } if !error.as_deref().is_some_and(MigrateError::is_stuck) => {
                Err(MigrateError::Cancelled)
            }
            SourceState::Resumed { why, .. } | SourceState::Ending { why, .. } => {
                // A destination that gave up is why the channel to it broke.
                let is_told = matches!(why, Reason::Peer { .. } | Reason::Abandoned);
                let cause = error.filter(|error| !(is_told && error.is_closed_by_peer()));
                Err(MigrateError::Ended(Ended { why, cause }))
            }
            SourceState::Gone { permitted: true } => Err(MigrateError::LeftInDoubt),
            _ => {
                // Whoever ends this side before the destination may run leaves a guest that runs here.
                self.resume();
                Err(MigrateError::GivenUp(Reason::Quit))
            }
        }
    }
}
