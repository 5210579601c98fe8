//! What all trials have in common: how machines are, and what must hold of one that lives.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use paguro_workload::Spec;
use serde_json::{Value, json};

use super::blow::Blow;
use super::case::{FailureCase, Party};
use crate::lab::machine::{IN_VAIN, POLL, Parameters};
use crate::lab::{Machine, MachineOptions, Tally, check_file};
use crate::soak::case::PATTERNS;
use crate::soak::rng::Rng;

/// RAM of a machine.
const MEMORY_BYTES: [u64; 3] = [16 << 20, 32 << 20, 48 << 20];

/// A migration of which nobody knows how it went.
pub const IN_DOUBT: &str = "x-paguro-in-doubt";

/// One trial.
pub struct Scene<'a> {
    /// What is tried.
    pub case: FailureCase,
    /// What the case leaves open.
    pub rng: Rng,
    /// For files.
    pub dir: &'a Path,
    /// What is broken on purpose, or nothing.
    pub sabotage: &'a str,
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
            force: self.sabotage.to_owned(),
            through: blow.through(Party::Machine),
            ..MachineOptions::default()
        }
    }

    /// Starts it, lets its guest write, and sets what shall be found again.
    pub fn source(&mut self, options: &MachineOptions) -> Result<(Machine, [Value; 2])> {
        let mut machine = Machine::start(options).context("the first machine")?;
        let some = self.rng.within(100..4000);
        machine.wait_writes(some)?;
        // Slow enough for something to happen meanwhile, or as fast as it goes.
        let rate = self.rng.pick(&[0, 64 << 20, 24 << 20]);
        let parameters = json!({ "max-bandwidth": rate });
        machine.execute("migrate-set-parameters", parameters)?;
        let set = settings(&mut machine)?;
        Ok((machine, set))
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
pub fn settings(machine: &mut Machine) -> Result<[Value; 2]> {
    let capabilities = machine.execute("query-migrate-capabilities", json!({}))?;
    let parameters = machine.execute("query-migrate-parameters", json!({}))?;
    Ok([capabilities, parameters])
}

/// Nothing that was set has changed.
pub fn nothing_is_left(machine: &mut Machine, before: &[Value; 2]) -> Result<()> {
    let now = settings(machine)?;
    if now != *before {
        bail!("settings are left: {now:?}, and before {before:?}");
    }
    Ok(())
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
