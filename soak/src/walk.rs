//! One case from its start to its end.
//!
//! The source runs, is saved again and again at random moments and in random ways, and each file is
//! compared with the oracle. Then it is stopped and compared itself. One of its files is restored;
//! that machine is saved while it still fills, compared at once, runs on, is saved again and
//! compared again, and what was saved of it is brought back and compared once more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_lab::machine::Parameters;
use paguro_lab::{
    Backing, HugePages, Machine, MachineOptions, Pages, Prefetch, RestoreMode, Tally, check_file,
};
use paguro_oracle::Report;
use paguro_workload::Spec;
use paguro_workload::spec::Bytes;
use serde_json::json;

use super::Program;
use super::case::{Case, RATE};
use super::load::{Load, starve_readers};
use super::rng::Rng;
use super::shape;

/// What a case did.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// Pages compared and found wrong.
    pub tally: Tally,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Machines restored.
    pub returns: u64,
    /// Moves to other machines.
    pub moves: u64,
    /// Moves that were cancelled in time.
    pub cancelled: u64,
    /// What could not be tried, and why.
    pub notes: Vec<String>,
}

/// Most time between two snapshots, and that a guest runs before it is stopped.
pub const MOMENT_US: u64 = 30_000;

/// Runs a case. `dir` is for its files and is left empty. What was done so far stands in `walked`,
/// also after an error: something was wrong, or did not work.
pub(super) fn walk(
    case: &Case,
    program: Program<'_>,
    dir: &Path,
    walked: &mut Walked,
) -> Result<()> {
    let mut rng = Rng::new(case.seed);
    let options = machine(case, &mut rng, program);
    // The next machine is made when the one before is gone.
    let _pool = match case.pages {
        Pages::Huge => Some(HugePages::reserve(options.memory_bytes).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    let mut walk = Walk {
        case,
        rng,
        options,
        files: Files {
            dir: dir.to_owned(),
            made: Vec::new(),
        },
        walked,
        load: case.busy.then(Load::new).transpose()?,
        is_sabotaged: !program.sabotage.is_empty(),
    };
    let (file, saved) = walk.source()?;
    let returns = match case.returns {
        0 => 1,
        count => count,
    };
    for _ in 0..returns {
        walk.bring_back(&file, &saved)?;
    }
    Ok(())
}

/// The machine of a case.
fn machine(case: &Case, rng: &mut Rng, program: Program<'_>) -> MachineOptions {
    let (memory_bytes, split) = shape::ram(rng, case.pages, case.memory_bytes);
    let ram_split = (rng.one_in(4) && case.memory_bytes == 0).then_some(split);
    let set_bytes = match (case.set_bytes, rng.one_in(3)) {
        (0, true) => Some(memory_bytes / 4),
        (0, false) => None,
        (given, _) => Some(given),
    };
    let workload = Spec {
        pattern: case.pattern,
        rate_pages_per_s: if case.unlimited { 0 } else { RATE },
        seed: rng.next() >> 32,
        bytes: rng.pick(&[Bytes::Eight, Bytes::Eight, Bytes::SixtyFour, Bytes::Page]),
        set_bytes,
        ..Spec::default()
    };
    let forces = [case.force, program.sabotage];
    let forces = forces
        .iter()
        .filter(|force| !matches!(**force, "none" | ""));
    MachineOptions {
        memory_bytes,
        cpus: case.cpus,
        accel: case.accel,
        backing: case.backing,
        pages: case.pages,
        workload,
        dma: case.dma_config(),
        ram_split,
        force: forces.copied().collect::<Vec<_>>().join(","),
        ..MachineOptions::new(program.file)
    }
}

struct Walk<'a> {
    case: &'a Case,
    rng: Rng,
    options: MachineOptions,
    files: Files,
    walked: &'a mut Walked,
    load: Option<Load>,
    is_sabotaged: bool,
}

impl Walk<'_> {
    /// The source, up to its end: one of its files, and what the oracle found in it.
    fn source(&mut self) -> Result<(PathBuf, Report)> {
        let mut source = Machine::start(&self.options).context("source")?;
        let some = self.rng.within(1..self.many());
        source.wait_writes(some)?;
        self.join_pages(&mut source)?;
        let count = match self.case.snapshots {
            0 => self.rng.within(1..4) as u32,
            count => count,
        };
        let mut kept: Option<(PathBuf, Report)> = None;
        for number in 0..count {
            std::thread::sleep(self.rng.moment(MOMENT_US));
            let file = self.files.add(&format!("source-{number}"));
            let what = format!("snapshot {} of the source", number + 1);
            let plain = self.case.snapshots > 0;
            let taken = self.save(&mut source, &file, plain).context(what.clone())?;
            let Some(report) = self.check(&what, &file, taken)? else {
                continue;
            };
            if let Some((old, _)) = kept.replace((file, report)) {
                self.files.remove(&old);
            }
        }
        let last = match kept {
            Some(kept) => kept,
            // All of them were cancelled.
            None => {
                let file = self.files.add("source-last");
                self.take(&mut source, &file, self.case.can_freeze())?;
                let report = self.check("the last snapshot of the source", &file, true)?;
                (file, report.context("nothing was saved")?)
            }
        };
        source.stop()?;
        self.check_ram("the source", &mut source)?;
        source.quit()?;
        Ok(last)
    }

    /// A machine out of the file, up to its end.
    fn bring_back(&mut self, file: &Path, saved: &Report) -> Result<()> {
        let prefetch = match self.rng.within(0..4) {
            0 => Prefetch::Off,
            1 => Prefetch::Limited(64 << 20),
            _ => Prefetch::Unlimited,
        };
        let options = self.options.restored(file, self.case.restore, prefetch);
        let mut back = Machine::start(&options).context("restore")?;
        self.walked.returns += 1;
        // A machine that was paused when it was saved stays so.
        if back.status()? == "paused" {
            back.cont()?;
        }
        let fills = self.case.restore == RestoreMode::Lazy;
        let freezable = self.case.can_freeze()
            && (self.case.restore != RestoreMode::Map || self.files.are_in_memory());
        let mut second = None;
        if freezable && (fills || self.rng.one_in(2)) {
            std::thread::sleep(self.rng.moment(MOMENT_US / 10));
            let file = self.files.add("back");
            self.take(&mut back, &file, true)
                .context("snapshot of the restored machine")?;
            let report = self.check("the snapshot of the restored machine", &file, true)?;
            let report = report.context("nothing was saved")?;
            follow(
                saved,
                &report,
                "in the snapshot of the restored machine",
                false,
            )?;
            second = Some((file, report));
        }
        back.stop()?;
        let early = self.check_ram("the restored machine, at once", &mut back)?;
        follow(saved, &early, "in the restored machine", false)?;
        back.cont()?;
        if fills && prefetch != Prefetch::Off {
            back.wait_filled().context("filling the restored machine")?;
        }
        let some = self.rng.within(1..self.many());
        back.wait_writes(some)?;
        if freezable && self.rng.one_in(2) {
            let file = self.files.add("back-later");
            let taken = self
                .save(&mut back, &file, false)
                .context("a later snapshot")?;
            self.check("the later snapshot of the restored machine", &file, taken)?;
            self.files.remove(&file);
        }
        back.stop()?;
        let late = self.check_ram("the restored machine, run on", &mut back)?;
        follow(&early, &late, "after it ran on", true)?;
        back.quit()?;
        if let Some((file, report)) = second {
            if self.rng.one_in(2) {
                self.second_return(&file, &report)?;
            }
            self.files.remove(&file);
        }
        Ok(())
    }

    /// A machine out of the picture of a restored one.
    fn second_return(&mut self, file: &Path, saved: &Report) -> Result<()> {
        let eager = RestoreMode::Eager;
        let options = self.options.restored(file, eager, Prefetch::Unlimited);
        let mut again = Machine::start(&options).context("the second return")?;
        self.walked.returns += 1;
        if again.status()? == "paused" {
            again.cont()?;
        }
        again.wait_writes(1)?;
        again.stop()?;
        let report = self.check_ram("the second return", &mut again)?;
        follow(saved, &report, "in the second return", true)?;
        again.quit()
    }

    /// Saves a machine in a random way; false if that was cancelled in time. It runs afterwards.
    fn save(&mut self, machine: &mut Machine, file: &Path, plain: bool) -> Result<bool> {
        let way = if plain { 0 } else { self.rng.within(0..8) };
        let background = self.case.can_freeze();
        match way {
            // Stopped by the operator: it stays so, and the file says it.
            1 => {
                machine.stop()?;
                self.take(machine, file, background)?;
                let status = machine.status()?;
                if !matches!(status.as_str(), "paused" | "postmigrate") {
                    bail!("a machine that was stopped is {status:?} after its snapshot");
                }
                machine.cont()?;
            }
            // Stopped by the snapshot, as migrations to a file do.
            2 => {
                self.take(machine, file, false)?;
                machine.cont()?;
            }
            3 => return self.cancel(machine, file, background),
            // Stopped and continued meanwhile.
            4 => {
                let parameters = self.parameters();
                machine.begin_snapshot(file, &parameters, background)?;
                std::thread::sleep(self.rng.moment(MOMENT_US / 3));
                machine.stop()?;
                std::thread::sleep(self.rng.moment(MOMENT_US / 10));
                machine.cont()?;
                machine.wait_snapshot()?;
                machine.cont()?;
                self.walked.snapshots += 1;
            }
            _ => self.take(machine, file, background)?,
        }
        if !background {
            machine.cont()?;
        }
        machine.wait_writes(1)?;
        Ok(true)
    }

    fn take(&mut self, machine: &mut Machine, file: &Path, background: bool) -> Result<()> {
        let parameters = self.parameters();
        machine.begin_snapshot(file, &parameters, background)?;
        self.disturb(machine)?;
        let report = machine.wait_snapshot()?;
        self.walked.snapshots += 1;
        let number = |field: &str| report[field].as_u64().unwrap_or(0);
        let counted = number("normal_pages") + number("zero_pages");
        // What is broken on purpose is left to the oracle.
        if counted != number("total_pages") && !self.is_sabotaged {
            bail!("pages saved and zero pages are not all pages: {report}");
        }
        // Nothing may be left of the freeze; a pager that still fills needs its registration.
        let fills = machine.filling()?.is_some_and(|filling| !filling.done);
        if !fills && machine.ram_memory()?.is_registered {
            let fills = machine.filling()?.is_some_and(|filling| !filling.done);
            bail!("guest RAM is still registered with a userfaultfd (filling: {fills})");
        }
        Ok(())
    }

    /// Keeps the CPUs busy until the pause is over, and from those who answer faults above all. All
    /// else is as it is.
    fn disturb(&mut self, machine: &mut Machine) -> Result<()> {
        let Some(load) = &self.load else {
            return Ok(());
        };
        load.set(true);
        let mut status = Ok(json!({ "status": "setup" }));
        while matches!(&status, Ok(now) if now["status"] == "setup") {
            starve_readers(machine.pid());
            std::thread::sleep(Duration::from_micros(500));
            status = machine.execute("query-migrate", json!({}));
        }
        load.set(false);
        status.map(drop)
    }

    fn cancel(&mut self, machine: &mut Machine, file: &Path, background: bool) -> Result<bool> {
        let parameters = self.parameters();
        machine.begin_snapshot(file, &parameters, background)?;
        std::thread::sleep(self.rng.moment(MOMENT_US));
        machine.execute("migrate_cancel", json!({}))?;
        let completed = match machine.wait_snapshot() {
            Ok(_) => true,
            Err(error) if error.to_string().contains("cancelled") => false,
            Err(error) => return Err(error.context("cancelling")),
        };
        if completed != file.exists() {
            bail!(
                "completed: {completed}, but the file is there: {}",
                file.exists()
            );
        }
        self.walked.snapshots += u64::from(completed);
        machine.cont()?;
        machine.wait_writes(1)?;
        if machine.filling()?.is_none() && machine.ram_memory()?.is_registered {
            bail!("guest RAM is still registered with a userfaultfd after a cancel");
        }
        Ok(completed)
    }

    fn parameters(&mut self) -> Parameters {
        let rng = &mut self.rng;
        let mut all = Parameters::new();
        let chunk = self.case.chunk_bytes;
        all.insert("x-paguro-chunk-size".to_owned(), chunk.into());
        // Two chunks, one of which may be a huge page, and some room; or by the size of RAM.
        let buffer = if rng.one_in(2) { 0 } else { 8 << 20 };
        all.insert("x-paguro-page-buffer".to_owned(), buffer.into());
        let channels = rng.within(1..4);
        all.insert("multifd-channels".to_owned(), channels.into());
        let policy = if rng.one_in(3) { "split" } else { "keep" };
        all.insert("x-paguro-huge-pages".to_owned(), policy.into());
        all.insert("x-paguro-checksums".to_owned(), (!rng.one_in(4)).into());
        all.insert("x-paguro-arm-in-pause".to_owned(), rng.one_in(8).into());
        // Slow enough for the guest to write all there is meanwhile.
        let slow = if rng.one_in(4) { 200 << 20 } else { 0 };
        all.insert("max-bandwidth".to_owned(), slow.into());
        // What is broken on purpose must be found by the oracle, not by the freeze itself.
        let check = rng.one_in(4) && !self.is_sabotaged;
        all.insert("x-paguro-check-freeze".to_owned(), check.into());
        all
    }

    /// The oracle on a file, which is kept; `None` if none was to be made.
    fn check(&mut self, what: &str, file: &Path, taken: bool) -> Result<Option<Report>> {
        if !taken {
            return Ok(None);
        }
        let report = check_file(file).with_context(|| what.to_owned())?;
        self.walked.tally.add(what, &report)?;
        Ok(Some(report))
    }

    /// The oracle on a machine that is stopped.
    fn check_ram(&mut self, what: &str, machine: &mut Machine) -> Result<Report> {
        machine.status()?;
        let report = machine.check_ram().with_context(|| what.to_owned())?;
        self.walked.tally.add(what, &report)?;
        Ok(report)
    }

    /// A memfd gets huge pages only on demand; whether it has any is looked at, so that nobody
    /// believes to have tried what was not there.
    fn join_pages(&mut self, machine: &mut Machine) -> Result<()> {
        if self.case.pages != Pages::Thp {
            return Ok(());
        }
        if self.case.backing == Backing::Memfd {
            machine.collapse()?;
        }
        if machine.ram_memory()?.huge_bytes == 0 {
            let note = "the kernel gave no huge pages: this was a test of 4k";
            self.walked.notes.push(note.to_owned());
        }
        Ok(())
    }

    /// Writes that a guest does in a short time.
    fn many(&self) -> u64 {
        if self.case.unlimited {
            40_000
        } else {
            RATE / 25
        }
    }
}

