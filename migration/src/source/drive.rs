//! Obeying the control side.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender as CommandSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_ram::GuestRam;
use paguro_wire::globalstate;
use paguro_wire::stream::ram::BlockTable;

use super::delta::{self, Deltas};
use super::forecast::{Labour, device_cost};
use super::lanes::{self, Batch, Lane, Lanes};
use super::outcome::{Asked, ask};
use super::outstanding::Outstanding;
use super::sender::{Command, Measured, Nothing, Sender, Stopped};
use super::tally::Tally;
use super::throttle::Brake;
use super::{MigrateError, MigrateOptions, MigrateReport, Migration, SourceSabotage, answers};
use crate::channel::{self, ChannelError, Handle, Outgoing, Stop};
use crate::handover::{self, HandOverError, Offered};
use crate::machine::{Machine, Paused};
use crate::progress::Progress;
use crate::reason::Ended;
use crate::stream::{Packing, Stream, table_of};
use crate::switchover::{
    MigrationStatus, Reason, SourceAction, SourceEvent, SourceState, Telling, Verb,
};
use crate::time::micros;
use crate::{Allowance, Memory};

/// A destination that could not be asked is asked again after so long.
const RETRY: Duration = Duration::from_secs(1);
/// A destination that may be silent for ever has so long for its last words.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Sends `machine` to where `options` say. Blocks until it is decided where it runs; to be called in
/// a thread of its own, while `migration` is watched and commanded from others. While the outcome
/// is in doubt it goes on asking, for as long as it takes.
///
/// On success the machine is stopped (`postmigrate`), whole, and its copy runs at the destination,
/// or may.
///
/// # Errors
///
/// [`MigrateError`]; the machine is then as it was before.
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
    let threads = std::thread::scope(|scope| {
        let mut driver = Driver {
            machine,
            memory,
            options,
            migration,
            scope,
            busy: Some(busy),
            began: Instant::now(),
            paused: None,
            stopped_at: None,
            stopped_in: Duration::ZERO,
            ending_since: None,
            sending: None,
            hearing: None,
            commands: None,
            returns: false,
            channels: Vec::new(),
            lanes: Vec::new(),
            asking: None,
            asked: Arc::default(),
            over: None,
            offered: None,
        };
        driver.connect();
        driver.obey();
        driver.result()
    });
    if migration
        .progress
        .total_us
        .load(std::sync::atomic::Ordering::Relaxed)
        == 0
    {
        Progress::set(
            &migration.progress.total_us,
            micros(migration.began.elapsed()),
        );
    }
    threads
}

struct Driver<'s, 'e> {
    machine: &'e dyn Machine,
    memory: &'e Arc<Memory>,
    options: &'e MigrateOptions,
    migration: &'e Migration,
    scope: &'s Scope<'s, 'e>,
    busy: Option<crate::memory::Busy>,
    began: Instant,
    paused: Option<Box<dyn Paused + 'e>>,
    stopped_at: Option<Instant>,
    /// How long it took to stop it.
    stopped_in: Duration,
    /// One way only: when EOF was given to the sender, until that is looked at no longer.
    ending_since: Option<Instant>,
    sending: Option<ScopedJoinHandle<'s, ()>>,
    hearing: Option<ScopedJoinHandle<'s, ()>>,
    commands: Option<CommandSender<Command>>,
    /// Whether there is a return path.
    returns: bool,
    /// The main channel, then those of multifd.
    channels: Vec<Handle>,
    lanes: Vec<ScopedJoinHandle<'s, ()>>,
    /// Ends the asking that is under way.
    asking: Option<Stop>,
    /// The connection on which the last answer came.
    asked: Arc<Mutex<Option<Asked>>>,
    /// When it was given up.
    over: Option<Instant>,
    /// Held to the end, which shows the destination that this side is there.
    offered: Option<Offered>,
}

