//! `paguro soak`: tries a host with many machines, and every byte of them.
//!
//! A tool, of which the program has the command line: it starts machines of a [`Target`], tells a
//! [`Console`] what it finds, and its errors are for whoever reads them. It prints nothing itself.
//!
//! | room | for |
//! |---|---|
//! | `case` | one machine as a text that brings it back |
//! | `keys` | how such a text is told and read |
//! | `matrix` | which machines there are, and in which order they are tried |
//! | `walk` | what is done with one |
//! | `moves` | the same three for guests that move |
//! | `failures` | what befalls those at work meanwhile |
//! | `trial` | one of either kind |
//! | `pairs` | selections in which every two values meet |
//! | `load` | a busy host |
//! | `rng` | random numbers that a seed brings back |

#![forbid(unsafe_code)]

mod case;
mod failures;
mod keys;
mod load;
mod matrix;
mod moves;
mod pairs;
mod rng;
mod shape;
mod trial;
mod walk;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use paguro_lab::{Accel, Console, HugePages, Pages, Tally, host};
use paguro_sys::{Fallbacks, Host, Userfault};

use case::Case;
pub use failures::case::FailureCase;
pub use failures::{FailureOptions, run as failures};
use moves::case::{MoveCase, TrackerArg};
use rng::Rng;
pub use trial::Trial;
use walk::Walked;

/// Room for the files of one case.
const FILES_BYTES: u64 = 1 << 30;

/// The largest machine of a case.
const HUGE_BYTES: u64 = 64 << 20;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Target {
    /// The file of the program.
    pub program: PathBuf,
    /// What is broken in it on purpose: a name, or nothing.
    pub sabotage: &'static str,
    /// What the host is to be taken to lack.
    pub fallbacks: Fallbacks,
}

/// Which machines are tried, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of them in random order, again and again, for so long.
    For(Duration),
    /// All of them once.
    Full,
    /// A few in which every two properties meet, once.
    Pairwise,
}

/// How machines are tried.
#[derive(Clone, Debug)]
pub struct SoakOptions {
    /// What is tried.
    pub target: Target,
    /// Chooses the machines; drawn if there is none.
    pub seed: Option<u64>,
    /// How many.
    pub extent: Extent,
    /// They move to other processes, instead of being saved.
    pub migrate: bool,
    /// Instead of all that: these, once.
    pub cases: Vec<Trial>,
}

/// Tries machines; whether all was right and it was not interrupted. It ends at the first thing that is
/// not.
///
/// # Errors
///
/// Of the host and of the console. What is wrong with a machine is told to the console.
pub fn soak(options: &SoakOptions, console: &dyn Console) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let mut rng = Rng::new(seed);
    let mut soak = Soak {
        program: options.target.program(),
        seed,
        started: Instant::now(),
        runs: 0,
        tally: Tally::default(),
        console,
    };
    let dir = tempfile::Builder::new()
        .prefix("paguro-soak-")
        .tempdir_in(host::dir_for(FILES_BYTES))?;
    let right = if options.cases.is_empty() {
        let offer = Offer::look(&options.target.fallbacks);
        for reason in &offer.missing {
            console.print(&format!("skipped: {reason}"))?;
        }
        let list = |rng: &mut Rng, pairwise| offer.trials(rng, options.migrate, pairwise);
        match options.extent {
            Extent::For(until) => soak.walk(|| list(&mut rng, false), until, dir.path())?,
            Extent::Full => soak.once(&list(&mut rng, false), dir.path())?,
            Extent::Pairwise => soak.once(&list(&mut rng, true), dir.path())?,
        }
    } else {
        soak.once(&options.cases, dir.path())?
    };
    let Tally {
        pages_checked,
        wrong,
    } = soak.tally;
    let minutes = soak.started.elapsed().as_secs_f64() / 60.0;
    let runs = soak.runs;
    drop(dir);
    console.print(&format!(
        "soak: {runs} runs, {pages_checked} pages checked, {wrong} wrong, seed {seed}, \
         {minutes:.1} minutes"
    ))?;
    Ok(right)
}

impl Target {
    fn program(&self) -> Program<'_> {
        Program {
            file: &self.program,
            sabotage: self.sabotage,
        }
    }
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
struct Program<'a> {
    /// Its file.
    file: &'a Path,
    /// What is broken on purpose: a name, or nothing.
    sabotage: &'a str,
}

struct Soak<'a> {
    program: Program<'a>,
    seed: u64,
    started: Instant,
    runs: u64,
    tally: Tally,
    console: &'a dyn Console,
}

