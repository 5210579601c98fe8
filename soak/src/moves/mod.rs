//! A guest that moves from process to process, many times in a row.
//!
//! Before each move it runs for a while; the move is made with random parameters: how long it may
//! stand still, how fast it is sent, what happens if it writes too fast. Some moves are cancelled at
//! a random moment, some begin while the machine is paused. After each, whole or cancelled, RAM is
//! compared with the oracle where the guest is now, and its counters must have gone on.

pub mod case;
pub mod matrix;

use anyhow::{Context, Result, bail};
use paguro_lab::machine::Parameters;
use paguro_lab::{Backing, HugePages, Machine, MachineOptions, Pages};
use paguro_oracle::Report;
use paguro_workload::Spec;
use paguro_workload::spec::Bytes;
use tempfile::TempDir;

use super::Program;
use super::rng::Rng;
use super::shape;
use super::walk::{MOMENT_US, Walked, follow};
use case::{MoveCase, RateArg, TrackerArg};

/// Small rings fill up.
const RING_ENTRIES: [u32; 3] = [1024, 4096, 65536];

/// Runs a case. What was done so far stands in `walked`, also after an error: something was wrong,
/// or did not work.
pub(super) fn walk(case: &MoveCase, program: Program<'_>, walked: &mut Walked) -> Result<()> {
    let mut rng = Rng::new(case.seed);
    let options = machine(case, &mut rng, program);
    let _pool = match case.pages {
        // Two machines at a time.
        Pages::Huge => {
            Some(HugePages::reserve(2 * options.memory_bytes).map_err(anyhow::Error::msg)?)
        }
        _ => None,
    };
    let mut journey = Journey {
        case,
        rng,
        options,
        certificates: case.certificates()?,
        walked,
        is_plain: !program.sabotage.is_empty(),
    };
    journey.run()
}

fn machine(case: &MoveCase, rng: &mut Rng, program: Program<'_>) -> MachineOptions {
    let (memory_bytes, split) = shape::ram(rng, case.pages, case.memory_bytes);
    let workload = Spec {
        pattern: case.pattern,
        rate_pages_per_s: case.rate.pages_per_s(),
        seed: rng.next() >> 32,
        bytes: rng.pick(&[Bytes::Eight, Bytes::Eight, Bytes::SixtyFour, Bytes::Page]),
        set_bytes: rng.one_in(3).then_some(memory_bytes / 4),
        ..Spec::default()
    };
    let ring = rng.pick(&RING_ENTRIES);
    let forces = [case.force(), program.sabotage];
    let forces: Vec<_> = forces.into_iter().filter(|name| !name.is_empty()).collect();
    MachineOptions {
        memory_bytes,
        cpus: case.cpus,
        accel: case.accel(),
        backing: case.backing,
        pages: case.pages,
        workload,
        dma: case.dma_config(),
        ram_split: (rng.one_in(4) && case.memory_bytes == 0).then_some(split),
        stage2: case.tracker == TrackerArg::Stage2,
        dirty_ring_entries: (case.tracker == TrackerArg::Ring).then_some(ring),
        force: forces.join(","),
        ..MachineOptions::new(program.file)
    }
}

struct Journey<'a> {
    case: &'a MoveCase,
    rng: Rng,
    options: MachineOptions,
    certificates: Option<TempDir>,
    walked: &'a mut Walked,
    /// What is broken on purpose shall be met by moves and nothing else.
    is_plain: bool,
}