impl<'s, 'e> Driver<'s, 'e> {
    /// Connects and starts the threads.
    fn connect(&mut self) {
        if let Err(error) = self.try_connect() {
            let cancelled = self.migration.status() == MigrationStatus::Cancelling;
            match cancelled {
                true => tracing::debug!(%error, "cancelled while connecting"),
                false => self.migration.fail(error),
            }
        }
    }

    fn try_connect(&mut self) -> Result<(), MigrateError> {
        self.options.check()?;
        let host = self.memory.host();
        let ram = self.memory.ram().clone();
        let table = table_of(&ram)?;
        let hand_over = self.options.hand_over;
        let (tracker, whose): (Arc<dyn Tracker>, _) = match hand_over {
            // Nothing is sent, so nothing can be sent too late.
            true => (Arc::new(Nothing), GuestRam::new(Vec::new())),
            false => (
                self.machine.tracker().map_err(MigrateError::Machine)?,
                ram.clone(),
            ),
        };
        let pages = Outstanding::all(whose, self.memory.supply(), &host);
        let pages = pages.map_err(|source| MigrateError::Presence {
            block: String::new(),
            source,
        })?;
        let connecting = channel::Options {
            stop: self.migration.connecting.clone(),
            ..self.options.channel.clone()
        };
        if hand_over {
            // What is absent at the other side's mapping would be zeros there, for good.
            if self.memory.supply().is_some() {
                return Err(MigrateError::HandOver(HandOverError::Unarrived));
            }
            let way = Outgoing::connect(self.options.hand_over_address(), &connecting)
                .map_err(MigrateError::Channel)?;
            let offered =
                handover::offer(&ram, self.migration.id(), way).map_err(MigrateError::HandOver)?;
            self.offered = Some(offered);
        }
        let connected =
            Outgoing::connect(&self.options.address, &connecting).map_err(MigrateError::Channel)?;
        let returns = connected.can_return();
        self.returns = returns;
        self.channels.push(connected.handle());
        let lanes = self.connect_lanes(&connecting, &ram, &table)?;
        let (reader, writer) = connected.split();
        let (commands, commanded) = channel();
        let machine = self.machine.machine_name();
        let mut stream = Stream::new(writer, machine, ram.clone(), table);
        if hand_over {
            stream.ignore_shared();
        }
        let cache = self.options.xbzrle_cache_bytes.map(|bytes| {
            let stale = self.options.sabotage == SourceSabotage::StaleDelta;
            let allowance = Allowance::beside(&ram, &self.options.limits);
            let bytes = delta::affordable(bytes, &allowance);
            self.migration.xbzrle_cache_bytes.store(bytes, Relaxed);
            Deltas::new(&ram, bytes, stale)
        });
        let deltas = cache.transpose()?;
        let sender = Sender {
            machine: self.machine,
            memory: self.memory,
            migration: self.migration,
            options: self.options,
            ram,
            stream,
            pages,
            tracker,
            commands: commanded,
            returns,
            began: self.began,
            devices: Vec::new(),
            is_stopped: false,
            brake: Brake::new(&self.options.convergence),
            deltas,
            lanes,
            batch: Box::new(Batch::new()),
            labour: Labour::default(),
            tally: Tally::default(),
            measured: Measured::default(),
            packing: Packing::default(),
            device_cost: device_cost(self.machine.device_cost(), self.memory.last_saving()),
            asked_to: 0,
            asked_spent: Duration::ZERO,
            multifd_sync: false,
        };
        if returns {
            let migration = self.migration;
            let hear = move || answers::hear(migration, reader);
            self.hearing = Some(self.spawn("migrate/answers", hear)?);
        } else {
            drop(reader);
            self.migration.lock().deaf = true;
        }
        self.commands = Some(commands);
        let (migration, silence) = (self.migration, self.options.channel.silence);
        let send = move || {
            // A panic must not leave the driver waiting.
            let sent = catch_unwind(AssertUnwindSafe(|| sender.run()));
            if let Err(Stopped::Failed(error)) =
                sent.unwrap_or(Err(Stopped::Failed(MigrateError::Bug)))
            {
                last_words(migration, silence, &error);
                migration.fail(error);
            }
        };
        self.sending = Some(self.spawn("migrate/send", send)?);
        Ok(())
    }

