//! `paguro demo`: all of it, once, with every byte checked.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use paguro_lab::check::describe;
use paguro_lab::machine::Parameters;
use paguro_lab::{
    Accel, Choice, HugePages, Machine, MachineOptions, Pages, Prefetch, ProgressFile, Record,
    RestoreMode, Ruler, Window, check_file, host, now_ns,
};
use paguro_oracle::Report;
use paguro_sys::{Host, Userfault};
use paguro_workload::Spec;
use paguro_workload::human;
use paguro_workload::spec::Pattern;
use serde::Serialize;
use serde_json::Value;

use crate::cli::DemoArgs;
use crate::force::Forced;
use crate::hints::Advised;
use crate::interrupt::{Again, Interrupts};
use crate::log;
use crate::progress::Bar;

/// RAM of the guest, and how much of it is written; a quarter of each on a small host.
const MEMORY_BYTES: u64 = 512 << 20;
const SET_BYTES: u64 = 256 << 20;
const SMALL_HOST_BYTES: u64 = 2 << 30;

/// The windows before and after the snapshot.
const WINDOW: Duration = Duration::from_millis(500);

/// The ruler's room.
const MOST: Duration = Duration::from_secs(60);

const PAGE_BYTES: u64 = 4096;
const STEPS: u64 = 9;

/// What came of it: the fields of `--json`.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    accel: String,
    cpus: u32,
    memory_bytes: u64,
    pages: String,
    seconds: f64,
    pause_us: u64,
    engine_pause_us: u64,
    time_lost_us: u64,
    snapshot_us: u64,
    longest_stall_us: u64,
    idle_stall_us: u64,
    idle_us: u64,
    rate_before: u64,
    rate_during: u64,
    rate_after: u64,
    file_bytes: u64,
    written_bytes: u64,
    normal_pages: u64,
    zero_pages: u64,
    faults: u64,
    fault_pages: u64,
    extra_memory_bytes: u64,
    page_table_bytes: u64,
    first_instruction_us: u64,
    lazy_faults: u64,
    pages_checked: u64,
    wrong: u64,
    checks: Vec<Check>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    pages: u64,
    wrong: u64,
}

