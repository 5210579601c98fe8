//! The tables for people: each with a line that says what its numbers are.

use std::io::{self, Write};

use super::report::Report;
use super::series::{Gaps, Series};
use super::stats::Spread;
use super::text::{Table, size, time};

fn pair(spread: Spread) -> String {
    format!("{} / {}", time(spread.median), time(spread.max))
}

fn three(spread: Spread) -> String {
    format!("{} / {}", time(spread.min), pair(spread))
}

fn gaps(gaps: Gaps) -> String {
    format!(
        "{} / {} ({})",
        time(gaps.seen_us.median),
        time(gaps.seen_us.max),
        time(gaps.idle_us.median)
    )
}

fn machine(series: &Series) -> Vec<String> {
    let what = &series.what;
    let load = match what.load {
        "idle" => "idle",
        _ if what.set_bytes == what.memory_bytes => "full",
        load => load,
    };
    let name = format!("{} {} {load}", size(what.memory_bytes as f64), what.pages);
    vec![name, series.variant.name().to_owned()]
}

/// Prints all of it.
pub fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let host = &report.host;
    writeln!(
        out,
        "{} cores, Linux {}, {}; files in {} unless said; {:.0} s{}\n",
        host.cores,
        host.kernel,
        report.accel,
        host.files_in,
        report.took_s,
        if report.quick { " (quick)" } else { "" }
    )?;
    if host.others_share > 0.05 {
        writeln!(
            out,
            "*** Other programs took {:.0} % of the cores meanwhile: what the guest waited for was often\n\
             *** them. Measure again on a quiet host.\n",
            host.others_share * 100.0
        )?;
    }
    writeln!(out, "{}", host.noise.text())?;
    ruler(report, out)?;
    longest_gaps(report, out)?;
    lost(report, out)?;
    stalls(report, out)?;
    beside(report, out)?;
    resident(report, out)?;
    backings(report, out)?;
    throughput(report, out)?;
    extra(report, out)?;
    aims(report, out)?;
    for skipped in &report.skipped {
        writeln!(out, "not measured: {skipped}")?;
    }
    Ok(())
}

fn ruler(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let ruler = &report.ruler;
    writeln!(
        out,
        "The ruler: a sleep of {} in the pause.",
        time(ruler.sleep_us)
    )?;
    writeln!(
        out,
        "  The pause's gap in the guest's progress, the smallest with it less the smallest without; by\n  \
         the guest's list of gaps, and by looking at the guest from outside alone.\n"
    )?;
    let mut table = Table::new(&[
        "min / median / max",
        "with",
        "without",
        "reads",
        "outside alone reads",
    ]);
    table.row([
        String::new(),
        three(ruler.with_us),
        three(ruler.without_us),
        time(ruler.reads_us),
        time(ruler.outside_reads_us),
    ]);
    table.print(out)?;
    if ruler.is_right {
        writeln!(out, "  Right to 1 ms.\n")
    } else {
        writeln!(
            out,
            "  *** THE RULER IS WRONG by more than 1 ms: no number below can be trusted. ***\n"
        )
    }
}

fn longest_gaps(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Longest gap of the guest, each phase on its own: median / max of the runs, and in brackets the\n\
         median of the longest gap in an idle window of equal length in the same run. Gaps from 20 us on\n\
         are seen. `idle` leaves its memory alone; `full` writes all RAM in random order as fast as it\n\
         goes. Less idle: longest gap of the whole snapshot less that of its idle window, run by run.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "",
        "runs",
        "arming",
        "pause",
        "saving",
        "teardown",
        "less idle",
    ]);
    for series in report.gaps.iter().chain(&report.lost) {
        let mut row = machine(series);
        row.push(series.runs.to_string());
        let phases = [series.arming, series.pause, series.saving, series.teardown];
        row.extend(phases.map(gaps));
        row.push(pair(series.excess_us));
        table.row(row);
    }
    table.print(out)?;
    let all = report.gaps.iter().chain(&report.lost);
    let differences = all.map(|series| series.clock_difference_us.median);
    writeln!(
        out,
        "  Looked at from outside alone, the longest gap is shorter by {} (the median of the worst row):\n  \
         the time between two looks.\n",
        time(differences.fold(0.0, f64::max))
    )
}

