//! Several snapshots of one machine, and what its guest saw of all of them.

use std::path::Path;

use anyhow::Result;
use paguro_lab::Machine;
use paguro_lab::ruler::Window;
use serde::Serialize;

use super::run::Run;
use super::stats::{Spread, quantile};
use super::variant::Variant;

/// Which machine.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct What {
    /// RAM.
    pub memory_bytes: u64,
    /// RAM that the guest goes over; 0 if it is idle.
    pub set_bytes: u64,
    /// `4k` or `thp`.
    pub pages: &'static str,
    /// What the guest does: `idle` (it counts, and leaves its memory alone), `write` or `read`
    /// (pages of the set in random order, as fast as it goes).
    pub load: &'static str,
    /// What the page buffer is configured to hold.
    pub page_buffer_bytes: u64,
    /// RAM in huge pages when the first snapshot began.
    pub huge_bytes: u64,
}

/// The longest gap, and the longest in an idle window of the same length in the same run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Gaps {
    /// In the snapshot, microseconds; 0 is one below the threshold of 20 us.
    pub seen_us: Spread,
    /// In the idle window.
    pub idle_us: Spread,
}

/// Stalls: of each snapshot as many of the longest gaps, from the end of the pause until all
/// protection is gone, as the engine answered faults; of all runs together. (All gaps would be mostly
/// the host's timer, which takes 50 us from a guest time and again.)
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stalls {
    /// In one run, on average.
    pub count: f64,
    /// Half of them are no longer.
    pub p50_us: f64,
    /// 99 of 100 are no longer.
    pub p99_us: f64,
    /// The same of as many of the longest gaps of the idle window.
    pub idle_p50_us: f64,
    /// The same of as many of the longest gaps of the idle window.
    pub idle_p99_us: f64,
}

/// What a few snapshots of one machine read.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Of which machine.
    #[serde(flatten)]
    pub what: What,
    /// How the snapshots were taken.
    pub variant: Variant,
    /// How many.
    pub runs: usize,
    /// See the module `run`.
    pub arming: Gaps,
    /// See the module `run`.
    pub pause: Gaps,
    /// See the module `run`.
    pub saving: Gaps,
    /// See the module `run`.
    pub teardown: Gaps,
    /// See the module `run`.
    pub whole: Gaps,
    /// Longest gap of the whole less longest gap of the idle window, run by run.
    pub excess_us: Spread,
    /// Longest still of the outside clock alone that reached into the pause.
    pub pause_still_us: Spread,
    /// By how much the outside clock alone disagrees: longest gap less longest still in it.
    pub clock_difference_us: Spread,
    /// Stalls while saving and tearing down.
    pub stalls: Stalls,
    /// Guest time lost, from the command until 200 ms after the last protection was gone. Full rate
    /// is that of the guest just before and in the idle window, on average.
    pub lost_us: Spread,
    /// The same in an idle window of the same length: what the host takes anyway.
    pub idle_lost_us: Spread,
    /// Pages a second that the guest writes (or reads) at full rate.
    pub full_rate_pages_per_s: f64,
    /// The engine's own numbers.
    pub engine: Engine,
    /// Peak of the process's resident memory less resident memory before.
    pub extra_resident_bytes: Spread,
    /// Peak of the process's page tables less those before.
    pub extra_page_table_bytes: Spread,
}

/// Of the engine's report.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Engine {
    pub setup_us: Spread,
    pub pause_us: Spread,
    pub save_us: Spread,
    pub teardown_us: Spread,
    pub total_us: Spread,
    pub faults: Spread,
    pub fault_pages: Spread,
    pub arm_rounds: Spread,
    pub rearmed_pages: Spread,
    pub normal_pages: Spread,
    pub peak_buffer_bytes: Spread,
    pub set_bytes: Spread,
}

/// Takes `runs` snapshots of a machine whose memory is warm. `next` is called after each.
pub fn measure(
    machine: &mut Machine,
    what: What,
    variant: Variant,
    runs: usize,
    dir: &Path,
    next: &mut dyn FnMut() -> Result<()>,
) -> Result<Series> {
    let mut all = Vec::with_capacity(runs);
    for _ in 0..runs {
        all.push(Run::take(machine, variant, dir)?);
        next()?;
    }
    Ok(Series::of(what, variant, &all))
}

impl Series {
    fn of(what: What, variant: Variant, all: &[Run]) -> Self {
        let spread = |value: &dyn Fn(&Run) -> f64| Spread::of(all.iter().map(value));
        let phase = |window: &dyn Fn(&Run) -> Window| Gaps {
            seen_us: spread(&|run| run.longest_us(window(run))),
            idle_us: spread(&|run| run.idle_longest_us(window(run))),
        };
        let whole_us = |run: &Run| run.gaps.longest_ns(run.whole) as f64 / 1e3;
        let still_us = |run: &Run| run.record.still_across(run.whole).ns as f64 / 1e3;
        let stalls: Vec<f64> = all.iter().flat_map(Run::stalls_us).collect();
        let idle_stalls: Vec<f64> = all.iter().flat_map(Run::idle_stalls_us).collect();
        let runs = all.len().max(1) as f64;
        let field = |name: &'static str| spread(&|run| run.number(name));
        Self {
            what,
            variant,
            runs: all.len(),
            arming: phase(&Run::arming),
            pause: Gaps {
                seen_us: spread(&|run| run.gaps.longest_ns(run.pause) as f64 / 1e3),
                idle_us: spread(&|run| run.idle_longest_us(run.pause)),
            },
            saving: phase(&Run::saving),
            teardown: phase(&|run| run.teardown),
            whole: Gaps {
                seen_us: spread(&whole_us),
                idle_us: spread(&|run| run.idle_longest_us(run.whole)),
            },
            excess_us: spread(&|run| whole_us(run) - run.idle_longest_us(run.whole)),
            pause_still_us: spread(&|run| run.record.still_across(run.pause).ns as f64 / 1e3),
            clock_difference_us: spread(&|run| whole_us(run) - still_us(run)),
            stalls: Stalls {
                count: stalls.len() as f64 / runs,
                p50_us: quantile(&stalls, 0.5).unwrap_or(0.0),
                p99_us: quantile(&stalls, 0.99).unwrap_or(0.0),
                idle_p50_us: quantile(&idle_stalls, 0.5).unwrap_or(0.0),
                idle_p99_us: quantile(&idle_stalls, 0.99).unwrap_or(0.0),
            },
            lost_us: spread(&|run| run.around().lost_us()),
            idle_lost_us: spread(&|run| run.around().idle_lost_us()),
            full_rate_pages_per_s: spread(&|run| run.around().full_rate()).median,
            engine: Engine {
                setup_us: field("setup_us"),
                pause_us: field("pause_us"),
                save_us: field("save_us"),
                teardown_us: field("teardown_us"),
                total_us: field("total_us"),
                faults: field("faults"),
                fault_pages: field("fault_pages"),
                arm_rounds: field("arm_rounds"),
                rearmed_pages: field("rearmed_pages"),
                normal_pages: field("normal_pages"),
                peak_buffer_bytes: field("peak_buffer_bytes"),
                set_bytes: field("set_bytes"),
            },
            extra_resident_bytes: spread(&|run| run.extra_resident_bytes),
            extra_page_table_bytes: spread(&|run| run.extra_page_table_bytes),
        }
    }
}
