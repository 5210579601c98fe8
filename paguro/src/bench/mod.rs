//! `paguro bench`. `bench snapshot`: what a background snapshot costs the guest, each number next to the
//! limit that the host sets for it in the same run.
//!
//! | room | for |
//! |---|---|
//! | [`campaign`] | what is measured, in which order |
//! | [`plan`] | how much of it |
//! | [`run`], [`series`] | one snapshot, or several, and what the guest saw |
//! | [`variant`] | ways to take a snapshot that are compared |
//! | [`limits`], [`rig`], [`disk`] | the host's limits: bare faults, bare protection, plain writes |
//! | [`setup`], [`fill`] | machines that are warm before they are measured |
//! | [`busy`] | neighbours that keep all cores busy |
//! | [`load`], [`noise`] | who else used the cores meanwhile, and what the host takes itself |
//! | [`report`], [`stats`] | the numbers, and what JSON has of them |
//! | [`aims`] | the aims, and whether they were reached |
//! | [`table`], [`text`] | the tables, with a definition over each |
//! | [`mod@migrate`] | the same for migrations |
//!
//! A tail is given next to that of an idle window of equal length in the same run; a claim rests on
//! the difference. The first thing measured is the ruler itself, and if it is wrong the run fails.

mod aims;
mod busy;
mod campaign;
mod disk;
mod fill;
mod limits;
mod load;
mod migrate;
mod noise;
mod plan;
mod report;
mod rig;
mod run;
mod series;
mod setup;
mod stats;
mod table;
mod text;
mod variant;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use paguro_lab::{Accel, host};
use paguro_sys::Host;

use crate::cli::{BenchMigrateArgs, BenchSnapshotArgs};
use crate::force::Forced;
use crate::hints::Advised;
use crate::interrupt::{Again, Interrupts};
use crate::log;
use campaign::Campaign;
use load::Load;
use noise::Noise;
use report::HostFacts;

/// `paguro bench snapshot`
pub fn snapshot(args: &BenchSnapshotArgs, forced: &Forced) -> Result<ExitCode> {
    refuse_forced(forced)?;
    let interrupts = Interrupts::catch(Again::Leaves)?;
    let begin = Instant::now();
    let noise = Noise::measure();
    let load = Load::begin();
    let probed = Host::probe(&forced.fallbacks);
    let accel = accel();
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let campaign = Campaign::new(
        crate::program()?,
        args.quick,
        accel,
        probed,
        &dir,
        &interrupts,
    );
    let mut report = campaign.run()?;
    report.host = facts(&load, noise);
    report.aims = aims::judge(&report);
    report.took_s = begin.elapsed().as_secs_f64();
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        table::print(&report, &mut out)?;
    }
    Ok(verdict(report.ruler.is_right))
}

/// `paguro bench migrate`
pub fn migrate(args: &BenchMigrateArgs, forced: &Forced) -> Result<ExitCode> {
    refuse_forced(forced)?;
    let interrupts = Interrupts::catch(Again::Leaves)?;
    let begin = Instant::now();
    let noise = Noise::measure();
    let load = Load::begin();
    let mut figures = migrate::Campaign::new(
        crate::program()?,
        args.quick,
        args.only,
        accel(),
        &interrupts,
    )
    .run()?;
    figures.host = facts(&load, noise);
    figures.aims = migrate::judge(&figures);
    figures.took_s = begin.elapsed().as_secs_f64();
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &figures)?;
        writeln!(out)?;
    } else {
        migrate::print(&figures, &mut out)?;
    }
    Ok(verdict(figures.ruler.is_right))
}

fn refuse_forced(forced: &Forced) -> Result<()> {
    if *forced != Forced::default() {
        return Err(Advised::error(
            "figures of a host that pretends to be another say nothing",
            format!("leave out {}", crate::force::VARIABLE),
        ));
    }
    Ok(())
}

fn accel() -> Accel {
    match host::no_kvm() {
        None => Accel::Kvm,
        Some(error) => {
            log::say(format_args!(
                "no KVM here ({error}): threads of the process do the guest's work"
            ));
            Accel::Threads
        }
    }
}

fn facts(load: &Load, noise: Noise) -> HostFacts {
    HostFacts {
        noise: noise.and(Noise::measure()),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned()),
        others_share: load.others_share(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        files_in: host::memory_dir().display().to_string(),
    }
}

fn verdict(ruler_is_right: bool) -> ExitCode {
    if ruler_is_right {
        ExitCode::SUCCESS
    } else {
        log::say(format_args!(
            "paguro: the ruler is wrong: the numbers cannot be trusted"
        ));
        ExitCode::FAILURE
    }
}
