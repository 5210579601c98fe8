//! One connection of a source: its channels, and the threads that work on them.
//!
//! It is made by [`connect`], [closed](Connection::close) as a whole one or as one that is of no use any
//! more, and over when it is dropped. What is sent over it is lent to it: a [`Transfer`] is as it was left
//! when the connection is over, whatever became of that, and another one can take its place. What was on its
//! way when one broke is in no set of pages any more: which of it came only the other side knows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender as CommandSender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};

use super::command::Command;
use super::sender::Sender;
use super::transfer::{Job, Transfer};
use super::way::{self, Deltas, Lane, Multifd, Plain, Way};
use super::{MigrateError, Mode, Pages, answers, lock};
use crate::Allowance;
use crate::channel::{self, Handle, Outgoing};
use crate::multifd;
use crate::stream::Stream;

/// A connection, while it is there.
#[derive(Default)]
pub(super) struct Connection<'s> {
    /// The main channel, then those of multifd.
    channels: Vec<Handle>,
    /// Whether there is a return path.
    returns: bool,
    commands: Option<CommandSender<Command>>,
    sending: Option<ScopedJoinHandle<'s, ()>>,
    hearing: Option<ScopedJoinHandle<'s, ()>>,
    lanes: Vec<ScopedJoinHandle<'s, ()>>,
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// All was said and confirmed.
    Whole,
    /// Nothing more is to be said.
    Broken,
}

/// There is no connection.
pub(super) struct Unmade<'s> {
    error: MigrateError,
    /// What there is of it.
    rest: Option<Connection<'s>>,
}

impl Unmade<'_> {
    /// Tells why, and then ends what there is of it: the end of its channels is not to be taken for the
    /// reason.
    pub(super) fn end(self, tell: impl FnOnce(MigrateError)) {
        tell(self.error);
        drop(self.rest);
    }
}

impl From<MigrateError> for Box<Unmade<'_>> {
    fn from(error: MigrateError) -> Self {
        Box::new(Unmade { error, rest: None })
    }
}

/// Connects, with the options of a channel that can be stopped, and begins to send.
///
/// # Errors
///
/// The channel's; the host's, if it has no threads or no memory.
pub(super) fn connect<'s, 'e>(
    job: Job<'e>,
    scope: &'s Scope<'s, 'e>,
    connecting: &channel::Options,
    transfer: &Arc<Mutex<Transfer>>,
) -> Result<Connection<'s>, Box<Unmade<'s>>> {
    let mut connection = Connection::default();
    match connection.open(job, scope, connecting, transfer) {
        Ok(()) => Ok(connection),
        Err(error) => Err(Box::new(Unmade {
            error,
            rest: Some(connection),
        })),
    }
}

