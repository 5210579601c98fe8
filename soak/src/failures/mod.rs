//! `paguro soak --failures`: what befalls processes while guests are saved, come back and move.
//!
//! Each trial runs a machine, begins something by the commands that a user has, and at a random moment
//! deals a blow to one of those at work: a signal, a limit of a process or a cgroup, a disk that is full
//! or cannot be written. Then this must hold:
//!
//! - No guest is lost but by SIGKILL, by an end that was asked for, and by the OOM killer; those who are
//!   asked to end do so in order.
//! - Never do two run ([`paguro_lab::watch`]).
//! - A file under the final name is whole and right; else the older one is there, and nothing besides.
//! - Nothing that was set for migrations has changed on a machine that lives.
//! - A guest that lives is right in every page, runs on, and can be saved.
//! - Nobody waits for ever: each wait here ends, and is then a fault.
//!
//! | room | for |
//! |---|---|
//! | [`case`], [`matrix`] | what is tried |
//! | [`blow`] | what befalls a process; [`cgroup`] and [`disk`] for what it takes |
//! | [`scene`] | what must hold of a machine that lives |
//! | [`saving`], [`restoring`], [`moving`] | the three kinds of work |
//! | [`command`] | the program's commands as processes |

mod blow;
pub mod case;
mod cgroup;
mod command;
mod disk;
pub mod matrix;
mod moving;
mod restoring;
mod saving;
mod scene;

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, Result};
use paguro_lab::{Accel, Console, Tally, host};

use super::rng::Rng;
use super::{Offer, Program, Target, seed_of_now};
use case::{FailureCase, Fault, Kind, Work};
use scene::Scene;

/// Room for the files of one case.
const FILES_BYTES: u64 = 512 << 20;

/// How the campaign is run.
#[derive(Clone, Debug)]
pub struct FailureOptions {
    /// What is tried.
    pub target: Target,
    /// Chooses the cases; drawn if there is none.
    pub seed: Option<u64>,
    /// All of them, instead of a selection.
    pub full: bool,
    /// Begins with the case of this number, from 1.
    pub from: usize,
    /// Instead of all that: these.
    pub cases: Vec<FailureCase>,
    /// The command that runs all of it again, for a process that has not yet mounts of its own: as
    /// root it becomes that command, in a mount namespace.
    pub again: Option<Vec<OsString>>,
}

/// Runs the campaign; whether all was right and it was not interrupted. One that went wrong does not end
/// it: the next may, too.
///
/// # Errors
///
/// Of the console. What is wrong is told to it.
pub fn run(options: &FailureOptions, console: &dyn Console) -> Result<bool> {
    let started = Instant::now();
    let program = options.target.program();
    let mut missing = Missing::look(options.again.as_deref());
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let mut rng = Rng::new(seed);
    let offer = Offer::look(&options.target.fallbacks);
    missing.reasons.extend(offer.missing.iter().cloned());
    let fits = |case: &FailureCase| missing.fits(case) && offer.lets_fail(case);
    // What this host cannot do has its number all the same, so that a seed means the same everywhere.
    let cases = match (&options.cases[..], options.full) {
        ([], true) => matrix::full(&mut rng, |_| true),
        ([], false) => matrix::pairwise(&mut rng, |_| true),
        (given, _) => given.to_vec(),
    };
    for reason in &missing.reasons {
        console.print(&format!("skipped: {reason}"))?;
    }
    console.begin("failures", cases.len() as u64);
    let (mut runs, mut failed, mut skipped) = (0, 0, 0);
    let mut tally = Tally::default();
    for (number, case) in (1..).zip(&cases).skip(options.from.saturating_sub(1)) {
        if console.is_interrupted() {
            break;
        }
        console.step();
        if !fits(case) {
            skipped += 1;
            continue;
        }
        let began = Instant::now();
        let (outcome, result) = one(case, program, &offer, &mut tally);
        if console.is_interrupted() && result.is_err() {
            break;
        }
        runs += 1;
        let count = cases.len();
        let took_s = began.elapsed().as_secs_f64();
        let say = |line: String| console.print(&line);
        let Err(error) = result else {
            say(format!(
                "[{number}/{count}] {case}: {outcome}, right, {took_s:.1} s"
            ))?;
            continue;
        };
        failed += 1;
        let force = match program.sabotage {
            "" => String::new(),
            sabotage => format!("{}={sabotage} ", paguro_lab::machine::FORCE),
        };
        say(format!(
            "[{number}/{count}] {case}: {outcome}, WRONG, {took_s:.1} s\nnot right: {error:#}\n\
             to see it again: {force}paguro soak --failure '{case}'   (it may take several tries)"
        ))?;
    }
    if console.is_interrupted() {
        console.print("interrupted")?;
    }
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    console.print(&format!(
        "soak: {runs} runs, {} pages checked, {} wrong, {failed} failed, {skipped} skipped, seed {seed}, \
         {minutes:.1} minutes",
        tally.pages_checked,
        tally.wrong,
    ))?;
    Ok(failed == 0 && !console.is_interrupted())
}

