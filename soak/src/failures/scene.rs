//! What all trials have in common: how machines are, and what must hold of one that lives.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use paguro_lab::machine::Parameters;
use paguro_lab::process::{IN_VAIN, POLL};
use paguro_lab::{Machine, MachineOptions, Tally, check_file};
use paguro_workload::Spec;
use serde_json::{Value, json};

use super::blow::Blow;
use super::case::{FailureCase, Party};
use crate::Program;
use crate::case::PATTERNS;
use crate::rng::Rng;

/// RAM of a machine.
const MEMORY_BYTES: [u64; 3] = [16 << 20, 32 << 20, 48 << 20];

/// A migration of which nobody knows how it went.
pub const IN_DOUBT: &str = "x-paguro-in-doubt";

/// One trial.
pub(crate) struct Scene<'a> {
    /// What is tried.
    pub case: FailureCase,
    /// What the case leaves open.
    pub rng: Rng,
    /// For files.
    pub dir: &'a Path,
    /// What is tried.
    pub program: Program<'a>,
    /// A guest can be saved while it runs.
    pub freezes: bool,
    /// Pages compared.
    pub tally: &'a mut Tally,
    /// How it came out, in a word.
    pub outcome: String,
}

impl Scene<'_> {
    /// RAM of its machines.
    pub fn memory_bytes(&mut self) -> u64 {
        self.rng.pick(&MEMORY_BYTES)
    }

    /// The machine that has the guest at first.
    pub fn machine(&mut self, memory_bytes: u64, blow: &Blow) -> MachineOptions {
        let rng = &mut self.rng;
        let workload = Spec {
            pattern: rng.pick(&PATTERNS),
            rate_pages_per_s: rng.pick(&[0, 10_000]),
            seed: rng.next() >> 32,
            ..Spec::default()
        };
        MachineOptions {
            memory_bytes,
            cpus: rng.pick(&[1, 2]),
            accel: self.case.accel,
            workload,
            force: self.program.sabotage.to_owned(),
            through: blow.through(Party::Machine),
            ..MachineOptions::new(self.program.file)
        }
    }

    /// Starts it, lets its guest write, and sets what shall be found again.
    pub fn source(&mut self, options: &MachineOptions) -> Result<(Machine, Before)> {
        let mut machine = Machine::start(options).context("the first machine")?;
        let some = self.rng.within(100..4000);
        machine.wait_writes(some)?;
        // Slow enough for something to happen meanwhile, or as fast as it goes.
        let rate = self.rng.pick(&[0, 64 << 20, 24 << 20]);
        let parameters = json!({ "max-bandwidth": rate });
        machine.execute("migrate-set-parameters", parameters)?;
        let before = Before::of(&mut machine)?;
        Ok((machine, before))
    }

    /// The guest runs on, is whole, and its machine works as if nothing had happened; it is then ended.
    pub fn goes_on(&mut self, mut machine: Machine, what: &str) -> Result<()> {
        self.is_whole(&mut machine, what)?;
        let file = self.dir.join("afterwards.snap");
        machine.agree(&Parameters::new(), &[])?;
        machine
            .snapshot(&file, &Parameters::new(), self.freezes)
            .with_context(|| format!("{what}, saved afterwards"))?;
        let report = check_file(&file)?;
        self.tally.add("the snapshot afterwards", &report)?;
        std::fs::remove_file(&file)?;
        machine.quit().with_context(|| what.to_owned())
    }

    /// The guest gets on, and every page is right.
    pub fn is_whole(&mut self, machine: &mut Machine, what: &str) -> Result<()> {
        machine.wait_writes(50).with_context(|| what.to_owned())?;
        machine.stop()?;
        let report = machine.check_ram().with_context(|| what.to_owned())?;
        self.tally.add(what, &report)?;
        let fills = machine.filling()?.is_some_and(|filling| !filling.done);
        if !fills && machine.ram_memory()?.is_registered {
            bail!("{what}: guest RAM is still registered with a userfaultfd");
        }
        machine.cont()
    }
}