fn lost(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Guest time lost, a guest that goes over 256 MiB of its 512 MiB at full rate: time from the\n\
         command until 200 ms after the last protection was gone, less the time that its writes (reads)\n\
         take at full rate; the idle column is the same of an idle window of equal length. Protect once:\n\
         the same guest when all RAM is protected and let go with nothing saved.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "",
        "lost",
        "idle",
        "protect once",
        "ratio",
        "snapshot",
        "pages/s",
    ]);
    for series in &report.lost {
        let what = series.what;
        let once = report
            .protect_once
            .iter()
            .find(|once| (once.pages, once.load) == (what.pages, what.load));
        let mut row = machine(series);
        row.push(pair(series.lost_us));
        row.push(time(series.idle_lost_us.median));
        row.push(once.map_or_else(String::new, |once| pair(once.lost_us)));
        row.push(once.map_or_else(String::new, |once| {
            let ratio = super::aims::ratio(series.lost_us.median, once.lost_us.median);
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
        }));
        row.push(time(series.engine.total_us.median));
        row.push(format!("{:.1} M", series.full_rate_pages_per_s / 1e6));
        table.row(row);
    }
    table.print(out)
}

fn stalls(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Stalls, a guest that writes at full rate: of each snapshot as many of the longest gaps from the\n\
         end of the pause until all protection is gone as the engine answered faults, all runs together;\n\
         in brackets as many of the idle window. Next to a bare fault round trip: a protected page,\n\
         released alone by a thread that waits for it.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "",
        "a run",
        "p50 (idle)",
        "p99 (idle)",
        "p50 / bare",
        "p99 / bare",
    ]);
    let bare = report
        .bare_faults
        .iter()
        .find(|fault| fault.through == report.accel);
    for fault in &report.bare_faults {
        table.row([
            "bare fault".to_owned(),
            format!("through {}", fault.through),
            fault.count.to_string(),
            time(fault.p50_us),
            time(fault.p99_us),
        ]);
    }
    let writing = |series: &&Series| series.what.load == "write";
    for series in report.gaps.iter().chain(&report.lost).filter(writing) {
        let stalls = &series.stalls;
        let mut row = machine(series);
        row.push(format!("{:.0}", stalls.count));
        let beside = |us: f64, idle_us: f64| format!("{} ({})", time(us), time(idle_us));
        row.push(beside(stalls.p50_us, stalls.idle_p50_us));
        row.push(beside(stalls.p99_us, stalls.idle_p99_us));
        if let Some(bare) = bare {
            row.push(format!("{:.1}", stalls.p50_us / bare.p50_us));
            row.push(format!("{:.1}", stalls.p99_us / bare.p99_us));
        }
        table.row(row);
    }
    table.print(out)
}

fn beside(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Beside N busy threads a core, a guest that goes over 256 MiB of its 512 MiB at full rate: from the\n\
         command until the file is complete, median / max; of what a fair part of each core would make of\n\
         the snapshot without them, N + 1 times as long; and the guest's stalls, p99 (in brackets as many\n\
         of the idle window beside the same threads).\n"
    )?;
    let mut table = Table::new(&["N", "snapshot", "without", "of N + 1", "stalls", "without"]);
    for beside in &report.beside {
        let (stalls, idle) = (beside.stalls_p99_us, beside.idle_stalls_p99_us);
        table.row([
            beside.threads_per_core.to_string(),
            pair(beside.total_us),
            pair(beside.alone_us),
            format!("{:.2}", beside.share()),
            format!("{} ({})", time(stalls), time(idle)),
            time(beside.alone_stalls_p99_us),
        ]);
    }
    table.print(out)
}

fn resident(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Resident guest RAM of an idle guest of which 1/16 was touched (every eighth page of the first\n\
         half), before and after a snapshot; page tables are those of the process.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "RAM",
        "before",
        "after",
        "page tables",
        "after",
        "taken in",
    ]);
    for guest in &report.resident {
        table.row([
            guest.backing.to_owned(),
            size(guest.memory_bytes as f64),
            size(guest.before_bytes as f64),
            size(guest.after_bytes as f64),
            size(guest.page_tables_before_bytes as f64),
            size(guest.page_tables_after_bytes as f64),
            time(guest.total_us),
        ]);
    }
    table.print(out)
}

