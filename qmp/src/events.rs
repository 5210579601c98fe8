//! Events: told to the client that is connected and has finished its negotiation, or to nobody.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::queue::{Queue, Weight};

/// Where events go.
#[derive(Debug, Default)]
pub struct Events {
    client: Mutex<Option<Arc<Queue>>>,
}

impl Events {
    /// Tells an event, stamped with the time of now. Never waits. A client for whom too much waits is put
    /// out rather than that it misses one.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        self.tell(name, data, Weight::Lasting);
    }

    /// The same of one that may be missed by a client that does not read, for the next of its kind says
    /// more.
    pub fn emit_passing(&self, name: &str, data: Option<Value>) {
        self.tell(name, data, Weight::Passing);
    }

    fn tell(&self, name: &str, data: Option<Value>, weight: Weight) {
        let client = self.client.lock();
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
        if !queue.event(event.to_string(), weight) {
            tracing::warn!(event = name, "the QMP client does not read: event dropped");
        }
    }

    /// From now on this client gets the events.
    pub(crate) fn attach(&self, queue: Arc<Queue>) {
        *self.client.lock() = Some(queue);
    }

    /// The client is gone.
    pub(crate) fn detach(&self) {
        *self.client.lock() = None;
    }

    /// Waits until the client has got all that was told it, but not for ever.
    pub fn flush(&self, at_most: Duration) {
        let queue = self.client.lock().clone();
        if let Some(queue) = queue {
            queue.flush(at_most);
        }
    }
}
