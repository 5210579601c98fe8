//! `migrate`, `migrate_cancel` and `migrate-continue`.
//!
//! | `background-snapshot` | `mapped-ram` | `migrate` does |
//! |---|---|---|
//! | off | off | a migration: the guest moves while it runs, to any address |
//! | on | on | a snapshot to a file, while the guest runs on |
//! | off | on | a snapshot to a file of the guest, which is stopped for it and stays so |
//! | on | off | a snapshot as a stream, to any address, while the guest runs on; whoever loads it has a second guest |
//!
//! What is on and what is set may come with the command, for this one only ([`terms`](super::terms)).
//!
//! With the [parameter](super::parameters) `mode` set to `cpr-transfer` a migration hands RAM over
//! instead of copying it ([`hand_over`]).

use paguro_migration::switchover::MigrationStatus;

use super::address::Channels;
use super::commands::Answer;
use super::jobs::{Job, SnapshotTo, Work};
use super::terms::Terms;
use super::{Args, Monitor, QmpError, address, hand_over};

/// `migrate`
pub fn migrate(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let Channels { main: address, cpr } = address::channels(&mut args)?;
    // QEMU takes it and ignores it; its human monitor needs it.
    args.boolean("detach")?;
    // QEMU had them up to 9.0: clients that know it say that they do not want them.
    for gone in ["blk", "inc"] {
        if args.boolean(gone)? == Some(true) {
            return Err(QmpError::generic(format!(
                "Parameter '{gone}' does not accept value 'true': disks are not migrated"
            )));
        }
    }
    let resume = args.boolean("resume")?.unwrap_or(false);
    let own = args.object("x-paguro-settings")?;
    args.finish()?;
    if resume {
        return Err(QmpError::generic(
            "Cannot resume if there is no paused migration",
        ));
    }
    monitor.check_can_migrate()?;
    let mut migrations = monitor.migrations.lock();
    migrations.refuse_if_busy()?;
    let terms = Terms::take(monitor, &migrations, own)?;
    let mode = hand_over::mode(monitor, &terms, cpr)?;
    let Terms {
        capabilities,
        settings,
        on_disconnect,
    } = terms;
    let (mapped_ram, background) = (capabilities.mapped_ram, capabilities.background_snapshot);
    let job = if mapped_ram || background {
        let to = if mapped_ram {
            SnapshotTo::File(address::file(address)?)
        } else {
            SnapshotTo::Stream(address, settings.channel_options()?)
        };
        let mut options = settings.snapshot;
        options.background = background;
        Job::snapshot(monitor, to, options, on_disconnect)?
    } else {
        let options = settings.migrate_options(capabilities, address, mode)?;
        Job::migration(monitor, options, on_disconnect)?
    };
    migrations.last = Some(job);
    Ok(Answer::default())
}

/// `migrate_cancel`: no error if there is nothing to cancel.
pub fn cancel(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    if let Some(job) = monitor.migrations.last() {
        job.cancel()?;
    }
    Ok(Answer::default())
}

/// `migrate-continue`: in `pre-switchover`, and in doubt, where it means that the guest shall move
/// on once the destination can be reached.
pub fn proceed(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let expected = args.string("state")?;
    let expected = args.need("state", expected)?;
    args.finish()?;
    // Others of QEMU's are known, and are never those in which anything is waited for.
    let waits = [MigrationStatus::PreSwitchover, MigrationStatus::InDoubt];
    let waited = waits.iter().any(|status| status.name() == expected);
    if !waited && !OTHER_STATES.contains(&expected.as_str()) {
        return Err(QmpError::generic(format!(
            "Parameter 'state' does not accept value '{expected}'"
        )));
    }
    let job = monitor.migrations.last();
    let now = job.as_ref().map_or("none", |job| job.status());
    match job.as_ref().map(|job| &job.work) {
        Some(Work::Migration(migration)) if waited && now == expected => {
            migration.proceed().map_err(QmpError::generic)?;
            Ok(Answer::default())
        }
        _ => Err(QmpError::generic(format!(
            "Migration not in expected state: {now}"
        ))),
    }
}

/// QEMU's states of a migration in which nobody is waited for.
const OTHER_STATES: [&str; 14] = [
    "none",
    "setup",
    "cancelling",
    "cancelled",
    "active",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover-setup",
    "postcopy-recover",
    "completed",
    "failed",
    "colo",
    "device",
    "wait-unplug",
];