impl<'s> Connection<'s> {
    fn open<'e>(
        &mut self,
        job: Job<'e>,
        scope: &'s Scope<'s, 'e>,
        connecting: &channel::Options,
        transfer: &Arc<Mutex<Transfer>>,
    ) -> Result<(), MigrateError> {
        let connected =
            Outgoing::connect(&job.options.address, connecting).map_err(MigrateError::Channel)?;
        self.returns = connected.can_return();
        self.channels.push(connected.handle());
        let way = self.way(job, scope, connecting, &lock(transfer))?;
        let (reader, writer) = connected.split();
        let mut stream = {
            let transfer = lock(transfer);
            let (ram, table) = (transfer.ram.clone(), transfer.table.clone());
            Stream::new(writer, job.machine.machine_name(), ram, table)
        };
        job.options.mode.declare(&mut stream);
        job.migration.lock().heard.begin(self.returns);
        if self.returns {
            let hear = move || answers::hear(job.migration, reader);
            self.hearing = Some(spawn(scope, "migrate/answers", hear)?);
        }
        let (commands, commanded) = channel();
        self.commands = Some(commands);
        let (transfer, returns) = (transfer.clone(), self.returns);
        let send = move || {
            let mut transfer = lock(&transfer);
            let sender = Sender::new(job, &mut transfer, stream, way, commanded, returns);
            // A panic must not leave the driver waiting.
            if catch_unwind(AssertUnwindSafe(|| sender.run())).is_err() {
                job.migration.fail(MigrateError::Bug);
            }
        };
        self.sending = Some(spawn(scope, "migrate/send", send)?);
        Ok(())
    }

    /// The way that pages go, with the channels of its own.
    fn way<'e>(
        &mut self,
        job: Job<'e>,
        scope: &'s Scope<'s, 'e>,
        connecting: &channel::Options,
        transfer: &Transfer,
    ) -> Result<Box<dyn Way>, MigrateError> {
        Ok(match job.options.mode {
            // The latter sends none.
            Mode::Precopy(Pages::Plain) | Mode::HandOver { .. } => Box::new(Plain),
            Mode::Precopy(Pages::Xbzrle { cache_bytes }) => {
                let allowance = Allowance::beside(&transfer.ram, &job.options.limits);
                let bytes = way::affordable(cache_bytes, &allowance);
                job.migration.xbzrle_cache_bytes.store(bytes, Relaxed);
                Box::new(Deltas::new(&transfer.ram, bytes, job.hooks)?)
            }
            Mode::Precopy(Pages::Multifd(multifd)) => {
                Box::new(self.lanes(multifd, job, scope, connecting, transfer)?)
            }
        })
    }

    /// The channels of multifd, each with its thread.
    fn lanes<'e>(
        &mut self,
        multifd: multifd::Multifd,
        job: Job<'e>,
        scope: &'s Scope<'s, 'e>,
        connecting: &channel::Options,
        transfer: &Transfer,
    ) -> Result<Multifd, MigrateError> {
        let (way, queue) = Multifd::new(multifd.channels, job.hooks);
        for channel in 0..multifd.channels {
            let connected = Outgoing::connect(&job.options.address, connecting)
                .map_err(MigrateError::Channel)?;
            self.channels.push(connected.handle());
            let (_, mut writer) = connected.split();
            way::introduce(&mut writer, channel)
                .map_err(|error| MigrateError::broken("open a multifd channel to", error))?;
            let lane = Lane {
                channel,
                writer,
                queue: queue.clone(),
                ram: transfer.ram.clone(),
                table: transfer.table.clone(),
                compression: multifd.compression,
                migration: job.migration,
                silence: job.silence(),
            };
            let name = format!("migrate/lane{channel}");
            self.lanes.push(spawn(scope, &name, move || lane.run())?);
        }
        Ok(way)
    }

    /// Whether the destination can answer.
    pub(super) fn returns(&self) -> bool {
        self.returns
    }

    /// Has the sender do something. False if it is gone; it has said why.
    pub(super) fn command(&self, command: Command) -> bool {
        let sent = self.commands.as_ref().map(|it| it.send(command));
        matches!(sent, Some(Ok(())))
    }

    /// Whether there is no sender any more. What it had to say it has said.
    pub(super) fn is_sender_gone(&self) -> bool {
        self.sending.as_ref().is_some_and(|it| it.is_finished())
    }

    /// Whether a guest stands still for what is on its way: then nothing is saved up.
    pub(super) fn set_guest_waits(&self, waits: bool) {
        for channel in &self.channels {
            channel.set_guest_waits(waits);
        }
    }

    /// Waits for nobody but, of a whole one, for the last of it to be written.
    pub(super) fn close(&mut self, how: Close) {
        let over = match how {
            Close::Whole => {
                self.command(Command::Finish);
                self.commands = None;
                join(self.sending.take());
                // Those of multifd end by themselves when all is done.
                1
            }
            Close::Broken => self.channels.len(),
        };
        // In the other order a sender that fails at the closed channel would still be believed.
        self.commands = None;
        for channel in self.channels.iter().take(over) {
            channel.shutdown();
        }
    }
}

impl Drop for Connection<'_> {
    /// Waits for all threads; what still blocks is ended.
    fn drop(&mut self) {
        self.commands = None;
        for channel in &self.channels {
            channel.shutdown();
        }
        join(self.sending.take());
        for lane in self.lanes.drain(..) {
            join(Some(lane));
        }
        join(self.hearing.take());
    }
}

/// A thread of a migration.
pub(super) fn spawn<'s, 'e: 's>(
    scope: &'s Scope<'s, 'e>,
    name: &str,
    body: impl FnOnce() + Send + 'e,
) -> Result<ScopedJoinHandle<'s, ()>, MigrateError> {
    paguro_sys::NewThread::named(name.to_owned())
        .spawn_scoped(scope, body)
        .map_err(MigrateError::Thread)
}

fn join(thread: Option<ScopedJoinHandle<'_, ()>>) {
    if let Some(Err(_)) = thread.map(ScopedJoinHandle::join) {
        tracing::error!("a thread of the migration panicked: a bug");
    }
}

#[cfg(test)]
mod tests;