/// All that is set for migrations.
fn settings(machine: &mut Machine) -> Result<[Value; 2]> {
    let capabilities = machine.execute("query-migrate-capabilities", json!({}))?;
    let parameters = machine.execute("query-migrate-parameters", json!({}))?;
    Ok([capabilities, parameters])
}

/// Nothing that was set has changed, and what was begun is gone: descriptors, threads, priorities.
pub fn nothing_is_left(machine: &mut Machine, before: &Before) -> Result<()> {
    let now = settings(machine)?;
    if now != before.settings {
        bail!(
            "settings are left: {now:?}, and before {:?}",
            before.settings
        );
    }
    let deadline = Instant::now() + IN_VAIN;
    loop {
        let now = Process::look(machine.pid())?;
        let Some(left) = now.more_than(&before.process) else {
            return Ok(());
        };
        if Instant::now() > deadline {
            bail!("{left}: {now:?}, and before {:?}", before.process);
        }
        std::thread::sleep(POLL);
    }
}

/// What a machine's process has of the host's.
#[derive(Debug)]
struct Process {
    descriptors: usize,
    /// Its threads: what they are called, and how nice they are.
    threads: Vec<(String, i32)>,
}

impl Process {
    /// What stays from the first snapshot on: a userfaultfd, and those who wait at it.
    const DESCRIPTORS: usize = 12;
    const THREADS: usize = 4;
    /// Those who are raised for good.
    const RAISED: &str = "faults/";

    fn look(pid: u32) -> Result<Self> {
        let mut threads = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // It may have ended meanwhile.
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else {
                continue;
            };
            let named = stat
                .split_once('(')
                .and_then(|(_, rest)| rest.rsplit_once(')'));
            let (name, rest) = named.context("no name in a thread's stat")?;
            let nice = rest.split_whitespace().nth(16).context("no nice value")?;
            threads.push((name.to_owned(), nice.parse()?));
        }
        Ok(Self {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads,
        })
    }

    /// What there is more of than there was before.
    fn more_than(&self, before: &Self) -> Option<&'static str> {
        let is_raised = |(name, nice): &(String, i32)| *nice < 0 && !name.starts_with(Self::RAISED);
        if self.descriptors > before.descriptors + Self::DESCRIPTORS {
            return Some("descriptors are left");
        }
        if self.threads.len() > before.threads.len() + Self::THREADS {
            return Some("threads are left");
        }
        (self.threads.iter().any(is_raised)).then_some("threads are left raised")
    }
}

/// What is to be found again.
pub struct Before {
    settings: [Value; 2],
    process: Process,
}

impl Before {
    /// As it is now.
    pub fn of(machine: &mut Machine) -> Result<Self> {
        Ok(Self {
            settings: settings(machine)?,
            process: Process::look(machine.pid())?,
        })
    }
}

/// `query-migrate`'s status; empty before there was any.
pub fn migration(machine: &mut Machine) -> Result<Value> {
    machine.execute("query-migrate", json!({}))
}

/// Waits until nothing is under way. Doubt may last when `may_doubt` says so.
pub fn settled(
    machine: &mut Machine,
    mut may_doubt: impl FnMut() -> Result<bool>,
) -> Result<String> {
    let deadline = Instant::now() + IN_VAIN;
    loop {
        let now = migration(machine)?;
        let status = now["status"].as_str().unwrap_or_default();
        if matches!(status, "" | "none" | "completed" | "failed" | "cancelled") {
            return Ok(status.to_owned());
        }
        if status == IN_DOUBT && may_doubt()? {
            return Ok(status.to_owned());
        }
        if Instant::now() > deadline {
            bail!("it waits for ever: {now}\n{}", machine.said());
        }
        std::thread::sleep(POLL);
    }
}