/// Runs a case: how it came out in a word, and whether all is right.
fn one(
    case: &FailureCase,
    program: Program<'_>,
    offer: &Offer,
    tally: &mut Tally,
) -> (String, Result<()>) {
    // Files in memory would count for whom memory is limited.
    let place = match case.fault {
        Fault::CgroupMemory => std::env::temp_dir(),
        _ => host::dir_for(FILES_BYTES),
    };
    let dir = tempfile::Builder::new()
        .prefix("paguro-soak-")
        .tempdir_in(place);
    let dir = match dir.context("no place for files") {
        Ok(dir) => dir,
        Err(error) => return (String::new(), Err(error)),
    };
    let mut scene = Scene {
        case: *case,
        rng: Rng::new(case.seed),
        dir: dir.path(),
        program,
        freezes: offer.freezes(case.accel),
        tally,
        outcome: "no outcome".to_owned(),
    };
    let result = match case.work {
        Work::Restore => restoring::run(&mut scene),
        Work::Move => moving::run(&mut scene),
        _ => saving::run(&mut scene),
    };
    (scene.outcome, result)
}

/// What cannot be done to processes here, and why.
struct Missing {
    kinds: Vec<Kind>,
    faults: Vec<Fault>,
    reasons: Vec<String>,
}

impl Missing {
    fn look(again: Option<&[OsString]>) -> Self {
        let mut missing = Self {
            kinds: Vec::new(),
            faults: Vec::new(),
            reasons: Vec::new(),
        };
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            missing.faults.push(Fault::Threads);
            let why = "fault=threads: RLIMIT_NPROC does not bind root; cgroup-pids does";
            missing.reasons.push(why.to_owned());
        }
        let disk = if is_root {
            disk::apart(again).and_then(|()| disk::try_one().map_err(|error| format!("{error:#}")))
        } else {
            Err("only root may mount file systems".to_owned())
        };
        if let Err(why) = disk {
            missing.kinds.push(Kind::Disk);
            missing
                .reasons
                .push(format!("fault=disk-full, fault=disk-read-only: {why}"));
        }
        for (fault, resource) in [
            (Fault::CgroupMemory, cgroup::Resource::Memory),
            (Fault::CgroupPids, cgroup::Resource::Pids),
        ] {
            if let Err(error) = cgroup::Cgroup::new(resource) {
                missing.faults.push(fault);
                let name = paguro_lab::Choice::name(fault);
                missing
                    .reasons
                    .push(format!("fault={name}: no cgroup can be made: {error}"));
            }
        }
        missing
    }

    fn fits(&self, case: &FailureCase) -> bool {
        !self.kinds.contains(&case.fault.kind()) && !self.faults.contains(&case.fault)
    }
}

impl Offer {
    /// Whether a guest can be saved while it runs.
    fn freezes(&self, accel: Accel) -> bool {
        self.userfaultfd && (self.kernel_faults || accel != Accel::Kvm)
    }

    fn lets_fail(&self, case: &FailureCase) -> bool {
        let is_kvm = case.accel == Accel::Kvm;
        let tracks = is_kvm || self.wp_async || case.work != Work::Move;
        let freezes = self.freezes(case.accel) || case.work != Work::Snapshot;
        (self.kvm || !is_kvm) && tracks && freezes
    }
}
