//! `paguro bench`. `bench snapshot`: what a background snapshot costs the guest, each number next to the
//! limit that the host sets for it in the same run.
//!
//! | room | for |
//! |---|---|
//! | `campaign` | what is measured, in which order |
//! | `plan` | how much of it |
//! | `run`, `series` | one snapshot, or several, and what the guest saw |
//! | `variant` | ways to take a snapshot that are compared |
//! | `limits`, `rig`, `disk` | the host's limits: bare faults, bare protection, plain writes |
//! | `setup`, `fill` | machines that are warm before they are measured |
//! | `busy` | neighbours that keep all cores busy |
//! | `load`, `noise` | who else used the cores meanwhile, and what the host takes itself |
//! | `report`, `stats` | the numbers, and what JSON has of them |
//! | `aims` | the aims, and whether they were reached |
//! | `table`, `text` | the tables, with a definition over each |
//! | `migrate` | the same for migrations |
//!
//! A tail is given next to that of an idle window of equal length in the same run; a claim rests on
//! the difference. The first thing measured is the ruler itself, and if it is wrong the run fails.
//!
//! A tool, of which the program has the command line: it tells a [`Console`] how far it is, its figures
//! are written to where the caller says, and its errors are for whoever reads them.

#![forbid(unsafe_code)]

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
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use paguro_lab::{Accel, Console, host};
use paguro_sys::{Fallbacks, Host};

use campaign::Campaign;
use load::Load;
pub use migrate::{Figures, Part};
use noise::Noise;
use report::HostFacts;
pub use report::Report;

/// How snapshots are measured.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// The file of the program.
    pub program: PathBuf,
    /// Fewer sizes and runs.
    pub quick: bool,
    /// Where files go when throughput is measured.
    pub dir: PathBuf,
}

/// How migrations are measured.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// The file of the program.
    pub program: PathBuf,
    /// Fewer sizes and runs.
    pub quick: bool,
    /// Only this.
    pub only: Option<Part>,
}

/// Measures snapshots.
///
/// # Errors
///
/// Something does not work or was interrupted. A ruler that is wrong is none, but in the report.
pub fn snapshot(options: &SnapshotOptions, console: &dyn Console) -> Result<Report> {
    let begin = Instant::now();
    let noise = Noise::measure();
    let load = Load::begin();
    let probed = Host::probe(&Fallbacks::default());
    let accel = accel(console);
    let SnapshotOptions {
        program,
        quick,
        dir,
    } = options;
    let campaign = Campaign::new(program, *quick, accel, probed, dir, console);
    let mut report = campaign.run()?;
    report.host = facts(&load, noise);
    report.aims = aims::judge(&report);
    report.took_s = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Measures migrations.
///
/// # Errors
///
/// As [`snapshot`].
pub fn migrate(options: &MigrateOptions, console: &dyn Console) -> Result<Figures> {
    let begin = Instant::now();
    let noise = Noise::measure();
    let load = Load::begin();
    let MigrateOptions {
        program,
        quick,
        only,
    } = options;
    let campaign = migrate::Campaign::new(program, *quick, *only, accel(console), console);
    let mut figures = campaign.run()?;
    figures.host = facts(&load, noise);
    figures.aims = migrate::judge(&figures);
    figures.took_s = begin.elapsed().as_secs_f64();
    Ok(figures)
}

impl Report {
    /// As tables.
    ///
    /// # Errors
    ///
    /// Of `out`.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        table::print(self, out)
    }
}

impl Figures {
    /// As tables.
    ///
    /// # Errors
    ///
    /// Of `out`.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        migrate::print(self, out)
    }
}

fn accel(console: &dyn Console) -> Accel {
    match host::no_kvm() {
        None => Accel::Kvm,
        Some(error) => {
            console.note(&format!(
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
