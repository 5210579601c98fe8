//! The control socket: a QMP server.
//!
//! QMP is what clients of QEMU speak, so existing ones work: the greeting, the negotiation, field
//! names, states, units and error classes are QEMU's. Where a room here deviates, it says so and
//! why. What is ours alone begins with `x-paguro-`:
//!
//! | command | answers |
//! |---|---|
//! | `x-paguro-query-ram` | `pid`, and per RAM block `name`, `guest-address`, `host-address`, `length` |
//! | `x-paguro-query-report` | the report of the last snapshot that succeeded |
//! | `x-paguro-query-restore` | how far the RAM of a lazily restored machine is filled |
//! | `x-paguro-query-writers` | who writes guest RAM: `name`, `class` (`seen`, `drained`, `unseen`) |
//! | `x-paguro-query-machine` | what the machine is, and how long it took to make |
//! | `x-paguro-query-device-writers` | devices that write guest RAM: `writer`, `done` |
//! | `x-paguro-touch` | reads a byte of every page, so that all of RAM arrives |
//! | `x-paguro-collapse` | joins pages to huge ones now; `bytes` for which the kernel did |
//!
//! and the parameters listed in [`parameters`]. `query-migrate` has besides QEMU's fields
//! `x-paguro-downtime-us` (QEMU's `downtime` counts whole milliseconds), `x-paguro-faults`,
//! `x-paguro-background`; `error-desc` has the hint in parentheses, and both stand alone in
//! `x-paguro-error` and `x-paguro-hint` (null if there is none); `query-status` has
//! `x-paguro-reason` when the machine failed.
//!
//! | room | for |
//! |---|---|
//! | [`server`] | the socket: one client at a time |
//! | [`session`] | one client: greeting, negotiation, ids |
//! | [`splitter`] | where one JSON value ends and the next begins |
//! | [`args`] | arguments, strictly |
//! | [`commands`] | the table of commands |
//! | [`state`] | commands about the machine |
//! | [`capabilities`], [`parameters`], [`address`], [`migrate`], [`progress`] | commands about snapshots |
//! | [`events`] | events, and the way out to the client |
//! | [`client`] | the other side, for `paguro snapshot` |

pub mod address;
pub mod args;
pub mod capabilities;
pub mod client;
pub mod commands;
mod error;
pub mod events;
pub mod migrate;
pub mod parameters;
pub mod progress;
pub mod server;
pub mod session;
pub mod splitter;
pub mod state;

use std::sync::Arc;

use paguro_migration::SnapshotOptions;
use paguro_vmm::Event;
use serde_json::json;

pub use args::Args;
pub use client::Client;
pub use error::{QmpError, with_causes};
pub use server::Socket;

use crate::guest::Guest;

/// What the commands work on.
pub struct Monitor {
    /// The guest.
    pub guest: Arc<Guest>,
    /// Its snapshots.
    pub migrations: migrate::Migrations,
    /// Where events go.
    pub events: Arc<events::Events>,
}

impl Monitor {
    /// For a guest whose snapshots have these options at first.
    pub fn new(guest: Arc<Guest>, options: SnapshotOptions) -> Self {
        Self {
            guest,
            migrations: migrate::Migrations::new(options),
            events: Arc::default(),
        }
    }

    /// Tells the client what the machine told.
    pub fn forward(&self, event: &Event) {
        match event {
            Event::Stopped => self.events.emit("STOP", None),
            Event::Resumed => self.events.emit("RESUME", None),
            Event::Shutdown { guest, reason } => {
                let data = json!({ "guest": guest, "reason": reason.name() });
                self.events.emit("SHUTDOWN", Some(data));
            }
            // It has told STOP, and `query-status` says the rest.
            other => tracing::debug!(?other, "the machine tells"),
        }
    }
}