/// A machine goes on where its picture left off. With `strictly`, each vCPU has gone on.
pub fn follow(before: &Report, after: &Report, place: &str, strictly: bool) -> Result<()> {
    let least = u64::from(strictly);
    let mut goes_on = before.vcpus.len() == after.vcpus.len();
    let sum = |report: &Report| report.vcpus.iter().map(|vcpu| vcpu.done).sum::<u64>();
    let both = before.vcpus.iter().zip(&after.vcpus);
    goes_on &= both
        .clone()
        .all(|(before, after)| after.done >= before.done);
    goes_on &= sum(after) >= sum(before) + least;
    let devices = before.devices.iter().zip(&after.devices);
    goes_on &= devices
        .clone()
        .all(|(before, after)| after.done >= before.done);
    if !goes_on {
        bail!("counters went back or stand still {place}: {before:?}, then {after:?}");
    }
    Ok(())
}

/// The files of a case, removed with it.
struct Files {
    dir: PathBuf,
    made: Vec<PathBuf>,
}

impl Files {
    fn add(&mut self, name: &str) -> PathBuf {
        let path = self.dir.join(format!("{name}.snap"));
        self.made.push(path.clone());
        path
    }

    fn remove(&mut self, path: &Path) {
        // Not there after a cancel.
        std::fs::remove_file(path).ok();
    }

    /// Whether a private mapping of them can be frozen: on tmpfs it can.
    fn are_in_memory(&self) -> bool {
        const TMPFS_MAGIC: i64 = 0x0102_1994;
        rustix::fs::statfs(&self.dir).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.made {
            std::fs::remove_file(path).ok();
        }
    }
}