/// Runs the command.
pub fn demo(args: &DemoArgs, forced: &Forced) -> Result<ExitCode> {
    let interrupts = Interrupts::catch(Again::Leaves)?;
    let started = Instant::now();
    let options = options(args, forced)?;
    let huge = match options.pages {
        Pages::Huge => Some(
            HugePages::reserve(options.memory_bytes)
                .map_err(|why| Advised::error(why, "run as root, or use --pages thp"))?,
        ),
        _ => None,
    };
    let bar = Bar::steps("demo", STEPS);
    let mut demo = Demo {
        bar: &bar,
        interrupts: &interrupts,
        outcome: Outcome {
            accel: options.accel.name().to_owned(),
            cpus: options.cpus,
            memory_bytes: options.memory_bytes,
            pages: options.pages.name().to_owned(),
            ..Outcome::default()
        },
    };
    demo.run(&options)?;
    let mut outcome = demo.outcome;
    drop(bar);
    drop(huge);
    outcome.seconds = started.elapsed().as_secs_f64();
    if args.json {
        let json = serde_json::to_string_pretty(&outcome)?;
        writeln!(io::stdout(), "{json}")?;
    } else {
        print(&outcome, &options)?;
    }
    for problem in &outcome.problems {
        log::say(format_args!("paguro: {problem}"));
    }
    Ok(if outcome.wrong == 0 && outcome.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What this host allows: KVM if it can, else threads; says why not.
fn options(args: &DemoArgs, forced: &Forced) -> Result<MachineOptions> {
    let userfault = Host::probe(&forced.fallbacks).userfault;
    let accel = match (userfault, host::no_kvm()) {
        (Userfault::None, _) => {
            return Err(Advised::error(
                "this process may not use userfaultfd, without which a guest cannot be saved while \
                 it runs",
                "run as root, on a kernel with userfaultfd (CONFIG_USERFAULTFD)",
            ));
        }
        (_, Some(error)) => {
            log::say(format_args!(
                "note: /dev/kvm cannot be used ({error}): the same guest runs in threads, \
                 --accel threads"
            ));
            Accel::Threads
        }
        (Userfault::UserMode, None) => {
            log::say(format_args!(
                "note: this process may handle page faults of its own code only, and KVM takes \
                 them in the kernel: the same guest runs in threads, --accel threads.\n\
                 hint: for KVM run as root, or as root set \
                 /proc/sys/vm/unprivileged_userfaultfd to 1"
            ));
            Accel::Threads
        }
        (Userfault::Full, None) => Accel::Kvm,
    };
    let small = host::memory_available_bytes().is_some_and(|bytes| bytes < SMALL_HOST_BYTES);
    let part = if small { 4 } else { 1 };
    Ok(MachineOptions {
        memory_bytes: MEMORY_BYTES / part,
        accel,
        pages: args.pages.of_lab(),
        workload: Spec {
            pattern: Pattern::Random,
            rate_pages_per_s: 0,
            set_bytes: Some(SET_BYTES / part),
            ..Spec::default()
        },
        force: forced.text(),
        ..MachineOptions::new(crate::program()?)
    })
}

struct Demo<'a> {
    bar: &'a Bar,
    interrupts: &'a Interrupts,
    outcome: Outcome,
}

impl Demo<'_> {
    fn run(&mut self, options: &MachineOptions) -> Result<()> {
        let dir = tempfile::Builder::new()
            .prefix("paguro-demo-")
            .tempdir_in(host::dir_for(2 * options.memory_bytes))?;
        let file = dir.path().join("demo.snap");
        self.save(options, &file)?;
        self.step("checking the file")?;
        let saved = check_file(&file)?;
        self.note("file", &saved);
        self.bring_back(options, &file, &saved)
    }

    /// The guest is saved while it writes.
    fn save(&mut self, options: &MachineOptions, file: &Path) -> Result<()> {
        self.step("starting a guest that writes")?;
        let mut source = Machine::start(options).context("cannot start the guest")?;
        let set_pages = options.workload.set_bytes.unwrap_or(0) / PAGE_BYTES;
        // A pass over the set touches each page once; the first one is not what is measured.
        source.wait_writes(2 * set_pages)?;
        let before = source.process_memory()?;
        let ruler = Ruler::lay(source.progress().clone(), MOST)?;
        let idle_from = now_ns();
        std::thread::sleep(WINDOW);
        // On a busy host it may have got no time meanwhile.
        source.wait_writes(1)?;
        self.step("saving it while it writes")?;
        let idle_to = now_ns();
        let report = source.snapshot(file, &Parameters::new(), true)?;
        let after_from = now_ns();
        let tables = source.process_memory()?.page_table_bytes;
        self.outcome.page_table_bytes = tables.saturating_sub(before.page_table_bytes);
        std::thread::sleep(WINDOW);
        let after_to = now_ns();
        let record = ruler.read();
        self.measure(
            &record,
            &report,
            Window::new(idle_from, idle_to),
            Window::new(after_from, after_to),
        );
        if source.ram_memory()?.is_registered {
            self.complain("guest RAM is still registered with a userfaultfd".to_owned());
        }
        self.step("checking the guest that was saved")?;
        source.stop()?;
        let report = source.check_ram()?;
        self.note("saved guest", &report);
        source.quit()
    }

    fn measure(&mut self, record: &Record, report: &Value, idle: Window, after: Window) {
        let number = |field: &str| report[field].as_u64().unwrap_or(0);
        let (begin, free) = (number("begin_at_ns"), number("free_at_ns"));
        let whole = Window::new(begin, free);
        let pause = number("pause_at_ns");
        let pause_end = pause + 1000 * number("pause_us");
        let before = record.rate_pages_per_s(idle);
        let lost = record.lost_ns(whole, before).max(0.0);
        let outcome = &mut self.outcome;
        outcome.pause_us = record.still_across(Window::new(pause, pause_end)).ns / 1000;
        outcome.engine_pause_us = number("pause_us");
        outcome.time_lost_us = (lost / 1000.0) as u64;
        outcome.snapshot_us = free.saturating_sub(begin) / 1000;
        outcome.longest_stall_us = record.longest_still(whole).ns / 1000;
        outcome.idle_stall_us = record.longest_still(idle).ns / 1000;
        outcome.idle_us = idle.ns() / 1000;
        outcome.rate_before = before as u64;
        outcome.rate_during = record.rate_pages_per_s(whole) as u64;
        outcome.rate_after = record.rate_pages_per_s(after) as u64;
        outcome.file_bytes = number("file_bytes");
        outcome.written_bytes = number("written_bytes");
        outcome.normal_pages = number("normal_pages");
        outcome.zero_pages = number("zero_pages");
        outcome.faults = number("faults");
        outcome.fault_pages = number("fault_pages");
        outcome.extra_memory_bytes = number("peak_buffer_bytes") + number("set_bytes");
        if record.is_cut_short() {
            self.complain("the snapshot took longer than the watcher could watch".to_owned());
        }
        if number("normal_pages") + number("zero_pages") != number("total_pages") {
            self.complain("pages saved and zero pages are not all pages".to_owned());
        }
    }

    /// A second process brings it back page by page, and it runs on.
    fn bring_back(&mut self, options: &MachineOptions, file: &Path, saved: &Report) -> Result<()> {
        self.step("restoring it in a second process")?;
        let lazy = options.restored(file, RestoreMode::Lazy, Prefetch::Unlimited);
        let progress = Arc::new(ProgressFile::create(options.cpus)?);
        let ruler = Ruler::lay(progress.clone(), MOST)?;
        let mut back = Machine::start_watched(&lazy, progress).context("cannot restore")?;
        let saved_writes: u64 = saved.vcpus.iter().map(|vcpu| vcpu.done).sum();
        back.wait_total(saved_writes + 1)?;
        let record = ruler.read();
        let main_at = back.main_at_ns()?;
        match record.first_change_ns() {
            Some(first) => self.outcome.first_instruction_us = first.saturating_sub(main_at) / 1000,
            None => self.complain("the restored guest was not seen to begin".to_owned()),
        }
        self.step("checking the restored guest right away")?;
        back.stop()?;
        let report = back.check_ram()?;
        self.note("restored guest, at once", &report);
        self.follow(saved, &report, "at once");
        self.step("checking it when all pages have arrived")?;
        back.cont()?;
        back.wait_filled()?;
        self.outcome.lazy_faults = back.filling()?.map_or(0, |filling| filling.faults);
        back.stop()?;
        let filled = back.check_ram()?;
        self.note("restored guest, filled", &filled);
        self.step("checking it after it ran on")?;
        back.cont()?;
        let set_pages = options.workload.set_bytes.unwrap_or(0) / PAGE_BYTES;
        back.wait_writes(2 * set_pages)?;
        back.stop()?;
        let on = back.check_ram()?;
        self.note("restored guest, run on", &on);
        self.follow(&filled, &on, "after it ran on");
        if back.ram_memory()?.is_registered {
            self.complain("the restored RAM is still registered with a userfaultfd".to_owned());
        }
        back.quit()
    }

    fn step(&mut self, what: &str) -> Result<()> {
        self.bar.step();
        self.bar.say(what.to_owned());
        if self.interrupts.came() {
            anyhow::bail!("interrupted");
        }
        Ok(())
    }

    fn note(&mut self, name: &'static str, report: &Report) {
        self.outcome.pages_checked += report.pages_checked;
        self.outcome.wrong += report.wrong_count;
        self.outcome.checks.push(Check {
            name,
            pages: report.pages_checked,
            wrong: report.wrong_count,
        });
        if !report.is_right() {
            self.complain(format!("{name}: {}", describe(report)));
        }
    }

    /// A machine goes on where the picture left off: no counter goes back, and not all stand still.
    /// One of them may: what was waited for is a number of writes, whoever made them.
    fn follow(&mut self, before: &Report, after: &Report, when: &str) {
        let both = before.vcpus.iter().zip(&after.vcpus);
        let goes_on = before.vcpus.len() == after.vcpus.len()
            && both
                .clone()
                .all(|(before, after)| after.done >= before.done)
            && both.clone().any(|(before, after)| after.done > before.done);
        if !goes_on {
            self.complain(format!("the restored guest does not go on {when}"));
        }
    }

    fn complain(&mut self, problem: String) {
        self.outcome.problems.push(problem);
    }
}

