//! The project's aims for background snapshots, and whether they were reached.

use super::report::{Aim, Report};
use super::series::Series;
use super::stats::Spread;
use super::text::{size, time};
use super::variant::Variant;

/// Judges all that was measured.
pub fn judge(report: &Report) -> Vec<Aim> {
    let mut aims = Vec::new();
    let default = |series: &&Series| series.variant == Variant::Default;
    for series in report.gaps.iter().filter(default) {
        aims.push(gap(series));
    }
    aims.extend(flat(report));
    let full = |series: &&Series| default(series) && series.what.load == "write";
    for series in report.gaps.iter().filter(full) {
        aims.push(pause(series));
    }
    for series in report.lost.iter().filter(default) {
        aims.push(lost(series, report));
    }
    aims.extend(report.beside.iter().map(|beside| {
        let many = beside.threads_per_core;
        let fair = many + 1;
        Aim {
            what: format!("a snapshot beside {many} busy threads a core"),
            aim: format!("1.5 x {fair} times as long as without them"),
            reached: format!("{:.2} x {fair}", beside.share()),
            is_met: Some(beside.share() <= 1.5),
        }
    }));
    aims.extend(report.throughput.iter().map(|there| Aim {
        what: format!("throughput in {}", there.dir),
        aim: "80 % of plain writes".to_owned(),
        reached: format!("{:.0} %", there.share() * 100.0),
        is_met: Some(there.share() >= 0.8),
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
            is_met: Some(grown == 0),
        }
    }));
    let total = |name: &str| {
        let of = report.backings.iter().find(|of| of.backing == name);
        of.map(|of| of.total_us.median)
    };
    if let (Some(anon), Some(memfd)) = (total("anon"), total("memfd")) {
        let ratio = memfd / anon.max(1.0);
        aims.push(Aim {
            what: "snapshot of a guest in memfd, by that in anonymous memory".to_owned(),
            aim: "1.2x".to_owned(),
            reached: format!("{ratio:.2}x"),
            is_met: Some(ratio <= 1.2),
        });
    }
    aims
}

fn name(series: &Series) -> String {
    let what = &series.what;
    let load = if what.load == "idle" {
        "idle"
    } else {
        "full rate"
    };
    format!("{}, {}, {load}", size(what.memory_bytes as f64), what.pages)
}

fn gap(series: &Series) -> Aim {
    let most_us = if series.what.pages == "thp" { 1e3 } else { 2e3 };
    Aim {
        what: format!("longest gap less that of the idle window, {}", name(series)),
        aim: time(most_us),
        reached: both(series.excess_us),
        is_met: Some(series.excess_us.median <= most_us),
    }
}

/// How much longer the longest gap is in the largest RAM than in the smallest.
fn flat(report: &Report) -> Vec<Aim> {
    const MOST_US: f64 = 1e3;
    let mut aims = Vec::new();
    for (pages, load) in [
        ("4k", "idle"),
        ("4k", "write"),
        ("thp", "idle"),
        ("thp", "write"),
    ] {
        let same = report.gaps.iter().filter(|series| {
            let what = &series.what;
            series.variant == Variant::Default && (what.pages, what.load) == (pages, load)
        });
        let size_of = |series: &&Series| series.what.memory_bytes;
        let (Some(least), Some(most)) = (
            same.clone().min_by_key(size_of),
            same.clone().max_by_key(size_of),
        ) else {
            continue;
        };
        if size_of(&least) == size_of(&most) {
            continue;
        }
        let growth_us = most.excess_us.median - least.excess_us.median;
        aims.push(Aim {
            what: format!(
                "the same, {} against {}",
                name(most),
                size(least.what.memory_bytes as f64)
            ),
            aim: format!("flat: at most {} more", time(MOST_US)),
            reached: time(growth_us),
            is_met: Some(growth_us <= MOST_US),
        });
    }
    aims
}

fn pause(series: &Series) -> Aim {
    Aim {
        what: format!("the pause as the guest sees it, {}", name(series)),
        aim: format!("{} + device state", time(1e3)),
        reached: both(series.pause.seen_us),
        is_met: Some(series.pause.seen_us.median <= 1e3),
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
            is_met: Some(reached <= 40e3),
        };
    }
    let same =
        |once: &&super::limits::ProtectOnce| (once.pages, once.load) == (what.pages, what.load);
    let once = report.protect_once.iter().find(same);
    let limit = once.map_or(0.0, |once| once.lost_us.median);
    Aim {
        what: title,
        aim: format!("under 2x of protect once ({})", time(limit)),
        reached: match ratio(reached, limit) {
            Some(ratio) => format!("{} = {ratio:.2}x", time(reached)),
            None => time(reached),
        },
        is_met: (limit > 0.0).then_some(reached < 2.0 * limit),
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
        is_met: Some(reached <= allowed && engine.peak_buffer_bytes.max <= buffer),
    })
}

/// A number as a multiple of its limit; `None` where the limit was lost in noise.
pub fn ratio(reached: f64, limit: f64) -> Option<f64> {
    (limit > 0.0).then(|| reached / limit)
}

fn both(spread: Spread) -> String {
    format!("{}, at most {}", time(spread.median), time(spread.max))
}
