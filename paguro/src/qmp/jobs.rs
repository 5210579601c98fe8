//! Snapshots and migrations of this machine, one at a time, each in a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use paguro_migration::channel::{self, Address, Stop};
use paguro_migration::control::{Control, Status};
use paguro_migration::options::SnapshotOptions;
use paguro_migration::source::{MigrateOptions, Migration};
use paguro_migration::switchover::{HeldState, MigrationStatus};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::Value;

use super::capabilities::Capabilities;
use super::events::Events;
use super::settings::Settings;
use super::{Monitor, QmpError};
use crate::cli::OnDisconnect;
use crate::guest::Guest;
use crate::hints;

/// What was set for migrations, and the one that runs or ran last.
pub struct Migrations {
    state: Mutex<State>,
}

/// What [`Migrations::lock`] gives.
pub struct State {
    /// What `migrate-set-capabilities` switched on.
    pub capabilities: Capabilities,
    /// What `migrate-set-parameters` set.
    pub settings: Settings,
    /// The last one.
    pub last: Option<Arc<Job>>,
}

/// One snapshot or migration.
pub struct Job {
    /// What it is.
    pub work: Work,
    on_disconnect: OnDisconnect,
    outcome: Mutex<Option<Outcome>>,
    /// Whether its end was told, which is the last thing that happens to it.
    told: Mutex<bool>,
    ended: Condvar,
}

/// What others see of what a job does; its thread has its own hold on it.
pub enum Work {
    /// Saves the machine to a file.
    Snapshot {
        /// How far it is.
        control: Arc<Control>,
        /// Whether the guest runs on.
        background: bool,
        /// Ends what waits for a channel.
        stop: Option<Stop>,
    },
    /// Moves the machine to another process.
    Migration(Arc<Migration>),
}

/// Where a snapshot goes.
pub enum SnapshotTo {
    /// To a file in which each page has its place.
    File(PathBuf),
    /// To anywhere.
    Stream(Address, channel::Options),
}

fn cancel(control: &Control, stop: Option<&Stop>) {
    control.cancel();
    if let Some(stop) = stop {
        stop.stop();
    }
}

/// What is left of a job that ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The report of one that succeeded.
    pub report: Option<Value>,
    /// Why it did not.
    pub error: Option<String>,
    /// What the operator can do about it.
    pub hint: Option<String>,
}

impl Outcome {
    /// Of what succeeded, with its report.
    fn success(report: Value) -> Self {
        Self {
            report: Some(report),
            ..Self::default()
        }
    }

    /// Of what goes on, and has come upon an error.
    pub fn unfinished(error: Option<impl std::error::Error + Send + Sync + 'static>) -> Self {
        Self {
            error: error.map(|error| format!("{:#}", anyhow::Error::new(error))),
            ..Self::default()
        }
    }

    /// Of an error.
    pub fn of(error: &anyhow::Error) -> Self {
        Self {
            report: None,
            error: Some(format!("{error:#}")),
            hint: hints::hint(error),
        }
    }

    /// Of the error of a migration to there.
    pub fn of_migration(error: &anyhow::Error, to: &Address) -> Self {
        Self {
            hint: hints::hint_to(error, to),
            ..Self::of(error)
        }
    }
}

impl Migrations {
    /// None yet; the next one with these settings.
    pub fn new(settings: Settings, capabilities: Capabilities) -> Self {
        Self {
            state: Mutex::new(State {
                capabilities,
                settings,
                last: None,
            }),
        }
    }

    /// To look at, and to change.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The last one.
    pub fn last(&self) -> Option<Arc<Job>> {
        self.lock().last.clone()
    }

    /// The client is gone: ends what was to end with it.
    pub fn client_gone(&self) {
        let Some(job) = self.last() else { return };
        let left_alone = job.is_left_to_the_operator() || job.is_permitted();
        if job.on_disconnect == OnDisconnect::Continue || job.is_over() || left_alone {
            return;
        }
        tracing::warn!("the client is gone that began it: what it began is cancelled");
        if let Err(error) = job.cancel() {
            tracing::warn!(error = error.desc, "it goes on: it came too late");
        }
    }

    /// Ends what runs and waits for that, but not for ever: the process is about to go.
    pub fn wind_up(&self, at_most: Duration) {
        let Some(job) = self.last() else {
            return;
        };
        match &job.work {
            Work::Snapshot { control, stop, .. } => cancel(control, stop.as_ref()),
            Work::Migration(migration) => migration.quit(),
        }
        if !job.wait_told(at_most) {
            tracing::error!("a migration does not end although the process is to end");
        }
    }
}

impl State {
    /// One at a time.
    pub fn refuse_if_busy(&self) -> Result<(), QmpError> {
        match &self.last {
            Some(job) if !job.is_over() => {
                Err(QmpError::generic("There's a migration process in progress"))
            }
            _ => Ok(()),
        }
    }
}

impl Job {
    /// Starts a snapshot.
    pub fn snapshot(
        monitor: &Monitor,
        to: SnapshotTo,
        options: SnapshotOptions,
        on_disconnect: OnDisconnect,
    ) -> Result<Arc<Self>, QmpError> {
        let events = monitor.events.clone();
        // The end is told by the thread, when all that can be asked about it is there.
        let hook = move |status: Status| {
            if !status.is_final() {
                events.migration(status.name());
            }
        };
        let control = Arc::new(Control::new(Some(Box::new(hook))));
        let work = Work::Snapshot {
            control: control.clone(),
            background: options.background,
            stop: match &to {
                SnapshotTo::File(_) => None,
                SnapshotTo::Stream(_, channel) => Some(channel.stop.clone()),
            },
        };
        Self::start(monitor, work, on_disconnect, move |guest| {
            let saved = match &to {
                SnapshotTo::File(path) => guest.snapshot(path, &options, &control),
                SnapshotTo::Stream(address, channel) => {
                    guest.snapshot_to_stream(address, channel, &options, &control)
                }
            };
            saved.map_err(|error| Outcome::of(&error))
        })
    }