fn print(outcome: &Outcome, options: &MachineOptions) -> Result<()> {
    let millis = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
    let rate = |pages: u64| format!("{:.2} M/s", pages as f64 / 1e6);
    let set = human(options.workload.set_bytes.unwrap_or(0));
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "A guest ({}, {} vCPU, {} of RAM in pages of {}) wrote {set} over and over, was saved \
         meanwhile, and came back.\n",
        outcome.accel,
        outcome.cpus,
        human(outcome.memory_bytes),
        outcome.pages,
    )?;
    let rows = [
        (
            "guest-observed pause",
            millis(outcome.pause_us),
            format!(
                "its longest time without progress around the pause; the engine's own view: {}",
                millis(outcome.engine_pause_us)
            ),
        ),
        (
            "guest time lost",
            millis(outcome.time_lost_us),
            format!("of {}, the whole snapshot", millis(outcome.snapshot_us)),
        ),
        (
            "longest stall",
            millis(outcome.longest_stall_us),
            format!(
                "without a snapshot, in {}: {}",
                millis(outcome.idle_us),
                millis(outcome.idle_stall_us)
            ),
        ),
        (
            "write rate",
            rate(outcome.rate_before),
            format!(
                "before; {} during, {} after (pages)",
                rate(outcome.rate_during),
                rate(outcome.rate_after)
            ),
        ),
        (
            "bytes saved",
            human(outcome.written_bytes).to_string(),
            format!("{} pages", outcome.normal_pages),
        ),
        (
            "zero pages",
            outcome.zero_pages.to_string(),
            "neither read nor written where they were never there".to_owned(),
        ),
        (
            "faults",
            outcome.faults.to_string(),
            format!("{} pages copied ahead of the scan", outcome.fault_pages),
        ),
        (
            "extra memory",
            human(outcome.extra_memory_bytes).to_string(),
            format!(
                "page copies and sets, at most; page tables: {}",
                human(outcome.page_table_bytes)
            ),
        ),
        (
            "first instruction",
            millis(outcome.first_instruction_us),
            "from the entry of main to the restored guest's first write".to_owned(),
        ),
    ];
    for (what, value, note) in rows {
        writeln!(out, "  {what:<22}{value:>12}   {note}")?;
    }
    writeln!(out)?;
    for check in &outcome.checks {
        let verdict = match check.wrong {
            0 => "right".to_owned(),
            wrong => format!("{wrong} WRONG"),
        };
        writeln!(
            out,
            "  {:<26}{:>8} pages {verdict}",
            check.name, check.pages
        )?;
    }
    writeln!(
        out,
        "\n{} pages checked, {} wrong ({:.1} s)",
        outcome.pages_checked, outcome.wrong, outcome.seconds
    )?;
    Ok(())
}
