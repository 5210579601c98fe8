//! The thread that sends: RAM while the guest runs, then what is left of it, devices, EOF.

mod backlog;
mod end;
mod outlook;
mod pages;
mod passes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::command::{Command, Stopped};
use super::transfer::{Job, Transfer};
use super::way::{Main, Way, is_told_to_stop};
use super::{MigrateError, answers};
use crate::machine::Machine;
use crate::progress::Progress;
use crate::stream::Stream;
use crate::switchover::outcome::PING_OPEN;
use crate::switchover::{SourceEvent, Unexpected};
use crate::time::micros;

/// What is left to do when all is sent.
enum Ending {
    /// Nothing: it was confirmed.
    Whole,
    /// The permission to run, which nobody will confirm.
    Eof,
}

/// What sends over one connection.
pub(super) struct Sender<'a> {
    job: Job<'a>,
    /// What is sent, and what was over connections before.
    transfer: &'a mut Transfer,
    stream: Stream,
    /// How pages go.
    way: Box<dyn Way>,
    commands: Receiver<Command>,
    /// Whether there is a return path.
    returns: bool,
    /// Bytes before the last PING, and the time that was spent in writing up to then, or up to the last
    /// sync of a file.
    asked_to: u64,
    asked_spent: Duration,
}

/// Slows the vCPUs down, and lets them go on every path.
struct Slowed<'a>(&'a dyn Machine);

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        self.0.throttle(0);
    }
}

impl<'a> Sender<'a> {
    /// Of a connection that is open, and over which nothing was sent yet.
    pub(super) fn new(
        job: Job<'a>,
        transfer: &'a mut Transfer,
        stream: Stream,
        way: Box<dyn Way>,
        commands: Receiver<Command>,
        returns: bool,
    ) -> Self {
        Self {
            job,
            transfer,
            stream,
            way,
            commands,
            returns,
            asked_to: 0,
            asked_spent: Duration::ZERO,
        }
    }

    /// All of it. A failure is told while the channels are still open: what the other side makes of it
    /// that they close is not to be taken for the reason.
    pub(super) fn run(mut self) {
        let sent = catch_unwind(AssertUnwindSafe(|| self.work()));
        let error = match sent.unwrap_or(Err(Stopped::Failed(MigrateError::Bug))) {
            Ok(Ending::Whole) => return self.finish(),
            Ok(Ending::Eof) => return self.last_way(),
            Err(Stopped::Told) => return,
            Err(Stopped::Failed(error)) => error,
        };
        // Nobody is to count on a command that would be done no more.
        self.commands = channel().1;
        answers::last_words(self.job.migration, self.job.silence(), &error);
        self.job.migration.fail(error);
    }

    /// Up to the command that ends it.
    fn work(&mut self) -> Result<Ending, Stopped> {
        let pings = if self.returns {
            [&[PING_OPEN], &self.job.migration.id().pings()[..]].concat()
        } else {
            Vec::new()
        };
        if self.returns {
            let digestion = &mut self.job.migration.lock().heard.digestion;
            digestion.ask(0, Instant::now(), Duration::ZERO);
        }
        self.stream.begin(&pings, self.way.begin())?;
        let start = Instant::now();
        self.transfer.track()?;
        // What was written before is sent with all the rest.
        self.sync()?;
        let progress = self.job.migration.progress();
        Progress::set(&progress.track_us, micros(start.elapsed()));
        Progress::set(&progress.setup_us, micros(self.job.began.elapsed()));
        self.tell(SourceEvent::Ready)?;
        let slowed = Slowed(self.job.machine);
        self.precopy()?;
        self.tell(SourceEvent::Converged)?;
        self.obey(slowed)
    }

    /// An event that is too late means that the channel is about to be closed.
    fn tell(&self, event: SourceEvent) -> Result<(), Stopped> {
        match self.job.migration.on(event) {
            Ok(()) => Ok(()),
            Err(Unexpected::Late(_) | Unexpected::NotNow(_)) => Err(Stopped::Told),
        }
    }

    /// Whoever reads a page that cannot be had may have been given zeros for it, and they were sent. From
    /// the last page on nothing goes out before this is known: what is there may be run.
    fn check_ram(&self) -> Result<(), MigrateError> {
        if self.job.memory.is_spoilt() {
            Err(MigrateError::LostPages)
        } else {
            Ok(())
        }
    }

    fn is_told_to_stop(&self) -> bool {
        is_told_to_stop(&self.commands)
    }

    /// A pass is over: what was written meanwhile, in pages.
    fn sync(&mut self) -> Result<usize, MigrateError> {
        self.transfer.tally.syncs += 1;
        Progress::set(
            &self.job.migration.progress().dirty_syncs,
            self.transfer.tally.syncs,
        );
        self.job.migration.begin_pass(self.transfer.tally.syncs);
        self.collect()
    }

    /// The same once more, before another pass.
    fn collect(&mut self) -> Result<usize, MigrateError> {
        let start = Instant::now();
        let new = self
            .transfer
            .pages
            .sync(&*self.transfer.tracker)
            .map_err(MigrateError::Tracker)?;
        self.transfer.tally.sync = start.elapsed();
        self.publish();
        Ok(new)
    }

    /// Bytes written to all channels.
    fn written_bytes(&self) -> u64 {
        self.stream.written_bytes() + self.way.written_bytes()
    }

    /// The way that pages go, and what it works with.
    fn way(&mut self) -> (&mut dyn Way, Main<'_>) {
        let main = Main {
            stream: &mut self.stream,
            tally: &mut self.transfer.tally,
            commands: &self.commands,
        };
        (&mut *self.way, main)
    }

    /// Counts what was written since this was called last.
    fn measure(&mut self) {
        self.way
            .measure(&mut self.transfer.tally, &mut self.stream.bandwidth);
    }

    /// Shows how things stand.
    fn publish(&mut self) {
        self.measure();
        let progress = self.job.migration.progress();
        let written = self.written_bytes();
        Progress::set(&progress.remaining_bytes, self.transfer.pages.bytes());
        Progress::set(&progress.transferred_bytes, written);
        if !self.transfer.is_stopped {
            Progress::set(&progress.precopy_bytes, written);
        }
        self.transfer.tally.mirror(progress);
    }
}
