//! What is measured, in which order and how often.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use paguro_lab::{
    Accel, Backing, Choice, Console, HugePages, Machine, MachineOptions, Pages, host,
};
use paguro_ram::PageKind;
use paguro_sys::{HUGE_PAGE_BYTES, Host};
use paguro_workload::Spec;
use paguro_workload::spec::Op;
use serde_json::json;

use super::busy::Busy;
use super::disk::write_plain;
use super::fill::{Part, fill};
use super::limits::{self, MEMORY_BYTES, SET_BYTES, full_speed};
use super::plan::{GuestLoad, MIB, Plan};
use super::report::{Beside, OfBacking, Report, Resident, RulerTest, Throughput};
use super::series::{Series, What, measure};
use super::setup::{IDLE_SET, SPARE, files_in, room_for, room_in, snapshot, warm, warm_host};
use super::stats::Spread;
use super::variant::{SLEEP_US, Variant};

/// Less than a fault through KVM costs.
const GAP_THRESHOLD_US: u64 = 20;

/// A campaign under way.
pub struct Campaign<'a> {
    program: &'a Path,
    plan: Plan,
    accel: Accel,
    host: Host,
    /// For throughput, beside memory.
    dir: &'a Path,
    console: &'a dyn Console,
    report: Report,
}

impl<'a> Campaign<'a> {
    /// On this host.
    pub fn new(
        program: &'a Path,
        quick: bool,
        accel: Accel,
        host: Host,
        dir: &'a Path,
        console: &'a dyn Console,
    ) -> Self {
        let plan = if quick { Plan::quick() } else { Plan::full() };
        console.begin("measuring", plan.steps());
        Self {
            program,
            plan,
            accel,
            host,
            dir,
            console,
            report: Report {
                quick,
                accel: accel.name(),
                ..Report::default()
            },
        }
    }

    /// All of it, the test of the ruler first.
    pub fn run(mut self) -> Result<Report> {
        self.report.ruler = self.test_ruler()?;
        self.bare_faults()?;
        self.gaps()?;
        self.lost()?;
        self.beside()?;
        self.resident()?;
        self.backings()?;
        let memory = host::memory_dir();
        let mut dirs = vec![memory];
        if !dirs.iter().any(|dir| dir == self.dir) {
            dirs.push(self.dir.to_owned());
        }
        self.throughput(&dirs)?;
        Ok(self.report)
    }

    fn test_ruler(&mut self) -> Result<RulerTest> {
        self.console.at("the ruler");
        let runs = self.plan.other_runs;
        let spec = full_speed(Op::Write, None);
        let mut machine = self.machine(128 * MIB, Pages::Small, Backing::Anon, spec)?;
        let what = warm(&mut machine, spec, 1.0)?;
        let without = self.series(&mut machine, what, Variant::Default, runs)?;
        let with = self.series(&mut machine, what, Variant::Sleep, runs)?;
        // Whatever else goes on in the host can only make a pause longer.
        let difference = |with: Spread, without: Spread| with.min - without.min;
        let reads_us = difference(with.pause.seen_us, without.pause.seen_us);
        let outside_reads_us = difference(with.pause_still_us, without.pause_still_us);
        let sleep_us = SLEEP_US as f64;
        let right = |reads: f64| (reads - sleep_us).abs() <= 1000.0;
        Ok(RulerTest {
            sleep_us,
            with_us: with.pause.seen_us,
            without_us: without.pause.seen_us,
            reads_us,
            outside_reads_us,
            is_right: right(reads_us) && right(outside_reads_us),
        })
    }

    fn bare_faults(&mut self) -> Result<()> {
        for accel in [Accel::Kvm, Accel::Threads] {
            self.console.at(&format!("a bare fault, {}", accel.name()));
            if accel == Accel::Kvm && self.accel == Accel::Threads {
                self.skip("a bare fault through KVM: there is no KVM");
            } else {
                let fault = limits::bare_fault(of_vmm(accel), &self.host);
                self.report
                    .bare_faults
                    .push(fault.context("a bare fault cannot be measured")?);
            }
            self.step()?;
        }
        Ok(())
    }