    /// The connections of multifd, each with its thread.
    fn connect_lanes(
        &mut self,
        connecting: &channel::Options,
        ram: &GuestRam,
        table: &Arc<BlockTable>,
    ) -> Result<Option<Lanes>, MigrateError> {
        let Some(multifd) = self.options.multifd else {
            return Ok(None);
        };
        let unordered = self.options.sabotage == SourceSabotage::SkipMultifdSync;
        let (lanes, queue) = Lanes::new(multifd.channels, unordered);
        for channel in 0..multifd.channels {
            let connected = Outgoing::connect(&self.options.address, connecting)
                .map_err(MigrateError::Channel)?;
            self.channels.push(connected.handle());
            let (_, mut writer) = connected.split();
            lanes::introduce(&mut writer, channel)
                .map_err(|error| MigrateError::broken("open a multifd channel to", error))?;
            let lane = Lane {
                channel,
                writer,
                queue: queue.clone(),
                ram: ram.clone(),
                table: table.clone(),
                compression: multifd.compression,
                migration: self.migration,
                silence: self.options.channel.silence,
            };
            let thread = self.spawn(&format!("migrate/lane{channel}"), move || lane.run())?;
            self.lanes.push(thread);
        }
        Ok(Some(lanes))
    }

    fn spawn(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'e,
    ) -> Result<ScopedJoinHandle<'s, ()>, MigrateError>
    where
        'e: 's,
    {
        paguro_sys::NewThread::named(name.to_owned())
            .spawn_scoped(self.scope, body)
            .map_err(MigrateError::Thread)
    }

