//! The way out: answers of the session and events of everybody else, in one queue.
//!
//! Whoever has an event to tell (a thread at work, the machine) must never wait for
//! a client that does not read. So events are dropped, with a trace, once the queue is full;
//! answers wait, which stops a client that asks without reading.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Lines that may wait for a client to read them.
const QUEUE_LINES: usize = 1024;

/// What goes through a queue.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A line to write, without its newline.
    Line(String),
    /// Tell when all before has been written.
    Flush(SyncSender<()>),
}

/// Where events go: to the client that is connected and has finished its negotiation, or nowhere.
#[derive(Debug, Default)]
pub struct Events {
    client: Mutex<Option<SyncSender<Outgoing>>>,
}

impl Events {
    /// Tells an event, stamped with the time of now. Never waits.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        let client = self.lock();
        let Some(queue) = &*client else {
            return;
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = json!({
            "event": name,
            "timestamp": { "seconds": now.as_secs(), "microseconds": now.subsec_micros() },
        });
        if let Some(data) = data {
            event["data"] = data;
        }
        if let Err(TrySendError::Full(_)) = queue.try_send(Outgoing::Line(event.to_string())) {
            tracing::warn!(event = name, "the QMP client does not read: event dropped");
        }
    }

    /// From now on this client gets the events.
    pub(crate) fn attach(&self, queue: SyncSender<Outgoing>) {
        *self.lock() = Some(queue);
    }

    /// The client is gone.
    pub(crate) fn detach(&self) {
        *self.lock() = None;
    }

    /// Waits until the client has got all that was told it, but not for ever.
    pub fn flush(&self, at_most: Duration) {
        let (written, wait) = sync_channel(1);
        let sent = match &*self.lock() {
            Some(queue) => queue.try_send(Outgoing::Flush(written)).is_ok(),
            None => false,
        };
        if sent {
            // Whether it was written or not: there is nothing more to do for this client.
            wait.recv_timeout(at_most).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<SyncSender<Outgoing>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue to one client.
pub(crate) fn queue() -> (SyncSender<Outgoing>, Receiver<Outgoing>) {
    sync_channel(QUEUE_LINES)
}

/// Writes what comes through the queue until all senders, or the client, are gone.
pub(crate) fn write_out(mut stream: UnixStream, queue: Receiver<Outgoing>) {
    for item in queue {
        match item {
            Outgoing::Line(mut line) => {
                line.push_str("\r\n");
                if let Err(error) = stream.write_all(line.as_bytes()) {
                    tracing::debug!(%error, "the QMP client is gone");
                    return;
                }
            }
            // The one who waits may have given up.
            Outgoing::Flush(written) => drop(written.try_send(())),
        }
    }
}