    fn gaps(&mut self) -> Result<()> {
        for case in self.plan.gaps.clone() {
            let (bytes, pages, load) = case;
            let load_name = if load == GuestLoad::Idle {
                "idle"
            } else {
                "full"
            };
            let what = format!("gaps, {} MiB, {}, {load_name}", bytes >> 20, pages.name());
            self.console.at(&what);
            if let Err(reason) = room_for(bytes) {
                self.skip(&format!("{what}: {reason}"));
                continue;
            }
            let spec = match load {
                GuestLoad::Idle => full_speed(Op::Read, Some(IDLE_SET)),
                GuestLoad::Full => full_speed(Op::Write, None),
            };
            let mut machine = self.machine(bytes, pages, Backing::Anon, spec)?;
            let warm = warm(&mut machine, spec, 1.0)?;
            self.note_huge(&what, pages, &warm);
            let series = self.series(&mut machine, warm, Variant::Default, self.plan.runs)?;
            self.report.gaps.push(series);
            if self.plan.has_variants(case) {
                for variant in [Variant::ArmInPause, Variant::PageChunks] {
                    let runs = self.plan.other_runs;
                    let series = self.series(&mut machine, warm, variant, runs)?;
                    self.report.gaps.push(series);
                }
            }
        }
        Ok(())
    }

    fn lost(&mut self) -> Result<()> {
        let kinds = [(Pages::Small, PageKind::Small), (Pages::Thp, PageKind::Thp)];
        for (pages, kind) in kinds {
            for (load, op) in [("write", Op::Write), ("read", Op::Read)] {
                let what = format!("time lost, {}, {load}", pages.name());
                self.console.at(&what);
                let spec = full_speed(op, Some(SET_BYTES));
                let mut machine = self.machine(MEMORY_BYTES, pages, Backing::Anon, spec)?;
                let share = (SET_BYTES + 2 * MIB) as f64 / MEMORY_BYTES as f64;
                let warm = warm(&mut machine, spec, share)?;
                self.note_huge(&what, pages, &warm);
                let series = self.series(&mut machine, warm, Variant::Default, self.plan.runs)?;
                self.report.lost.push(series);
                if self.plan.loses_variants(pages, op) {
                    for variant in [Variant::ArmInPause, Variant::PageChunks] {
                        let runs = self.plan.other_runs;
                        let series = self.series(&mut machine, warm, variant, runs)?;
                        self.report.lost.push(series);
                    }
                }
                drop(machine);
                let console = self.console;
                let once = limits::protect_once(
                    of_vmm(self.accel),
                    (pages.name(), kind),
                    (load, op),
                    self.plan.other_runs,
                    &self.host,
                    &mut || step(console),
                )?;
                self.report.protect_once.push(once);
            }
        }
        Ok(())
    }

    fn beside(&mut self) -> Result<()> {
        let spec = full_speed(Op::Write, Some(SET_BYTES));
        let mut machine = self.machine(MEMORY_BYTES, Pages::Small, Backing::Anon, spec)?;
        let share = (SET_BYTES + 2 * MIB) as f64 / MEMORY_BYTES as f64;
        let warm = warm(&mut machine, spec, share)?;
        let runs = self.plan.other_runs;
        self.console.at("beside nobody");
        let alone = self.series(&mut machine, warm, Variant::Default, runs)?;
        for threads_per_core in self.plan.beside.clone() {
            self.console
                .at(&format!("beside {threads_per_core} busy threads a core"));
            let busy = Busy::begin(threads_per_core)?;
            let series = self.series(&mut machine, warm, Variant::Default, runs)?;
            drop(busy);
            self.report.beside.push(Beside {
                threads_per_core,
                runs,
                total_us: series.engine.total_us,
                alone_us: alone.engine.total_us,
                stalls_p99_us: series.stalls.p99_us,
                idle_stalls_p99_us: series.stalls.idle_p99_us,
                alone_stalls_p99_us: alone.stalls.p99_us,
            });
        }
        Ok(())
    }