impl Soak<'_> {
    /// The full matrix in random order, again and again until the time is over. False at the
    /// first thing that is not right.
    fn walk(
        &mut self,
        mut all: impl FnMut() -> Vec<Trial>,
        until: Duration,
        dir: &Path,
    ) -> Result<bool> {
        self.console.begin("soak", until.as_secs());
        loop {
            for case in all() {
                let interrupted = self.console.is_interrupted();
                if self.started.elapsed() >= until || interrupted {
                    return Ok(!interrupted);
                }
                self.console.set(self.started.elapsed().as_secs());
                if !self.run(&case, dir)? {
                    return Ok(false);
                }
            }
        }
    }

    /// These cases, once.
    fn once(&mut self, cases: &[Trial], dir: &Path) -> Result<bool> {
        self.console.begin("soak", cases.len() as u64);
        for case in cases {
            if self.console.is_interrupted() || !self.run(case, dir)? {
                return Ok(false);
            }
            self.console.step();
        }
        Ok(true)
    }

    fn run(&mut self, case: &Trial, dir: &Path) -> Result<bool> {
        self.runs += 1;
        let started = Instant::now();
        let mut walked = Walked::default();
        let result = case.walk(self.program, dir, &mut walked);
        self.tally.pages_checked += walked.tally.pages_checked;
        self.tally.wrong += walked.tally.wrong;
        if result.is_err() && self.console.is_interrupted() && walked.tally.wrong == 0 {
            // What was interrupted in the middle says nothing about the engine.
            self.runs -= 1;
            self.say("interrupted")?;
            return Ok(false);
        }
        let notes = walked.notes.iter().map(|note| format!(" ({note})"));
        let verdict = if result.is_ok() { "right" } else { "WRONG" };
        let did = match case {
            Trial::Snapshots(_) => {
                format!("{} snapshots, {} returns", walked.snapshots, walked.returns)
            }
            Trial::Moves(_) => format!("{} moves, {} cancelled", walked.moves, walked.cancelled),
        };
        self.say(&format!(
            "[{}] {case}: {did}, {} pages {verdict}, {:.1} s{}",
            self.runs,
            walked.tally.pages_checked,
            started.elapsed().as_secs_f64(),
            notes.collect::<String>()
        ))?;
        let Err(error) = result else { return Ok(true) };
        self.say(&format!("not right: {error:#}"))?;
        let force = match self.program.sabotage {
            "" => String::new(),
            sabotage => format!("{}={sabotage} ", paguro_lab::machine::FORCE),
        };
        self.say(&format!(
            "to see it again: {force}paguro soak --case '{case}'   (it may take several tries; \
             the whole run: --seed {})",
            self.seed
        ))?;
        Ok(false)
    }

    fn say(&self, line: &str) -> Result<()> {
        self.console.print(line)?;
        Ok(())
    }
}

/// What this host offers, and what not, with the reason.
struct Offer {
    kvm: bool,
    kernel_faults: bool,
    userfaultfd: bool,
    huge: bool,
    wp_async: bool,
    dirty_ring: bool,
    missing: Vec<String>,
}

impl Offer {
    fn look(fallbacks: &Fallbacks) -> Self {
        let mut missing = Vec::new();
        let probed = Host::probe(fallbacks);
        let userfault = probed.userfault;
        let no_kvm = host::no_kvm();
        if let Some(error) = &no_kvm {
            missing.push(format!("accel=kvm: /dev/kvm cannot be used: {error}"));
        }
        // Two machines at a time, where guests move.
        let no_huge = HugePages::reserve(2 * HUGE_BYTES).err();
        if let Some(why) = &no_huge {
            missing.push(format!("pages=2m: {why}"));
        }
        if userfault == Userfault::UserMode {
            missing.push(
                "accel=kvm while it runs: this process may not handle page faults of the kernel"
                    .to_owned(),
            );
        }
        if userfault == Userfault::None {
            missing.push(
                "snapshots of running guests: this process may not use userfaultfd".to_owned(),
            );
        }
        let wp_async = probed.can_track();
        if !wp_async {
            missing.push("tracker=wp-async: this kernel has no WP_ASYNC".to_owned());
        }
        Self {
            wp_async,
            dirty_ring: !fallbacks.no_dirty_ring,
            kvm: no_kvm.is_none(),
            kernel_faults: userfault == Userfault::Full,
            userfaultfd: userfault != Userfault::None,
            huge: no_huge.is_none(),
            missing,
        }
    }

    /// What is tried, once.
    fn trials(&self, rng: &mut Rng, moves: bool, pairwise: bool) -> Vec<Trial> {
        let (saved, moving) = (
            |case: &Case| self.fits(case),
            |case: &MoveCase| self.lets_move(case),
        );
        let snapshots = |all: Vec<Case>| all.into_iter().map(Trial::Snapshots).collect();
        let journeys = |all: Vec<MoveCase>| all.into_iter().map(Trial::Moves).collect();
        match (moves, pairwise) {
            (false, false) => snapshots(matrix::full(rng, saved)),
            (false, true) => snapshots(matrix::pairwise(rng, saved)),
            (true, false) => journeys(moves::matrix::full(rng, moving)),
            (true, true) => journeys(moves::matrix::pairwise(rng, moving)),
        }
    }

    fn lets_move(&self, case: &MoveCase) -> bool {
        let tracks = match case.tracker {
            TrackerArg::WpAsync => self.wp_async,
            TrackerArg::Stage2 => true,
            TrackerArg::Ring => self.kvm && self.dirty_ring,
            _ => self.kvm,
        };
        tracks && (self.huge || case.pages != Pages::Huge)
    }

    fn fits(&self, case: &Case) -> bool {
        let freezes = case.force != "no-userfaultfd";
        let kvm = case.accel == Accel::Kvm;
        (self.kvm || !kvm)
            && (self.huge || case.pages != Pages::Huge)
            && (self.userfaultfd || !freezes)
            && (self.kernel_faults || !kvm || !freezes)
    }
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(1, |now| Rng::new(now.as_nanos() as u64).next() >> 32)
}
