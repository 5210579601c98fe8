//! Commands about the machine itself: its run state, its name, its RAM, its end.

use std::time::{Duration, Instant};

use paguro_migration::switchover::{HeldState, MigrationStatus};
use paguro_vmm::{Accel, RunState, ShutdownCause};
use serde_json::{Value, json};

use super::commands::Answer;
use super::jobs::Work;
use super::{Args, Monitor, QmpError};

/// `query-status`
pub fn query_status(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let state = monitor.guest.vm().run_state();
    // A machine that has failed, or cannot go on, says so, whoever holds it.
    let down = matches!(
        state,
        RunState::InternalError | RunState::IoError | RunState::Shutdown
    );
    let held = monitor.held().filter(|_| !down);
    let name = held.map_or(state.name(), HeldState::name);
    let running = held.is_none() && state == RunState::Running;
    let mut status = json!({ "running": running, "status": name });
    if let Some(reason) = monitor.guest.trouble() {
        status["x-paguro-reason"] = reason.into();
    }
    Ok(status.into())
}

/// `stop`: no error if it is stopped.
pub fn stop(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    if monitor.arrivals.held().is_some() {
        monitor.arrivals.stop()?;
        return Ok(Answer::default());
    }
    monitor.guest.vm().stop()?;
    Ok(Answer::default())
}

/// What a migration may take to let the machine go, once it was told.
const LET_GO: Duration = Duration::from_secs(5);

/// `cont`: no error if it runs. A machine that a migration holds is the migration's to let go: one
/// that comes in will run when it may, or at once, if nobody knows any more whether it may.
pub fn cont(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    if monitor.arrivals.held().is_some() {
        let undecided = monitor.arrivals.is_in_doubt();
        monitor.arrivals.cont()?;
        if undecided {
            wait_while(|| monitor.arrivals.held().is_some());
        }
        return Ok(Answer::default());
    }
    let Some(job) = monitor.migrations.last().filter(|job| job.held().is_some()) else {
        monitor.guest.vm().cont()?;
        return Ok(Answer::default());
    };
    match &job.work {
        // It is winding up.
        Work::Migration(migration) if migration.status() == MigrationStatus::Completed => {
            job.wait_told(LET_GO);
        }
        Work::Migration(migration) => migration.cont().map_err(QmpError::generic)?,
        Work::Snapshot { .. } => {}
    }
    let vm = monitor.guest.vm();
    vm.cont()?;
    wait_while(|| vm.run_state() != RunState::Running);
    Ok(Answer::default())
}

/// Waits for something that others are about to do.
fn wait_while(condition: impl Fn() -> bool) {
    let until = Instant::now() + LET_GO;
    while condition() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `quit`: the answer goes out first, then the machine ends, and the program with it.
pub fn quit(_: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(Answer {
        after: Some(|monitor| monitor.guest.vm().quit(ShutdownCause::HostQmpQuit)),
        ..Answer::default()
    })
}

/// `query-name`
pub fn query_name(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(json!({ "name": monitor.guest.config().name }).into())
}

/// `query-kvm`
pub fn query_kvm(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let enabled = monitor.guest.config().accel == Accel::Kvm;
    Ok(json!({ "enabled": enabled, "present": std::path::Path::new("/dev/kvm").exists() }).into())
}

/// `x-paguro-query-ram`: where each RAM block stands in this process, for who reads it from
/// outside.
pub fn query_ram(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let ram = monitor.guest.ram();
    let blocks = ram.blocks().iter().map(|block| {
        json!({
            "name": block.id(),
            "guest-address": block.guest_address(),
            "host-address": block.mapping().addr(),
            "length": block.used_bytes(),
        })
    });
    Ok(json!({ "pid": std::process::id(), "blocks": Value::from_iter(blocks) }).into())
}

/// `x-paguro-query-restore`: how far the RAM of a restored machine is filled, and whether its file can
/// be read; `{}` if it does not need the file.
pub fn query_restore(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(monitor.guest.restore_progress().into())
}

/// `x-paguro-query-writers`: who writes guest RAM, and whether a freeze sees it.
pub fn query_writers(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(monitor.guest.writers().into())
}

/// `x-paguro-query-machine`: how long it took to make, in parts; what became of its output.
pub fn query_machine(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(monitor.guest.describe().into())
}

/// `x-paguro-query-device-writers`: devices that write guest RAM by themselves, each with the
/// number of its writes. Their memory agrees with it only while the machine is stopped.
pub fn query_device_writers(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(monitor.guest.device_writers().into())
}

/// `x-paguro-collapse`: makes huge pages now, for tests; the kernel does so for memfds only when
/// asked.
pub fn collapse(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(json!({ "bytes": monitor.guest.collapse() }).into())
}

/// `x-paguro-touch`: makes all of RAM arrive, for who reads it from outside.
pub fn touch(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let touched = monitor.guest.touch();
    touched.map_err(|error| QmpError::generic(format!("{error:#}")))?;
    Ok(Answer::default())
}
