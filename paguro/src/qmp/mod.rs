//! The control socket: the commands that `paguro-qmp` serves.
//!
//! QMP is what clients of QEMU speak, so existing ones work: field names, states and units are QEMU's
//! too. Where a room here deviates, it says so and
//! why. What is ours alone begins with `x-paguro-`:
//!
//! | command | answers |
//! |---|---|
//! | `x-paguro-query-ram` | `pid`, and per RAM block `name`, `guest-address`, `host-address`, `length` |
//! | `x-paguro-query-report` | the report of the last snapshot or migration, if it succeeded |
//! | `x-paguro-query-restore` | how far the RAM of a lazily restored machine is filled; of one that is mapped too, `failed-reads`, and `trouble` while its file cannot be read |
//! | `x-paguro-query-writers` | who writes guest RAM: `name`, `class` (`seen`, `drained`, `unseen`) |
//! | `x-paguro-query-machine` | what the machine is, how long it took to make, and what became of the output of its serial line: `written-bytes`, `lost-bytes` |
//! | `x-paguro-query-device-writers` | devices that write guest RAM: `writer`, `done` |
//! | `x-paguro-touch` | reads a byte of every page, so that all of RAM arrives |
//! | `x-paguro-collapse` | joins pages to huge ones now; `bytes` for which the kernel did |
//!
//! the argument `x-paguro-settings` of `migrate` ([`terms`]), and the parameters listed in
//! [`parameters`]. `query-migrate` has besides QEMU's fields
//!
//! | field | of | |
//! |---|---|---|
//! | `x-paguro-downtime-us` | both | QEMU's `downtime` counts whole milliseconds |
//! | `x-paguro-forced` | migrations | true: the time to converge was over, and the guest was stopped all the same |
//! | `x-paguro-expected-downtime-us`, `x-paguro-forecast-us` | migrations | the forecast of now, and that by which the guest was stopped |
//! | `x-paguro-advice` | migrations, both sides | `is`: what is so; `may`: what an operator may do |
//! | `x-paguro-faults`, `x-paguro-background` | snapshots | |
//! | `x-paguro-warning` | both | what could not be confirmed of one that is complete; not there if there is nothing |
//! | `x-paguro-not-resumed` | both | why the guest stands still although it was to run on here; not there if it runs |
//! | `x-paguro-error`, `x-paguro-hint` | both | `error-desc` without, and the hint that it has in parentheses, null if there is none |
//!
//! and one status, `x-paguro-in-doubt`: the permission to run was sent and not confirmed, or waited
//! for and not received. `query-status` has `x-paguro-reason` when the machine failed
//! (`internal-error`), and when it is stopped because a page of its snapshot file cannot be read
//! (`io-error`), which `cont` tries again.
//!
//! Otherwise than in QEMU, `mbps` and `expected-downtime` of a migration are of what the channel takes:
//! `max-bandwidth`, which does not count while the guest is stopped, is not in them. `precopy-bytes`
//! is 0 until the guest is stopped.
//!
//! | room | for |
//! |---|---|
//! | [`commands`] | the table of commands |
//! | [`state`] | commands about the machine |
//! | [`capabilities`], [`parameters`], [`settings`] | what is set for snapshots and migrations |
//! | [`terms`] | what counts of it for one of them |
//! | [`migrate`], [`address`], [`jobs`] | what leaves: starting, cancelling, its thread |
//! | [`hand_over`] | what leaves with its RAM |
//! | [`incoming`] | what comes in |
//! | [`progress`] | how far it is |
//! | [`rate`] | how fast the guest writes |
//! | [`events`] | events about migrations |

pub mod address;
pub mod capabilities;
pub mod commands;
pub mod events;
pub mod hand_over;
pub mod incoming;
pub mod jobs;
pub mod migrate;
pub mod parameters;
pub mod progress;
pub mod rate;
pub mod settings;
pub mod state;
pub mod terms;

use std::sync::Arc;

use paguro_migration::switchover::HeldState;
use paguro_vmm::Event;
use serde_json::{Value, json};

pub use paguro_qmp::{Args, QmpError, with_causes};

use crate::guest::Guest;
use capabilities::Capabilities;
use settings::Settings;

/// What the commands work on.
pub struct Monitor {
    /// The guest.
    pub guest: Arc<Guest>,
    /// Its snapshots and migrations.
    pub migrations: jobs::Migrations,
    /// Its coming in.
    pub arrivals: incoming::Arrivals,
    /// How fast it writes.
    pub rates: rate::Rates,
    /// Where events go.
    pub events: Arc<events::Events>,
}

impl paguro_qmp::Service for Monitor {
    fn commands(&self) -> &[(&'static str, paguro_qmp::Command<Self>)] {
        &commands::COMMANDS
    }

    fn version(&self) -> Value {
        commands::version()
    }

    fn events(&self) -> &paguro_qmp::Events {
        self.events.all()
    }

    fn asked(&self) {
        crate::reserve::refill();
    }

    fn client_gone(&self) {
        self.migrations.client_gone();
    }
}

impl Monitor {
    /// For a guest whose snapshots and migrations have these settings at first.
    pub fn new(guest: Arc<Guest>, settings: Settings, capabilities: Capabilities) -> Self {
        Self {
            guest,
            migrations: jobs::Migrations::new(settings, capabilities),
            arrivals: incoming::Arrivals::default(),
            rates: rate::Rates::default(),
            events: Arc::default(),
        }
    }

    /// What `query-status` says while the machine is held by a migration.
    pub fn held(&self) -> Option<HeldState> {
        let job = || self.migrations.last()?.held();
        self.arrivals.held().or_else(job)
    }

    /// Whether the machine may be saved or moved; if not, why.
    pub fn check_can_migrate(&self) -> Result<(), QmpError> {
        if self.arrivals.held().is_some() {
            return Err(QmpError::generic(
                "Guest is waiting for an incoming migration",
            ));
        }
        if self.rates.is_tracking() {
            return Err(QmpError::generic(
                "the dirty rate is being measured: writes can be tracked for one at a time",
            ));
        }
        self.guest.check_can_migrate().map_err(QmpError::generic)
    }

    /// Tells the client what the machine told.
    pub fn forward(&self, event: &Event) {
        match event {
            Event::Stopped => self.events.all().emit("STOP", None),
            Event::Resumed => self.events.all().emit("RESUME", None),
            Event::Shutdown { guest, reason } => {
                let data = json!({ "guest": guest, "reason": reason.name() });
                self.events.all().emit("SHUTDOWN", Some(data));
            }
            // It has told STOP, and `query-status` says the rest.
            other => tracing::debug!(?other, "the machine tells"),
        }
    }
}
