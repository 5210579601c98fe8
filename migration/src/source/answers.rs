//! What the destination says on the return path of a connection, and the thread that hears it.

use std::time::{Duration, Instant};

use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::return_path::Message;

use super::{Inner, MigrateError, Migration};
use crate::channel::Reader;
use crate::switchover::SourceEvent;
use crate::switchover::outcome::PING_OPEN;
use crate::time::LAST_WORDS;

/// Hears until SHUT, or until the channel ends.
pub(super) fn hear(migration: &Migration, reader: Reader) {
    let mut input = ChannelInput::with_buffer(reader, 4096);
    loop {
        let message = Message::decode(&mut input);
        migration.lock().heard.at = Instant::now();
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
    migration.lock().heard.deaf = true;
    migration.changed.notify_all();
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
    let more = |inner: &mut Inner| !inner.heard.deaf;
    let within = silence.unwrap_or(LAST_WORDS);
    drop(migration.changed.wait_timeout_while(inner, within, more));
}
