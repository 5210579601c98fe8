//! A guest comes back out of a file.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use paguro_lab::machine::Parameters;
use paguro_lab::process::EndedEarly;
use paguro_lab::{Machine, Prefetch, ProgressFile, RestoreMode, check_file};

use super::blow::Blow;
use super::case::{Kind, Party};
use super::scene::Scene;
use crate::walk::follow;

/// Runs a case.
pub fn run(scene: &mut Scene<'_>) -> Result<()> {
    let memory_bytes = scene.memory_bytes();
    let mut blow = Blow::draw(&scene.case, &mut scene.rng, memory_bytes)?;
    let mut options = scene.machine(memory_bytes, &blow);
    let through = std::mem::take(&mut options.through);
    let file = scene.dir.join("a.snap");
    let (mut source, _) = scene.source(&options)?;
    source.snapshot(&file, &Parameters::new(), scene.freezes)?;
    source.quit()?;
    let saved = check_file(&file)?;
    scene.tally.add("the file", &saved)?;
    let modes = if scene.freezes {
        &[RestoreMode::Lazy, RestoreMode::Map, RestoreMode::Eager][..]
    } else {
        &[RestoreMode::Map, RestoreMode::Eager]
    };
    let mode = scene.rng.pick(modes);
    let prefetch = if scene.rng.one_in(2) {
        Prefetch::Limited(64 << 20)
    } else {
        Prefetch::Unlimited
    };
    let mut options = options.restored(&file, mode, prefetch);
    options.through = through;
    let progress = Arc::new(ProgressFile::create(options.cpus)?);
    let started = std::thread::scope(|scope| {
        let mut strikes = None;
        let moment = blow.moment;
        let blow = &mut blow;
        let started = Machine::start_met(&options, progress, |pid| {
            strikes = Some(scope.spawn(move || {
                std::thread::sleep(moment);
                blow.strike(pid, None)
            }));
        });
        let struck = strikes.map(|thread| thread.join());
        match struck {
            Some(Ok(struck)) => struck?,
            _ => bail!("the thread that strikes panicked"),
        }
        Ok(started)
    })?;
    blow.lift(None)?;
    let mut machine = match started {
        Ok(machine) => machine,
        Err(error) => return died_early(scene, &blow, error),
    };
    if !blow.outlived(&mut machine, Party::Machine)? {
        scene.outcome = "machine gone, file whole".to_owned();
        return still_right(scene, &file);
    }
    scene.outcome = "machine lives".to_owned();
    machine.wait_status("running")?;
    if mode == RestoreMode::Lazy {
        machine.wait_filled().context("filling the machine")?;
    }
    machine.stop()?;
    let report = machine.check_ram()?;
    scene.tally.add("the restored machine", &report)?;
    follow(&saved, &report, "in the restored machine", false)?;
    machine.cont()?;
    if mode == RestoreMode::Map {
        // What is behind it may be nothing that can be frozen.
        scene.is_whole(&mut machine, "the restored machine")?;
        machine.quit()?;
    } else {
        scene.goes_on(machine, "the restored machine")?;
    }
    still_right(scene, &file)
}

/// It never had a guest that ran: the guest is in the file.
fn died_early(scene: &mut Scene<'_>, blow: &Blow, error: anyhow::Error) -> Result<()> {
    let Some(EndedEarly(status)) = error.downcast_ref::<EndedEarly>() else {
        return Err(error);
    };
    let text = format!("{error:#}");
    // A signal that comes before the program catches any has the kernel's default.
    let by_signal = status.signal().is_some();
    let allowed = match scene.case.fault.kind() {
        Kind::Ending | Kind::Idle => by_signal || status.success(),
        Kind::Unseen => by_signal,
        Kind::Limit | Kind::Cgroup => status.code().is_some_and(|code| code != 0) || blow.killed(),
        Kind::Disk => false,
    };
    if !allowed || text.contains("panicked") {
        return Err(anyhow!("it did not start: {text}"));
    }
    scene.outcome = format!("did not start: {status}");
    still_right(scene, &scene.dir.join("a.snap"))
}

fn still_right(scene: &mut Scene<'_>, file: &std::path::Path) -> Result<()> {
    let report = check_file(file)?;
    scene.tally.add("the file, afterwards", &report)
}
