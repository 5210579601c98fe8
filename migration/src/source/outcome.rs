//! Asking a destination for the outcome, over a connection of its own.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use crate::channel::{Channel, ChannelError, Outgoing, Stop};
use crate::switchover::outcome::{MESSAGE_BYTES, OutcomeError};
use crate::switchover::{Answer, MigrationId, Query, SourceEvent, Verb};

use super::connection::spawn;
use super::transfer::Job;
use super::{MigrateOptions, lock};

/// The question that is under way, and what became of the one before.
#[derive(Default)]
pub(super) struct Asking {
    stop: Option<Stop>,
    /// The connection on which the last answer came.
    asked: Arc<Mutex<Option<Asked>>>,
}

impl Asking {
    /// Asks in a thread of its own, which tells the control side.
    pub(super) fn ask<'s, 'e>(&mut self, job: Job<'e>, scope: &'s Scope<'s, 'e>, verb: Verb) {
        self.end();
        lock(&self.asked).take();
        let stop = match Stop::new() {
            Ok(stop) => stop,
            Err(error) => {
                tracing::warn!(%error, "the destination cannot be asked");
                let _ = job.migration.on(SourceEvent::NoAnswer);
                return;
            }
        };
        self.stop = Some(stop.clone());
        let asked = self.asked.clone();
        if spawn(scope, "migrate/ask", move || tell(job, verb, &stop, &asked)).is_err() {
            let _ = job.migration.on(SourceEvent::NoAnswer);
        }
    }

    /// Says on the connection on which the last answer came that it is known.
    pub(super) fn acknowledge(&self, id: MigrationId) {
        let asked = lock(&self.asked).take();
        if let Some(asked) = asked {
            asked.acknowledge(id);
        }
    }

    /// Ends the question that is under way.
    pub(super) fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.stop();
        }
    }
}

/// Tells the control side what the destination says.
fn tell(job: Job<'_>, verb: Verb, stop: &Stop, asked: &Mutex<Option<Asked>>) {
    let connecting = crate::channel::Options {
        stop: stop.clone(),
        ..job.options.channel.clone()
    };
    let answer = ask(job.options, &connecting, job.migration.id(), verb);
    if stop.is_stopped() {
        return;
    }
    let event = match answer {
        Ok((answer, connection)) => {
            *lock(asked) = Some(connection);
            SourceEvent::Answer(answer)
        }
        Err(error) => {
            tracing::debug!(error = crate::error::with_causes(&error), "no answer");
            SourceEvent::NoAnswer
        }
    };
    let _ = job.migration.on(event);
}

/// There was no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the destination cannot be reached")]
    Channel(#[from] ChannelError),
    #[error("the destination says nothing")]
    Broken(#[from] std::io::Error),
    #[error("what the destination says is no answer")]
    Nonsense(#[from] OutcomeError),
}

/// A connection on which an answer came; dropping it closes it.
struct Asked {
    writer: crate::channel::Writer,
}

/// Connects and asks; bounded by the options' timeouts.
fn ask(
    options: &MigrateOptions,
    channel: &crate::channel::Options,
    id: MigrationId,
    verb: Verb,
) -> Result<(Answer, Asked), AskError> {
    let connected: Channel = Outgoing::connect(&options.address, channel)?;
    let (mut reader, mut writer) = connected.split();
    writer.write_all(&Query { id, verb }.encode())?;
    let mut bytes = [0; MESSAGE_BYTES];
    reader.read_exact(&mut bytes)?;
    Ok((Answer::decode(&bytes, id)?, Asked { writer }))
}

impl Asked {
    /// Says that the answer is known.
    fn acknowledge(mut self, id: MigrationId) {
        let verb = Verb::Known;
        let said = self.writer.write_all(&Query { id, verb }.encode());
        if let Err(error) = said.and_then(|()| self.writer.finish().map(drop)) {
            tracing::debug!(%error, "the destination was not told that its answer is known");
        }
    }
}
