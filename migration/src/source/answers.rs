//! The thread that hears what the destination says on the return path.

use std::time::Instant;

use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::return_path::Message;

use super::{MigrateError, Migration};
use crate::channel::Reader;
use crate::switchover::SourceEvent;
use crate::switchover::outcome::PING_OPEN;

/// Hears until SHUT, or until the channel ends.
pub(super) fn hear(migration: &Migration, reader: Reader) {
    let mut input = ChannelInput::with_buffer(reader, 4096);
    loop {
        let message = Message::decode(&mut input);
        migration.lock().heard = Instant::now();
        match message {
            Ok(Message::Pong(value)) => {
                if value == PING_OPEN {
                    migration.answered();
                }
                // One that nobody waits for changes nothing.
                let _ = migration.on(SourceEvent::Pong(value));
            }
            Ok(Message::Shut(code)) => {
                let _ = migration.on(SourceEvent::Shut(code));
                break;
            }
            Ok(other) => tracing::debug!(?other, "nobody asked"),
            Err(error) => {
                migration.fail(MigrateError::Answer(error));
                break;
            }
        }
    }
    migration.lock().deaf = true;
    migration.changed.notify_all();
}