    fn resident(&mut self) -> Result<()> {
        let bytes = self.plan.resident_bytes;
        let cases = [
            ("anon", Pages::Small, Backing::Anon, ""),
            // As without CAP_SYS_ADMIN: what may have been swapped out is looked at.
            (
                "anon, in doubt",
                Pages::Small,
                Backing::Anon,
                "no-marker-entries",
            ),
            ("memfd", Pages::Small, Backing::Memfd, ""),
            ("2m", Pages::Huge, Backing::Anon, ""),
        ];
        for (backing, pages, kind, force) in cases {
            self.console.at(&format!("resident memory, {backing}"));
            let pool = match pages {
                Pages::Huge => match HugePages::reserve(bytes) {
                    Ok(pool) => Some(pool),
                    Err(reason) => {
                        self.skip(&format!("resident memory of 2 MiB pages: {reason}"));
                        self.step()?;
                        continue;
                    }
                },
                _ => None,
            };
            let spec = Spec {
                rate_pages_per_s: 1000,
                set_bytes: Some(IDLE_SET),
                ..Spec::default()
            };
            let mut machine = Machine::start(&MachineOptions {
                force: force.to_owned(),
                ..self.options(bytes, pages, kind, spec)
            })?;
            machine.wait_writes(1000)?;
            let page = match pages {
                Pages::Huge => HUGE_PAGE_BYTES as u64,
                _ => paguro_sys::page_size() as u64,
            };
            let touched = Part {
                share: 0.5,
                step_bytes: 8 * page,
                bytes: page.min(64 << 10),
            };
            fill(&mut machine, touched)?;
            let before = (machine.ram_memory()?, machine.process_memory()?);
            let dir = files_in(&host::dir_for(2 * bytes))?;
            let taken = snapshot(&mut machine, dir.path(), false)?;
            let after = (machine.ram_memory()?, machine.process_memory()?);
            drop(machine);
            drop(pool);
            self.report.resident.push(Resident {
                backing,
                memory_bytes: bytes,
                before_bytes: before.0.resident_bytes,
                after_bytes: after.0.resident_bytes,
                page_tables_before_bytes: before.1.page_table_bytes,
                page_tables_after_bytes: after.1.page_table_bytes,
                total_us: taken["total_us"].as_f64().unwrap_or(0.0),
            });
            self.step()?;
        }
        Ok(())
    }

    /// The same guest in memory of either kind.
    fn backings(&mut self) -> Result<()> {
        let spec = Spec {
            rate_pages_per_s: 50_000,
            set_bytes: Some(SET_BYTES),
            ..Spec::default()
        };
        for (backing, name) in [(Backing::Anon, "anon"), (Backing::Memfd, "memfd")] {
            self.console.at(&format!("snapshots, {name}"));
            let mut machine = self.machine(MEMORY_BYTES, Pages::Small, backing, spec)?;
            fill(&mut machine, Part::dense(0.5))?;
            let dir = files_in(&host::dir_for(MEMORY_BYTES))?;
            let mut taken = Vec::new();
            for _ in 0..self.plan.runs {
                warm_host(MEMORY_BYTES);
                taken.push(snapshot(&mut machine, dir.path(), false)?);
                self.step()?;
            }
            let field = |name: &str| {
                Spread::of(
                    taken
                        .iter()
                        .map(|report| report[name].as_f64().unwrap_or(0.0)),
                )
            };
            self.report.backings.push(OfBacking {
                backing: name,
                memory_bytes: MEMORY_BYTES,
                runs: taken.len(),
                setup_us: field("setup_us"),
                total_us: field("total_us"),
            });
        }
        Ok(())
    }

