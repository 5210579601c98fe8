//! `migrate` and `migrate_cancel`: snapshots, one at a time, each in a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use paguro_migration::control::{Control, Status};
use paguro_migration::options::SnapshotOptions;
use serde_json::{Value, json};

use super::capabilities::Capabilities;
use super::commands::Answer;
use super::{Args, Monitor, QmpError, address};
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
    pub options: SnapshotOptions,
    /// The last migration.
    pub last: Option<Arc<Job>>,
}

/// One migration.
pub struct Job {
    /// How far it is.
    pub control: Control,
    /// Whether the guest ran on.
    pub background: bool,
    outcome: Mutex<Option<Outcome>>,
    /// Whether its end was told, which is the last thing that happens to it.
    told: Mutex<bool>,
    ended: Condvar,
}

/// What is left of a migration that ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The report of a snapshot that succeeded.
    pub report: Option<Value>,
    /// Why it did not.
    pub error: Option<String>,
    /// What the operator can do about it.
    pub hint: Option<String>,
}

impl Migrations {
    /// None yet; the next one with these options.
    pub fn new(options: SnapshotOptions) -> Self {
        Self {
            state: Mutex::new(State {
                capabilities: Capabilities::default(),
                options,
                last: None,
            }),
        }
    }

    /// To look at, and to change.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels what runs and waits for its end, but not for ever: the process is about to go.
    pub fn wind_up(&self, at_most: Duration) {
        let Some(job) = self.lock().last.clone() else {
            return;
        };
        job.control.cancel();
        let told = job.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = job.ended.wait_timeout_while(told, at_most, |told| !*told);
        if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::error!("a snapshot does not end although it was cancelled");
        }
    }
}

impl State {
    /// One at a time.
    pub fn refuse_if_busy(&self) -> Result<(), QmpError> {
        match &self.last {
            Some(job) if job.outcome().is_none() => {
                Err(QmpError::generic("There's a migration process in progress"))
            }
            _ => Ok(()),
        }
    }
}

impl Job {
    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs it, in its own thread.
    fn run(&self, guest: &Guest, path: &Path, options: &SnapshotOptions) {
        let outcome = match guest.snapshot(path, options, &self.control) {
            Ok(report) => Outcome {
                report: Some(report),
                ..Outcome::default()
            },
            Err(error) => Outcome {
                report: None,
                error: Some(format!("{error:#}")),
                hint: hints::hint(&error),
            },
        };
        *self.lock() = Some(outcome);
    }
}

/// `migrate`
pub fn migrate(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let path = address::file(&mut args)?;
    // QEMU takes it and ignores it; its human monitor needs it.
    args.boolean("detach")?;
    let resume = args.boolean("resume")?.unwrap_or(false);
    args.finish()?;
    if resume {
        return Err(QmpError::generic(
            "Cannot resume if there is no paused migration",
        ));
    }
    let mut migrations = monitor.migrations.lock();
    migrations.refuse_if_busy()?;
    if !migrations.capabilities.mapped_ram {
        return Err(QmpError::generic(
            "Migration to a file needs the capability 'mapped-ram': there are no streams yet",
        ));
    }
    monitor
        .guest
        .check_can_migrate()
        .map_err(QmpError::generic)?;
    let job = start(monitor, &migrations, path)?;
    migrations.last = Some(job);
    Ok(Answer::default())
}

/// `migrate_cancel`: no error if there is nothing to cancel.
pub fn cancel(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    if let Some(job) = &monitor.migrations.lock().last {
        job.control.cancel();
    }
    Ok(Answer::default())
}

fn start(monitor: &Monitor, set: &State, path: PathBuf) -> Result<Arc<Job>, QmpError> {
    let events = set.capabilities.events.then(|| monitor.events.clone());
    let tell = move |status: Status| {
        if let Some(events) = &events {
            events.emit("MIGRATION", Some(json!({ "status": status.name() })));
        }
    };
    let tell_end = tell.clone();
    // The end is told by the thread, when all that can be asked about it is there.
    let hook = move |status: Status| {
        if !status.is_final() {
            tell(status);
        }
    };
    let mut options = set.options.clone();
    options.background = set.capabilities.background_snapshot;
    let job = Arc::new(Job {
        control: Control::new(Some(Box::new(hook))),
        background: options.background,
        outcome: Mutex::new(None),
        told: Mutex::new(false),
        ended: Condvar::new(),
    });
    let (running, guest) = (job.clone(), monitor.guest.clone());
    let run = move || {
        running.run(&guest, &path, &options);
        tell_end(running.control.status());
        *running.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        running.ended.notify_all();
    };
    let spawned = std::thread::Builder::new()
        .name("migration".to_owned())
        .spawn(run);
    match spawned {
        Ok(_) => Ok(job),
        Err(error) => Err(QmpError::generic(format!(
            "no thread for the migration: {error}"
        ))),
    }
}
