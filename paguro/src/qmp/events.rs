//! The events that this program has beside the machine's own: where a migration is.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

/// Where events go, and whether those about migrations do.
#[derive(Default)]
pub struct Events {
    all: paguro_qmp::Events,
    /// The capability `events`.
    migrations: AtomicBool,
}

impl Events {
    /// All of them.
    pub fn all(&self) -> &paguro_qmp::Events {
        &self.all
    }

    /// Whether it is told where migrations are.
    pub fn tell_migrations(&self, tell: bool) {
        self.migrations.store(tell, Ordering::Release);
    }

    /// Tells where a migration is, if that is wanted. Never waits.
    pub fn migration(&self, status: &str) {
        if self.migrations.load(Ordering::Acquire) {
            self.all
                .emit("MIGRATION", Some(json!({ "status": status })));
        }
    }

    /// Tells that a migration begins another pass over the written pages, if that is wanted. Never
    /// waits.
    pub fn migration_pass(&self, number: u64) {
        if self.migrations.load(Ordering::Acquire) {
            self.all
                .emit_passing("MIGRATION_PASS", Some(json!({ "pass": number })));
        }
    }
}