fn backings(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Snapshots of a guest that writes 50,000 random pages/s, by what its RAM is made of. Median /\n\
         maximum.\n"
    )?;
    let mut table = Table::new(&["", "RAM", "before the pause", "all"]);
    for of in &report.backings {
        table.row([
            of.backing.to_owned(),
            size(of.memory_bytes as f64),
            pair(of.setup_us),
            pair(of.total_us),
        ]);
    }
    table.print(out)
}

fn throughput(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Throughput: pages of a guest that is idle, against plain buffers written by as many threads of\n\
         the same priority to the same directory. Saving: from the pause until all pages are in the\n\
         file. Synced: from the command until the file is synced and named; plain writes and a sync.\n"
    )?;
    let mut table = Table::new(&[
        "", "bytes", "threads", "saving", "plain", "share", "synced", "plain", "share",
    ]);
    for there in &report.throughput {
        let rate = |us: f64| {
            let bytes = there.bytes as f64 / (us.max(1.0) / 1e6);
            format!("{}/s", size(bytes))
        };
        table.row([
            there.dir.clone(),
            size(there.bytes as f64),
            there.threads.to_string(),
            rate(there.save_us.median),
            rate(there.plain_us.median),
            format!("{:.0} %", there.share() * 100.0),
            rate(there.total_us.median),
            rate(there.plain_synced_us.median),
            format!("{:.0} %", there.synced_share() * 100.0),
        ]);
    }
    table.print(out)
}

fn extra(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Extra memory, the most of all runs: copies that waited in the page buffer; page sets, tables and\n\
         checksums; growth of the process's peak resident memory (VmHWM less VmRSS before); of its page\n\
         tables (VmPTE, looked at every 10 ms) apart. And what the engine did, medians.\n"
    )?;
    let mut table = Table::new(&[
        "",
        "",
        "buffer",
        "sets",
        "resident",
        "page tables",
        "faults",
        "pages a fault",
        "rounds",
        "armed in pause",
        "engine's pause",
        "snapshot",
    ]);
    for series in report.gaps.iter().chain(&report.lost) {
        let engine = &series.engine;
        let mut row = machine(series);
        row.push(size(engine.peak_buffer_bytes.max));
        row.push(size(engine.set_bytes.max));
        row.push(size(series.extra_resident_bytes.max));
        row.push(size(series.extra_page_table_bytes.max));
        row.push(format!("{:.0}", engine.faults.median));
        let each = engine.fault_pages.median / engine.faults.median.max(1.0);
        row.push(format!("{each:.0}"));
        row.push(format!("{:.0}", engine.arm_rounds.median));
        row.push(format!("{:.0}", engine.rearmed_pages.median));
        row.push(time(engine.pause_us.median));
        row.push(time(engine.total_us.median));
        table.row(row);
    }
    table.print(out)
}

/// What others read on a machine of this kind, once, with other programs: to know the order of
/// magnitude, not to compare.
const PEERS: &str = "\
For comparison, measured once on a machine of this kind (2 cores, Linux 6.18, KVM in software) with
512 MiB of RAM of which 256 MiB are written, files on tmpfs, not in this run: QEMU 7.2's background
snapshot at full rate stops the guest for 17.5 ms and leaves it 16 % of its rate for 1.6 s (2 GiB:
57.5 ms, 6.4 s); stopped snapshots stop it for 198 ms (QEMU), 137 ms (Cloud Hypervisor), 303 ms
(Firecracker).";

fn aims(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Aims, judged by the median of the runs.\n")?;
    let mut table = Table::new(&["", "aim", "reached", ""]);
    for aim in &report.aims {
        let verdict = match aim.is_met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not judged: the limit was lost in noise",
        };
        table.row([
            aim.what.clone(),
            aim.aim.clone(),
            aim.reached.clone(),
            verdict.to_owned(),
        ]);
    }
    table.print(out)?;
    writeln!(out, "{PEERS}\n")
}
