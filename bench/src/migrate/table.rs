//! The tables for people: each with a line that says what its numbers are.

use std::io::{self, Write};

use super::figures::Figures;
use crate::stats::Spread;
use crate::text::{Table, size, time};

const PEERS: &str = "\
Peers on a machine of 2 cores with KVM by software, 512 MiB, 256 MiB of it written, one connection:
QEMU 7.2 tcp: stop 32 ms, total 139 ms at 10k pages/s; stop 47 ms at 100k random pages/s; 76 ms at
full rate. QEMU 7.2 unix: 11 / 620 ms at 10k. Cloud Hypervisor tcp: 53 / 405 ms (7 / 276 with
TCP_NODELAY) at 10k, 289 ms at 100k random, 124 ms at full rate; unix: 7 / 259 ms at 10k.";

fn both(spread: Spread) -> String {
    format!("{} / {}", time(spread.median), time(spread.max))
}

fn speed(bytes: f64, us: f64) -> String {
    format!("{}/s", size(bytes / us.max(1.0) * 1e6))
}

/// Prints all of it.
pub fn print(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    let host = &figures.host;
    let quick = if figures.quick { " (quick)" } else { "" };
    writeln!(
        out,
        "{} cores, Linux {}, {}; {:.0} s{quick}\n",
        host.cores, host.kernel, figures.accel, figures.took_s,
    )?;
    if host.others_share > 0.05 {
        writeln!(
            out,
            "*** Other programs took {:.0} % of the cores meanwhile. Measure again on a quiet host.\n",
            host.others_share * 100.0
        )?;
    }
    for skipped in &figures.skipped {
        writeln!(out, "not measured: {skipped}")?;
    }
    writeln!(out, "\n{}", host.noise.text().trim_end())?;
    let ruler = &figures.ruler;
    let verdict = if ruler.is_right { "right" } else { "WRONG" };
    writeln!(
        out,
        "\nThe ruler: a sleep of {} in a pause reads {}: {verdict}.\n",
        time(ruler.sleep_us),
        time(ruler.reads_us)
    )?;
    throughput(figures, out)?;
    moves(figures, out)?;
    tracking(figures, out)?;
    pages(figures, out)?;
    aims(figures, out)?;
    writeln!(out, "{PEERS}")
}

fn aims(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    if figures.aims.is_empty() {
        return Ok(());
    }
    writeln!(out, "Aims, judged by the median of the runs.\n")?;
    let mut table = Table::new(&["", "aim", "reached", ""]);
    for aim in &figures.aims {
        let verdict = match aim.is_met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not judged",
        };
        let cells = [&aim.what, &aim.aim, &aim.reached].map(Clone::clone);
        table.row(cells.into_iter().chain([verdict.to_owned()]));
    }
    table.print(out)
}

fn throughput(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    if figures.throughput.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "Throughput: a guest that leaves its memory alone moves; from the first page until it is\n         stopped. Raw: as many bytes over as many raw sockets into memory that is there, or that the\n         host must hand out (fresh). More connections than one are multifd channels. Medians. Before each\n         run 512 MiB of the host are touched and given back, so that none waits for a hypervisor below.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "bytes",
        "moved",
        "raw",
        "raw, fresh",
        "share",
        "of fresh",
    ]);
    for there in &figures.throughput {
        let bytes = there.bytes as f64;
        table.row([
            format!("{:?}, {}", there.channel, there.connections()),
            size(bytes),
            speed(bytes, there.moved_us.median),
            speed(bytes, there.raw_us.median),
            speed(bytes, there.raw_fresh_us.median),
            format!("{:.0} %", there.share() * 100.0),
            format!("{:.0} %", there.fresh_share() * 100.0),
        ]);
    }
    table.print(out)
}