    /// Starts a migration.
    pub fn migration(
        monitor: &Monitor,
        options: MigrateOptions,
        on_disconnect: OnDisconnect,
    ) -> Result<Arc<Self>, QmpError> {
        options
            .check()
            .map_err(|error| QmpError::generic(error.to_string()))?;
        let events = monitor.events.clone();
        // A source that resumed may go on telling its destination so; nobody need wait for that.
        let hook = move |status: MigrationStatus| {
            if status != MigrationStatus::Completed {
                events.migration(status.name());
            }
        };
        let events = monitor.events.clone();
        let migration = Migration::new(&options, Some(Box::new(hook)))?
            .on_pass(move |number| events.migration_pass(number));
        let migration = Arc::new(migration);
        // It begins so, which is no change.
        monitor.events.migration(migration.status().name());
        let work = Work::Migration(migration.clone());
        Self::start(monitor, work, on_disconnect, move |guest| {
            let moved = guest.migrate(&options, &migration);
            moved.map_err(|error| Outcome::of_migration(&error, migration.address()))
        })
    }

    fn start(
        monitor: &Monitor,
        work: Work,
        on_disconnect: OnDisconnect,
        body: impl FnOnce(&Guest) -> Result<Value, Outcome> + Send + 'static,
    ) -> Result<Arc<Self>, QmpError> {
        let job = Arc::new(Self {
            work,
            on_disconnect,
            outcome: Mutex::new(None),
            told: Mutex::new(false),
            ended: Condvar::new(),
        });
        let (running, guest, events) = (job.clone(), monitor.guest.clone(), monitor.events.clone());
        let run = move || {
            let outcome = match body(&guest) {
                Ok(report) => Outcome::success(report),
                Err(failure) => failure,
            };
            running.end(&events, outcome);
        };
        let spawned = paguro_sys::NewThread::named("migration".to_owned()).spawn(run);
        match spawned {
            Ok(_) => Ok(job),
            Err(error) => Err(QmpError::generic(format!(
                "no thread for the migration: {error}"
            ))),
        }
    }

    /// It has come to its end, in its own thread.
    fn end(&self, events: &Events, outcome: Outcome) {
        let told = self.is_over();
        *self.outcome.lock() = Some(outcome);
        if !told {
            events.migration(self.status());
        }
        *self.told.lock() = true;
        self.ended.notify_all();
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().clone()
    }

    /// QEMU's name for where it is. One whose thread has not come to its end shows no final state:
    /// a client that reads `completed` may start the next one.
    pub fn status(&self) -> &'static str {
        // In this order: what has an outcome has its last status too.
        let ended = self.outcome().is_some();
        match &self.work {
            Work::Snapshot { control, .. } => match control.status() {
                Status::None => Status::Setup,
                Status::Completed | Status::Failed if !ended => Status::Device,
                Status::Cancelled if !ended => Status::Cancelling,
                other => other,
            }
            .name(),
            Work::Migration(migration) => match migration.status() {
                MigrationStatus::Completed if !ended => MigrationStatus::Device,
                // It was ended while it could have gone on.
                MigrationStatus::None => MigrationStatus::Failed,
                other => other,
            }
            .name(),
        }
    }

    /// `migrate_cancel`: no error if it has ended.
    pub fn cancel(&self) -> Result<(), QmpError> {
        match &self.work {
            Work::Snapshot { control, stop, .. } => cancel(control, stop.as_ref()),
            Work::Migration(migration) if !self.is_over() => {
                migration.cancel().map_err(QmpError::generic)?;
            }
            Work::Migration(_) => {}
        }
        Ok(())
    }

    /// Whether it does not go on before an operator has said how: nobody knows where the guest may
    /// run, or he wanted to be asked.
    fn is_left_to_the_operator(&self) -> bool {
        match &self.work {
            Work::Migration(migration) => matches!(
                migration.status(),
                MigrationStatus::InDoubt | MigrationStatus::PreSwitchover
            ),
            Work::Snapshot { .. } => false,
        }
    }

    /// Whether the guest may run elsewhere, of which an operator says what is to be, and no mishap.
    fn is_permitted(&self) -> bool {
        match &self.work {
            Work::Migration(migration) => migration.is_permitted(),
            Work::Snapshot { .. } => false,
        }
    }

    /// What `query-status` says while it holds the machine.
    pub fn held(&self) -> Option<HeldState> {
        match &self.work {
            Work::Migration(migration) if self.outcome().is_none() => migration.held(),
            _ => None,
        }
    }

    /// Whether another one may begin.
    pub fn is_over(&self) -> bool {
        let resumed = match &self.work {
            Work::Migration(migration) => matches!(
                migration.status(),
                MigrationStatus::Failed | MigrationStatus::Cancelled
            ),
            Work::Snapshot { .. } => false,
        };
        resumed || self.outcome.lock().is_some()
    }

    /// Waits for its end; whether that came.
    pub fn wait_told(&self, at_most: Duration) -> bool {
        let mut told = self.told.lock();
        let untold = |told: &mut bool| !*told;
        self.ended.wait_while_for(&mut told, untold, at_most);
        *told
    }
}