    /// Action by action, until it is decided where the machine runs and nobody need be told.
    fn obey(&mut self) {
        loop {
            let state = self.migration.lock().source.state();
            match state {
                SourceState::Ending { .. } if self.is_idle() => {
                    self.end_threads(false);
                    // Another one may begin once this one is known to have ended, while a
                    // destination is told of it.
                    self.busy = None;
                    let _ = self.migration.on(SourceEvent::Ended);
                    let took = self.migration.began.elapsed();
                    Progress::set(&self.migration.progress.total_us, micros(took));
                    self.over = Some(Instant::now());
                    continue;
                }
                SourceState::Resumed { telling, .. } if self.is_idle() => match telling {
                    Telling::Needless | Telling::Told | Telling::Contradicted => break,
                    Telling::Due | Telling::Asking => {
                        let linger = self.options.linger;
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
        self.end_threads(true);
    }

    /// Time to try again, if there is something to try; or too late for an end of the channel that
    /// would be believed.
    fn look_at_the_clock(&mut self) {
        // A sender that ended with EOF in hand (the silence was over just then, or it has a bug) says no
        // more what became of it. First whether it has ended: what it had to say it said before.
        let is_gone = self.sending.as_ref().is_some_and(|it| it.is_finished());
        if is_gone && self.migration.lock().source.awaits_word_of_eof() {
            let _ = self.migration.on(SourceEvent::EofTorn);
            return;
        }
        let silence = self.options.channel.silence;
        // What the channel finds out by itself comes first.
        let overdue =
            |since: &Instant| silence.is_some_and(|silence| since.elapsed() >= silence + RETRY);
        if !self.ending_since.as_ref().is_some_and(overdue) {
            let _ = self.migration.on(SourceEvent::Retry);
            return;
        }
        self.ending_since = None;
        if self.migration.on(SourceEvent::Overdue).is_ok() {
            let error = ChannelError::Timeout {
                doing: "see the end of",
                address: self.options.address.to_string(),
                within: silence.unwrap_or_default(),
            };
            self.migration.note(MigrateError::Channel(error));
        }
    }

    fn is_idle(&self) -> bool {
        self.migration.lock().actions.is_empty()
    }

    /// The next action; none after a while without one.
    fn next(&self) -> Option<SourceAction> {
        let inner = self.migration.lock();
        let quiet = |inner: &mut super::Inner| {
            inner.actions.is_empty() && !matches!(inner.source.state(), SourceState::Ending { .. })
        };
        let (mut inner, _) = self
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
            SourceAction::HoldVm => {
                if let Some(paused) = &mut self.paused {
                    paused.stay(true);
                }
            }
            SourceAction::SendEof => {
                if !self.returns {
                    self.ending_since = Some(Instant::now());
                }
                if !self.command(Command::Eof) {
                    // Nobody is left who could have written any of it.
                    let _ = self.migration.on(SourceEvent::EofWithheld);
                }
            }
            SourceAction::SendForget => {
                self.command(Command::Forget);
            }
            SourceAction::CloseChannel => self.close(),
            SourceAction::ResumeVm => {
                if let Some(mut paused) = self.paused.take() {
                    // Nobody may have been told yet that pages of it are lost.
                    paused.stay(self.memory.is_spoilt());
                }
            }
            SourceAction::Ask(verb) => self.ask(verb),
            SourceAction::Acknowledge => {
                let asked = lock(&self.asked).take();
                if let Some(asked) = asked {
                    asked.acknowledge(self.migration.id());
                }
            }
            SourceAction::End => {}
        }
    }

    /// False if the sender is gone. It has said why.
    fn command(&self, command: Command) -> bool {
        let sent = self
            .commands
            .as_ref()
            .map(|commands| commands.send(command));
        matches!(sent, Some(Ok(())))
    }

    fn pause(&mut self) {
        let start = Instant::now();
        self.stopped_at = Some(start);
        self.guest_waits(true);
        match self.machine.pause() {
            Ok(paused) => {
                self.stopped_in = start.elapsed();
                self.paused = Some(paused);
                let _ = self.migration.on(SourceEvent::Stopped);
            }
            Err(error) => self.migration.fail(MigrateError::Machine(error)),
        }
    }

    fn guest_waits(&self, waits: bool) {
        for channel in &self.channels {
            channel.set_guest_waits(waits);
        }
    }

    fn send_rest(&mut self) {
        let Some(paused) = &mut self.paused else {
            return;
        };
        let start = Instant::now();
        let state = match paused.was_running() {
            true => globalstate::RUNNING,
            false => globalstate::PAUSED,
        };
        let collected = globalstate::section(state)
            .map_err(|error| crate::machine::MachineError::new("say whether it runs", error))
            .and_then(|first| {
                let mut sections = vec![first];
                sections.extend(paused.save_devices()?);
                Ok(sections)
            });
        match collected {
            Ok(sections) => {
                let took = self.stopped_in + start.elapsed();
                self.memory.was_saved(&sections, took);
                self.command(Command::Rest(sections));
            }
            Err(error) => self.migration.fail(MigrateError::Machine(error)),
        }
    }

    /// Ends the channel: as a whole one if all was confirmed, else at once.
    fn close(&mut self) {
        let completed = self.migration.lock().source.state() == SourceState::Completed;
        if completed {
            if let Some(at) = self.stopped_at {
                let downtime = micros(at.elapsed());
                Progress::set(&self.migration.progress.downtime_us, downtime);
            }
            self.command(Command::Finish);
            self.commands = None;
            join(self.sending.take());
        }
        // In the other order a sender that fails at the closed channel would still be believed.
        self.commands = None;
        // Those of multifd end by themselves when all is done.
        let over = if completed { 1 } else { self.channels.len() };
        for channel in self.channels.iter().take(over) {
            channel.shutdown();
        }
    }

    /// Waits for all threads; what still blocks is ended.
    fn end_threads(&mut self, all: bool) {
        self.commands = None;
        for channel in self.channels.drain(..) {
            channel.shutdown();
        }
        join(self.sending.take());
        for lane in self.lanes.drain(..) {
            join(Some(lane));
        }
        join(self.hearing.take());
        if all && let Some(asking) = self.asking.take() {
            asking.stop();
        }
    }

    fn ask(&mut self, verb: Verb) {
        if let Some(before) = self.asking.take() {
            before.stop();
        }
        lock(&self.asked).take();
        let stop = match Stop::new() {
            Ok(stop) => stop,
            Err(error) => {
                tracing::warn!(%error, "the destination cannot be asked");
                let _ = self.migration.on(SourceEvent::NoAnswer);
                return;
            }
        };
        self.asking = Some(stop.clone());
        let options = self.options;
        let connecting = channel::Options {
            stop: stop.clone(),
            ..options.channel.clone()
        };
        let (migration, asked) = (self.migration, self.asked.clone());
        let body = move || {
            let answer = ask(options, &connecting, migration.id(), verb);
            if stop.is_stopped() {
                return;
            }
            let event = match answer {
                Ok((answer, connection)) => {
                    *lock(&asked) = Some(connection);
                    SourceEvent::Answer(answer)
                }
                Err(error) => {
                    tracing::debug!(error = crate::error::chain(&error), "no answer");
                    SourceEvent::NoAnswer
                }
            };
            let _ = migration.on(event);
        };
        if self.spawn("migrate/ask", body).is_err() {
            let _ = self.migration.on(SourceEvent::NoAnswer);
        }
    }

    fn result(mut self) -> Result<MigrateReport, MigrateError> {
        let (state, error) = {
            let inner = self.migration.lock();
            (inner.source.state(), inner.error.clone())
        };
        let took = micros(self.migration.began.elapsed());
        if Progress::get(&self.migration.progress.total_us) == 0 {
            Progress::set(&self.migration.progress.total_us, took);
        }
        match state {
            SourceState::Completed => {
                if let Some(paused) = &mut self.paused {
                    match self.options.hand_over {
                        true => paused.gone(),
                        false => paused.stay(true),
                    }
                }
                let uri = self.options.address.to_string();
                Ok(MigrateReport {
                    warning: self.migration.warning(),
                    ..self.migration.progress.report(uri)
                })
            }
            SourceState::Resumed {
                why: Reason::Cancelled,
                ..
            } => Err(MigrateError::Cancelled),
            SourceState::Resumed { why, .. } | SourceState::Ending { why, .. } => {
                // A destination that gave up is why the channel to it broke.
                let is_told = matches!(why, Reason::Peer { .. } | Reason::Abandoned);
                let cause = error.filter(|error| !(is_told && error.is_closed_by_peer()));
                Err(MigrateError::Ended(Ended { why, cause }))
            }
            SourceState::Gone { permitted: true } => Err(MigrateError::LeftInDoubt),
            _ => Err(MigrateError::GivenUp(Reason::Quit)),
        }
    }
}

/// A destination that fails says so and closes the channel: what it said comes before what the
/// broken channel means.
///
/// How soon its word comes is up to how busy its host is. There will be none when the return path has
/// ended, and when it was silent for as long as it may be, or for a while where that is for ever; whoever
/// cancels ends the return path.
pub(super) fn last_words(migration: &Migration, silence: Option<Duration>, error: &MigrateError) {
    if !error.is_closed_by_peer() {
        return;
    }
    let inner = migration.lock();
    let more = |inner: &mut super::Inner| !inner.deaf;
    let within = silence.unwrap_or(LAST_WORDS);
    drop(migration.changed.wait_timeout_while(inner, within, more));
}

fn join(thread: Option<ScopedJoinHandle<'_, ()>>) {
    if let Some(Err(_)) = thread.map(ScopedJoinHandle::join) {
        tracing::error!("a thread of the migration panicked: a bug");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