fn moves(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    if figures.moves.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "Moves: 512 MiB of RAM, 256 MiB of it written at random, one connection. Seen: the longest time\n         without progress, by a clock outside both machines; idle: the same shortly before. Forecast: by\n         which the guest was stopped. Dirty: the last dirty set by the bandwidth of the passes before.\n         Limit: what was sent in the stop, at the rate of raw sockets. In brackets: seen by that. Kept:\n         writes a second until the stop, by those before. Median / maximum.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "seen",
        "idle",
        "reported",
        "forecast",
        "dirty",
        "sent in it",
        "limit",
        "total",
        "passes",
        "kept",
    ]);
    for moves in &figures.moves {
        let rate = match moves.rate_pages_per_s {
            0 => "full".to_owned(),
            rate => format!("{}k/s", rate / 1000),
        };
        // By next to nothing, anything is very much.
        let against = |us: Spread, ratio: Spread| {
            if us.median < 1.0 {
                time(us.median)
            } else {
                format!("{} ({:.1}x)", time(us.median), ratio.median)
            }
        };
        table.row([
            format!("{:?} {rate} {}", moves.channel, moves.backing),
            both(moves.seen_us),
            time(moves.idle_us.median),
            both(moves.downtime_us),
            against(moves.forecast_us, moves.seen_by_forecast),
            against(moves.dirty_by_bandwidth_us, moves.seen_by_dirty),
            size(moves.downtime_bytes.median),
            time(moves.limit_us.median),
            both(moves.total_us),
            format!("{:.0}", moves.passes.median),
            format!("{:.0} %", moves.rate_kept.median * 100.0),
        ]);
    }
    table.print(out)
}

fn tracking(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    if figures.tracking.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "Tracking, all of RAM present and left alone: until it has begun, and the last sync.\n"
    )?;
    let mut table = Table::new(&["RAM", "start", "start a GiB", "sync", "sync a GiB"]);
    for tracking in &figures.tracking {
        let gib = tracking.memory_bytes as f64 / (1u64 << 30) as f64;
        table.row([
            size(tracking.memory_bytes as f64),
            both(tracking.start_us),
            time(tracking.start_us.median / gib),
            both(tracking.sync_us),
            time(tracking.sync_us.median / gib),
        ]);
    }
    table.print(out)
}

fn pages(figures: &Figures, out: &mut dyn Write) -> io::Result<()> {
    let (Some(scan), Some(zstd)) = (&figures.zero_scan, &figures.zstd) else {
        return Ok(());
    };
    writeln!(
        out,
        "Pages on their way: looking for zero pages against reading as much memory; XBZRLE of pages\n         with so many changed bytes against copying them; zstd as a multifd channel has it, of pages of\n         which a third is noise, against its library.\n"
    )?;
    let mut table = Table::new(&["", "takes", "limit", "ratio"]);
    let mut row = |name: String, bytes: f64, takes: Spread, limit: Spread| {
        table.row([
            name,
            speed(bytes, takes.median),
            speed(bytes, limit.median),
            format!("{:.2}x", takes.median / limit.median.max(1e-3)),
        ]);
    };
    row(
        "zero pages".to_owned(),
        scan.bytes as f64,
        scan.scan_us,
        scan.read_us,
    );
    for delta in &figures.xbzrle {
        let name = format!("XBZRLE, {} bytes", delta.changed_bytes);
        row(
            name,
            (delta.pages * 4096) as f64,
            delta.encode_us,
            delta.copy_us,
        );
    }
    let bytes = zstd.bytes as f64;
    let level = zstd.level;
    let (pack, unpack) = (format!("zstd, level {level}"), "zstd back".to_owned());
    row(pack, bytes, zstd.pack_us, zstd.library_pack_us);
    row(unpack, bytes, zstd.unpack_us, zstd.library_unpack_us);
    table.print(out)?;
    let share = |made: u64| made as f64 / bytes * 100.0;
    writeln!(
        out,
        "zstd makes {:.1} % of them, its library {:.1} %.\n",
        share(zstd.packed_bytes),
        share(zstd.library_bytes)
    )
}
