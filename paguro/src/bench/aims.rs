//! The project's aims for background snapshots, and whether they were reached.

use super::report::{Aim, Report};
use super::series::{Series, Variant};
use super::stats::Spread;
use super::table::{size, time};

/// Judges all that was measured.
pub fn judge(report: &Report) -> Vec<Aim> {
    let mut aims = Vec::new();
    let default = |series: &&Series| series.variant == Variant::Default;
    for series in report.gaps.iter().filter(default) {
        aims.push(gap(series));
    }
    let full = |series: &&Series| default(series) && series.what.load == "write";
    for series in report.gaps.iter().filter(full) {
        aims.push(pause(series));
    }
    for series in report.lost.iter().filter(default) {
        aims.push(lost(series, report));
    }
    aims.extend(report.throughput.iter().map(|there| Aim {
        what: format!("throughput in {}", there.dir),
        aim: "80 % of plain writes".to_owned(),
        reached: format!("{:.0} %", there.share() * 100.0),
        is_met: there.share() >= 0.8,
    }));
    if let Some(aim) = memory(report) {
        aims.push(aim);
    }
    aims.extend(report.resident.iter().map(|guest| {
        let grown = guest.after_bytes.saturating_sub(guest.before_bytes);
        Aim {
            what: format!("memory of an idle guest, {}", guest.backing),
            aim: "nothing absent becomes resident".to_owned(),
            reached: format!("+{}", size(grown as f64)),
            is_met: grown == 0,
        }
    }));
    aims
}

fn name(series: &Series) -> String {
    let what = &series.what;
    let load = if what.load == "idle" { "idle" } else { "full rate" };
    format!("{}, {}, {load}", size(what.memory_bytes as f64), what.pages)
}

fn gap(series: &Series) -> Aim {
    let most_us = if series.what.pages == "thp" { 1e3 } else { 2e3 };
    Aim {
        what: format!("longest gap less that of the idle window, {}", name(series)),
        aim: time(most_us),
        reached: both(series.excess_us),
        is_met: series.excess_us.median <= most_us,
    }
}

fn pause(series: &Series) -> Aim {
    Aim {
        what: format!("the pause as the guest sees it, {}", name(series)),
        aim: format!("{} + device state", time(1e3)),
        reached: both(series.pause.seen_us),
        is_met: series.pause.seen_us.median <= 1e3,
    }
}

fn lost(series: &Series, report: &Report) -> Aim {
    let what = series.what;
    let title = format!("guest time lost, 256 MiB {}, {}", what.load, what.pages);
    let reached = series.lost_us.median;
    if what.pages == "thp" {
        return Aim {
            what: title,
            aim: time(40e3),
            reached: both(series.lost_us),
            is_met: reached <= 40e3,
        };
    }
    let same = |once: &&super::limits::ProtectOnce| (once.pages, once.load) == (what.pages, what.load);
    let once = report.protect_once.iter().find(same);
    let limit = once.map_or(0.0, |once| once.lost_us.median);
    Aim {
        what: title,
        aim: format!("under 2x of protect once ({})", time(limit)),
        reached: format!("{} = {:.2}x", time(reached), reached / limit.max(1.0)),
        is_met: reached < 2.0 * limit,
    }
}

/// The page buffer, and what stands beside it, of the largest machine.
fn memory(report: &Report) -> Option<Aim> {
    let largest = report
        .gaps
        .iter()
        .filter(|series| series.variant == Variant::Default && series.what.load == "write")
        .max_by_key(|series| series.what.memory_bytes)?;
    let engine = &largest.engine;
    // Threads, tables of the file, the allocator's rounding.
    const BESIDE: f64 = 4.0 * 1024.0 * 1024.0;
    let buffer = largest.what.page_buffer_bytes as f64;
    let allowed = buffer + engine.set_bytes.max + BESIDE;
    let reached = largest.extra_resident_bytes.max;
    Some(Aim {
        what: format!("extra memory at most, {}", name(largest)),
        aim: format!(
            "{} (buffer) + {} (sets, checksums) + 4 MiB",
            size(buffer),
            size(engine.set_bytes.max)
        ),
        reached: size(reached),
        is_met: reached <= allowed && engine.peak_buffer_bytes.max <= buffer,
    })
}

fn both(spread: Spread) -> String {
    format!("{}, at most {}", time(spread.median), time(spread.max))
}
