//! `paguro bench`: the command line of `paguro-bench`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use paguro_bench::{MigrateOptions, Part, SnapshotOptions};
use serde::Serialize;

use crate::cli::{BenchMigrateArgs, BenchMigratePart, BenchSnapshotArgs};
use crate::console::Terminal;
use crate::force::{Forced, VARIABLE};
use crate::hints::Advised;
use crate::log;

/// `paguro bench snapshot`
pub fn snapshot(args: &BenchSnapshotArgs, forced: &Forced) -> Result<ExitCode> {
    refuse_forced(forced)?;
    let options = SnapshotOptions {
        program: crate::program()?,
        quick: args.quick,
        dir: args.dir.clone().unwrap_or_else(std::env::temp_dir),
    };
    let terminal = Terminal::open()?;
    let report = paguro_bench::snapshot(&options, &terminal)?;
    terminal.close();
    tell(args.json, &report, |out| report.print(out))?;
    Ok(verdict(report.ruler.is_right))
}

/// `paguro bench migrate`
pub fn migrate(args: &BenchMigrateArgs, forced: &Forced) -> Result<ExitCode> {
    refuse_forced(forced)?;
    let options = MigrateOptions {
        program: crate::program()?,
        quick: args.quick,
        only: args.only.map(part),
    };
    let terminal = Terminal::open()?;
    let figures = paguro_bench::migrate(&options, &terminal)?;
    terminal.close();
    tell(args.json, &figures, |out| figures.print(out))?;
    Ok(verdict(figures.ruler.is_right))
}

fn refuse_forced(forced: &Forced) -> Result<()> {
    if *forced != Forced::default() {
        return Err(Advised::error(
            "figures of a host that pretends to be another say nothing",
            format!("leave out {VARIABLE}"),
        ));
    }
    Ok(())
}

fn part(arg: BenchMigratePart) -> Part {
    match arg {
        BenchMigratePart::Throughput => Part::Throughput,
        BenchMigratePart::Moves => Part::Moves,
        BenchMigratePart::Tracking => Part::Tracking,
        BenchMigratePart::Pages => Part::Pages,
    }
}

fn tell(
    json: bool,
    figures: &impl Serialize,
    print: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, figures)?;
        writeln!(out)?;
    } else {
        print(&mut out)?;
    }
    Ok(())
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