impl Journey<'_> {
    fn run(&mut self) -> Result<()> {
        let mut here = Machine::start(&self.options).context("the first machine")?;
        let some = self.rng.within(1..self.many());
        here.wait_writes(some)?;
        if self.case.pages == Pages::Thp && self.case.backing == Backing::Memfd {
            here.collapse()?;
        }
        let count = match self.case.moves {
            0 => self.rng.within(2..5) as u32,
            count => count,
        };
        let mut last: Option<Report> = None;
        for number in 1..=count {
            let what = format!("move {number}");
            std::thread::sleep(self.rng.moment(MOMENT_US));
            here = self.step(here, &what).context(what.clone())?;
            if here.status()? == "running" {
                here.stop()?;
            }
            let report = here.check_ram().with_context(|| what.clone())?;
            self.walked.tally.add(&what, &report)?;
            if let Some(before) = &last {
                follow(before, &report, &what, false)?;
            }
            last = Some(report);
            here.cont()?;
            here.wait_writes(1)?;
        }
        here.quit()
    }

    /// One move; the machine in which the guest is afterwards, running or paused as it was.
    fn step(&mut self, mut here: Machine, what: &str) -> Result<Machine> {
        let paused = !self.is_plain && self.rng.one_in(8);
        // Most do not go on by themselves: a guest that runs may write over what is wrong.
        let waits = !paused && !self.rng.one_in(4);
        let mut options = self.options.awaiting();
        options.paused = waits;
        let mut there = Machine::start(&options).context("the destination")?;
        let certificates = self.certificates.as_ref().map(TempDir::path);
        let (agreed, settings) = self.case.agreed(certificates);
        there.agree(&settings, agreed.as_slice())?;
        let uri = there.listen(&self.case.listens())?;
        if paused {
            here.stop()?;
        }
        let (mut parameters, mut capabilities) = self.parameters();
        parameters.extend(settings);
        capabilities.extend(agreed);
        here.begin_move(&uri, &parameters, &capabilities)?;
        if !self.is_plain && self.rng.one_in(6) {
            std::thread::sleep(self.rng.moment(4 * MOMENT_US));
            // Refused is what came too late.
            if let Err(error) = here.execute("migrate_cancel", serde_json::json!({})) {
                tracing::debug!(%error, what, "not cancelled");
            }
        }
        let moved = here.wait_moved()?;
        let Some(_report) = moved else {
            let expected = if paused { "paused" } else { "running" };
            here.wait_status(expected)
                .context("after it was cancelled")?;
            self.walked.cancelled += 1;
            return Ok(here);
        };
        self.walked.moves += 1;
        let status = here.status()?;
        if status != "postmigrate" {
            bail!("the guest moved, and the machine that it left is {status:?}");
        }
        let stays = paused || waits;
        there.wait_status(if stays { "paused" } else { "running" })?;
        // Some stay for a while.
        if self.rng.one_in(2) {
            there.wait_writes(u64::from(!stays))?;
        }
        here.quit()?;
        Ok(there)
    }

    fn parameters(&mut self) -> (Parameters, Vec<&'static str>) {
        let rng = &mut self.rng;
        let mut all = Parameters::new();
        let limit_ms = rng.pick(&[300, 50, 10, 1]);
        all.insert("downtime-limit".to_owned(), limit_ms.into());
        // Slow enough for the guest to write all there is meanwhile.
        let slow = if rng.one_in(4) { 100 << 20 } else { 0 };
        all.insert("max-bandwidth".to_owned(), slow.into());
        all.insert("x-paguro-convergence-timeout".to_owned(), 1.into());
        all.insert("x-paguro-at-timeout".to_owned(), "switchover".into());
        let capabilities = match (rng.one_in(3), self.case.tracker) {
            (true, TrackerArg::Ring) => {
                all.insert("vcpu-dirty-limit".to_owned(), rng.within(1..64).into());
                all.insert("x-vcpu-dirty-limit-period".to_owned(), 20.into());
                vec!["dirty-limit"]
            }
            (true, _) => vec!["auto-converge"],
            (false, _) => Vec::new(),
        };
        (all, capabilities)
    }

    /// Writes that a guest does in a short time.
    fn many(&self) -> u64 {
        match self.case.rate {
            RateArg::Idle => 10,
            RateArg::Low => 400,
            RateArg::High => 4_000,
            RateArg::Unlimited => 40_000,
        }
    }
}
