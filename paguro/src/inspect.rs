//! `paguro inspect`: what is in a snapshot file, and whether it is undamaged.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use paguro_wire::snapshot::verify::{VerifyReport, verify};
use paguro_wire::snapshot::{SnapshotFile, Summary};
use paguro_workload::human;
use rustix::fs::OFlags;
use serde_json::json;

use crate::cli::InspectArgs;
use crate::progress::Bar;

/// Threads that check pages. Reading is what takes the time; two keep a disk busy.
const VERIFY_THREADS: usize = 2;

/// Runs the command. Damage is told on standard output like all else, and by the exit status.
pub fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let name = args.file.display();
    // A named pipe would wait for its writer here.
    let mut options = File::options();
    let opened = options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    let reader = opened
        .open(&args.file)
        .with_context(|| format!("cannot open {name}"))?;
    let (file, summary, report) =
        read(&reader, args).with_context(|| format!("{name} cannot be read as a snapshot"))?;
    let clean = report.as_ref().is_none_or(VerifyReport::is_clean);
    let mut out = io::stdout().lock();
    if args.json {
        let mut all = serde_json::to_value(&summary)?;
        if let Some(report) = &report {
            all["verify"] = json!(report);
            all["verify"]["clean"] = clean.into();
        }
        writeln!(out, "{all:#}")?;
    } else {
        print_summary(&mut out, &summary)?;
        if let Some(report) = &report {
            print_report(&mut out, report, &file)?;
        }
    }
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

type Contents = (SnapshotFile, Summary, Option<VerifyReport>);

fn read(reader: &File, args: &InspectArgs) -> Result<Contents> {
    let file = SnapshotFile::parse(reader)?;
    let summary = Summary::new(reader, &file)?;
    let report = if args.verify {
        Some(check(reader, &file, summary.pages)?)
    } else {
        None
    };
    Ok((file, summary, report))
}

fn check(reader: &File, file: &SnapshotFile, pages: u64) -> Result<VerifyReport> {
    let bar = Bar::pages("checking", pages);
    let report = verify(reader, file, VERIFY_THREADS, &|progress| {
        bar.set(progress.pages_done, progress.pages_total);
    })?;
    Ok(report)
}

fn print_summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let Summary {
        machine,
        capabilities,
        run_state,
        facts,
        checksums,
        ..
    } = summary;
    writeln!(out, "format        {}", summary.format)?;
    writeln!(
        out,
        "file          {} bytes, holes included",
        summary.file_bytes
    )?;
    writeln!(out, "machine       {machine}")?;
    writeln!(out, "capabilities  {}", capabilities.join(", "))?;
    writeln!(
        out,
        "guest         {}",
        run_state.as_deref().unwrap_or("(the file does not say)")
    )?;
    if let Some(facts) = facts {
        writeln!(
            out,
            "taken         by paguro {}, {}, with host pages of {} bytes",
            facts.paguro_version,
            utc(facts.taken_at_unix_s),
            facts.host_page_size_bytes
        )?;
    }
    let algorithm = checksums.algorithm.unwrap_or("none");
    writeln!(
        out,
        "checksums     {algorithm} ({})",
        human(checksums.extension_bytes)
    )?;
    writeln!(
        out,
        "RAM           {}: {} pages, {} in the file, {} zero",
        human(summary.ram_bytes),
        summary.pages,
        summary.present_pages,
        summary.zero_pages
    )?;
    writeln!(
        out,
        "\n{:<20} {:>14} {:>10} {:>10} {:>10} {:>14}",
        "RAM block", "bytes", "pages", "in file", "zero", "pages from"
    )?;
    for block in &summary.blocks {
        writeln!(
            out,
            "{:<20} {:>14} {:>10} {:>10} {:>10} {:>#14x}",
            block.name,
            block.length_bytes,
            block.pages,
            block.present_pages,
            block.zero_pages,
            block.pages_offset
        )?;
    }
    writeln!(
        out,
        "\n{:<28} {:>8} {:>8} {:>10} {:>14}",
        "section", "instance", "version", "kind", "bytes"
    )?;
    for section in &summary.sections {
        writeln!(
            out,
            "{:<28} {:>8} {:>8} {:>10} {:>14}",
            section.name, section.instance, section.version, section.kind, section.body_bytes
        )?;
    }
    writeln!(
        out,
        "\n{:<28} {:>8} {:>8} {:>10} {:>14}",
        "device", "instance", "version", "fields", "bytes"
    )?;
    for device in &summary.devices {
        writeln!(
            out,
            "{:<28} {:>8} {:>8} {:>10} {:>14}",
            device.name, device.instance, device.version, device.fields, device.state_bytes
        )?;
    }
    for note in &summary.notes {
        writeln!(out, "\nnote: {note}")?;
    }
    Ok(())
}

fn print_report(
    out: &mut impl Write,
    report: &VerifyReport,
    file: &SnapshotFile,
) -> io::Result<()> {
    writeln!(out)?;
    for damage in &report.damage {
        writeln!(out, "damaged: {damage}")?;
    }
    for bad in &report.bad_pages {
        writeln!(
            out,
            "damaged: {} page {} at file offset {:#x}",
            bad.block, bad.page, bad.file_offset
        )?;
    }
    let named = report.bad_pages.len() as u64;
    if report.bad_page_count > named {
        writeln!(out, "damaged: {} more pages", report.bad_page_count - named)?;
    }
    if !report.checksums {
        return writeln!(
            out,
            "verified: structure only ({} RAM blocks, {} sections); the file has no checksums",
            file.blocks.len(),
            file.sections.len()
        );
    }
    writeln!(
        out,
        "verified: {} pages checked, {} zero pages, {} wrong{}",
        report.pages_checked,
        report.zero_pages,
        report.bad_page_count,
        if report.damage.is_empty() {
            ""
        } else {
            "; pages were not all checked"
        }
    )
}

/// A time as people write it.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years that begin in March have their leap day at the end; eras of 400 years are all alike.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_795_219_380, "2026-11-21 00:03:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), text);
        }
    }
}
