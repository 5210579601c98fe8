//! What comes after the passes: the rest, devices, the permission to run.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use paguro_wire::device::DeviceSection;
use paguro_wire::stream::order::Order;

use super::{Ending, Sender, Slowed};
use crate::channel::Address;
use crate::progress::Progress;
use crate::source::MigrateError;
use crate::source::command::{Command, Stopped};
use crate::source::outstanding::Due;
use crate::stream::{EofError, table_of};
use crate::switchover::SourceEvent;

impl Sender<'_> {
    /// Does what the control side commands, until it lets go of the channel.
    pub(super) fn obey(&mut self, slowed: Slowed<'_>) -> Result<Ending, Stopped> {
        let mut slowed = Some(slowed);
        // The destination hears from us even while an operator decides, and so do we from it.
        let silence = self.job.options.channel.silence.filter(|_| self.returns);
        let patience = silence.map_or(Duration::from_secs(3600), |silence| silence / 3);
        // What is sent from here on is little and lies in buffers: that it can be written does not
        // show that anybody takes it. So an answer is waited for, to the PINGs at least.
        let mut asked = Instant::now();
        loop {
            let command = self.job.hooks.told(self.commands.recv_timeout(patience));
            if command.is_ok() {
                asked = Instant::now();
            }
            match command {
                Ok(Command::Rest(devices)) => {
                    drop(slowed.take());
                    self.stopped(devices)?;
                    asked = Instant::now();
                    self.tell(SourceEvent::Sent)?;
                }
                Ok(Command::Ping(value)) => {
                    self.stream.order(&Order::Ping(value))?;
                    self.stream.describe(&self.transfer.devices);
                }
                Ok(Command::Eof) if self.returns => self.permit()?,
                Ok(Command::Eof) => return Ok(Ending::Eof),
                Ok(Command::Forget) => {
                    if self.stream.is_whole() {
                        self.stream.order(&Order::Forget)?;
                    }
                }
                Ok(Command::Finish) => return Ok(Ending::Whole),
                Err(RecvTimeoutError::Timeout) if self.returns => {
                    let heard = self.job.migration.lock().heard.at;
                    self.check_silence(asked.max(heard))?;
                    self.ask(Instant::now())?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Told),
            }
        }
    }

    /// Sends the permission to run, of which the destination says that it came.
    fn permit(&mut self) -> Result<(), Stopped> {
        let sound = self.check_ram().map_err(EofError::Withheld);
        let event = match sound.and_then(|()| self.stream.eof(&self.transfer.devices)) {
            Ok(()) => SourceEvent::EofWritten,
            Err(EofError::Torn(error)) => {
                self.job.migration.note(error);
                SourceEvent::EofTorn
            }
            Err(EofError::Withheld(error)) => {
                self.job.migration.note(error);
                SourceEvent::EofWithheld
            }
        };
        self.tell(event)
    }

    /// All was confirmed: how the channels end changes nothing any more.
    pub(super) fn finish(mut self) {
        self.way.finish();
        if let Err(error) = self.stream.finish() {
            tracing::debug!(%error, "the channel did not end well");
        }
    }

    /// The guest stands still: sends what is left.
    fn stopped(&mut self, devices: Vec<DeviceSection>) -> Result<(), Stopped> {
        let before = self.written_bytes();
        let progress = self.job.migration.progress();
        Progress::set(&progress.precopy_bytes, before);
        self.transfer.is_stopped = true;
        self.rest(devices)?;
        // Where nobody will say that it has all: a disk fails, and takes its time, while a
        // cancel lets the guest run on.
        if !self.returns {
            self.stream.settle()?;
        }
        let downtime_bytes = self.written_bytes() - before;
        Progress::set(&progress.downtime_bytes, downtime_bytes);
        self.publish();
        Ok(())
    }

    /// Without a return path the end of the channel is the only confirmation there is.
    pub(super) fn last_way(mut self) {
        let is_file = matches!(self.job.options.address, Address::File { .. });
        let sound = self.check_ram().map_err(EofError::Withheld);
        let sent = sound.and_then(|()| self.stream.eof(&self.transfer.devices));
        let migration = self.job.migration;
        let event = match sent.map(|()| self.stream.finish()) {
            Ok(Ok(unconfirmed)) => {
                if let Some(what) = unconfirmed {
                    migration.warn(&what);
                }
                SourceEvent::EofWritten
            }
            Ok(Err(error)) if error.is_file_in_doubt() => {
                migration.note(error);
                SourceEvent::EofTorn
            }
            // A file that never got its name is none.
            Ok(Err(error)) | Err(EofError::Torn(error) | EofError::Withheld(error)) if is_file => {
                migration.note(error);
                SourceEvent::EofWithheld
            }
            Err(EofError::Withheld(error)) => {
                migration.note(error);
                SourceEvent::EofWithheld
            }
            Ok(Err(error)) | Err(EofError::Torn(error)) => {
                migration.note(error);
                SourceEvent::EofTorn
            }
        };
        // Too late means that the channel is about to be closed.
        let _ = migration.on(event);
    }

    /// The guest stands still and device state was collected: the last sync comes now.
    fn rest(&mut self, devices: Vec<DeviceSection>) -> Result<(), Stopped> {
        if table_of(&self.transfer.ram)? != *self.stream.table() {
            return Err(Stopped::Failed(MigrateError::BlocksChanged));
        }
        self.sync()?;
        self.way.begin_pass(&mut self.transfer.tally);
        let mut due = Due::default();
        let chunks = self.job.hooks.rest(self.transfer.pages.chunks().collect());
        let (way, mut main) = self.way();
        way.begin_rest(&mut main);
        for (block, chunk) in chunks {
            if self.is_told_to_stop() {
                return Err(Stopped::Told);
            }
            self.send(block, chunk, &mut due)?;
        }
        let (way, mut main) = self.way();
        way.end_rest(&mut main)?;
        self.stream.end_part()?;
        self.check_ram()?;
        self.stream.devices(&devices)?;
        self.transfer.devices = devices;
        Ok(())
    }
}