    fn throughput(&mut self, dirs: &[PathBuf]) -> Result<()> {
        let bytes = self.plan.throughput_bytes;
        let spec = Spec {
            rate_pages_per_s: 1000,
            set_bytes: Some(IDLE_SET),
            ..Spec::default()
        };
        let mut machine = self.machine(bytes, Pages::Small, Backing::Anon, spec)?;
        fill(&mut machine, Part::dense(1.0))?;
        let channels = machine.execute("query-migrate-parameters", json!({}))?;
        let threads = channels["multifd-channels"].as_u64().unwrap_or(1) as usize;
        for parent in dirs {
            self.console
                .at(&format!("throughput, {}", parent.display()));
            if let Err(reason) = room_in(parent, 2 * bytes) {
                self.skip(&format!("throughput in {}: {reason}", parent.display()));
                continue;
            }
            let dir = files_in(parent)?;
            let (mut plain, mut saved) = (Vec::new(), Vec::new());
            let mut page_bytes = bytes;
            for run in 0..self.plan.other_runs {
                // Each kind comes first as often as the other.
                if run.is_multiple_of(2) {
                    warm_host(2 * bytes);
                    plain.push(write_plain(dir.path(), page_bytes, threads)?);
                }
                warm_host(2 * bytes);
                let report = snapshot(&mut machine, dir.path(), true)?;
                let number = |field: &str| report[field].as_f64().unwrap_or(0.0);
                page_bytes = number("normal_pages") as u64 * paguro_sys::page_size() as u64;
                saved.push((number("save_us"), number("total_us")));
                if !run.is_multiple_of(2) {
                    warm_host(2 * bytes);
                    plain.push(write_plain(dir.path(), page_bytes, threads)?);
                }
                self.step()?;
            }
            let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
            self.report.throughput.push(Throughput {
                dir: parent.display().to_string(),
                bytes: page_bytes,
                threads,
                runs: saved.len(),
                save_us: Spread::of(saved.iter().map(|run| run.0)),
                plain_us: Spread::of(plain.iter().map(|run| micros(run.write))),
                total_us: Spread::of(saved.iter().map(|run| run.1)),
                plain_synced_us: Spread::of(plain.iter().map(|run| micros(run.sync))),
            });
        }
        Ok(())
    }

    fn machine(
        &self,
        memory_bytes: u64,
        pages: Pages,
        backing: Backing,
        workload: Spec,
    ) -> Result<Machine> {
        Machine::start(&self.options(memory_bytes, pages, backing, workload))
    }

    fn options(
        &self,
        memory_bytes: u64,
        pages: Pages,
        backing: Backing,
        workload: Spec,
    ) -> MachineOptions {
        MachineOptions {
            memory_bytes,
            accel: self.accel,
            backing,
            pages,
            workload,
            gap_threshold_us: GAP_THRESHOLD_US,
            ..MachineOptions::new(self.program)
        }
    }

    fn series(
        &self,
        machine: &mut Machine,
        what: What,
        variant: Variant,
        runs: usize,
    ) -> Result<Series> {
        let dir = files_in(&host::dir_for(what.memory_bytes + SPARE / 2))?;
        // The memory of the file is touched before it is timed, as that of the guest is.
        let file_bytes = what.set_bytes.max(what.memory_bytes / 2);
        if variant == Variant::Default {
            write_plain(dir.path(), file_bytes, 1)?;
        }
        let next = &mut || self.step();
        measure(machine, what, variant, runs, dir.path(), next)
    }

    /// Says so where huge pages were asked for and not had: it would be 4 KiB pages again.
    fn note_huge(&mut self, what: &str, pages: Pages, warm: &What) {
        let wanted = warm.set_bytes.max(warm.memory_bytes / 2) / 2;
        if pages == Pages::Thp && warm.huge_bytes < wanted {
            let had = warm.huge_bytes >> 20;
            self.report.skipped.push(format!(
                "{what}: only {had} MiB of RAM are in huge pages, so this is no figure of THP"
            ));
        }
    }

    fn skip(&mut self, what: &str) {
        self.report.skipped.push(what.to_owned());
    }

    fn step(&self) -> Result<()> {
        step(self.console)
    }
}

fn step(console: &dyn Console) -> Result<()> {
    console.step();
    if console.is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// For a machine in this process.
fn of_vmm(accel: Accel) -> paguro_vmm::Accel {
    match accel {
        Accel::Kvm => paguro_vmm::Accel::Kvm,
        Accel::Threads => paguro_vmm::Accel::Threads,
    }
}
