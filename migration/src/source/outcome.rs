//! Asking a destination for the outcome, over a connection of its own.

use std::io::{Read, Write};

use crate::channel::{Channel, ChannelError, Outgoing};
use crate::switchover::outcome::{MESSAGE_BYTES, OutcomeError};
use crate::switchover::{Answer, MigrationId, Query, Verb};

use super::MigrateOptions;

/// There was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the destination cannot be reached")]
    Channel(#[from] ChannelError),
    #[error("the destination says nothing")]
    Broken(#[from] std::io::Error),
    #[error("what the destination says is no answer")]
    Nonsense(#[from] OutcomeError),
}

/// A connection on which an answer came; dropping it closes it.
pub(super) struct Asked {
    writer: crate::channel::Writer,
}

/// Connects and asks; bounded by the options' timeouts.
pub(super) fn ask(
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
    pub(super) fn acknowledge(mut self, id: MigrationId) {
        let verb = Verb::Known;
        let said = self.writer.write_all(&Query { id, verb }.encode());
        if let Err(error) = said.and_then(|()| self.writer.finish().map(drop)) {
            tracing::debug!(%error, "the destination was not told that its answer is known");
        }
    }
}
