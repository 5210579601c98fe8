//! The host's limits, measured in the same run: what a fault costs without an engine, what
//! protection costs with nothing saved, what the file system takes.

use anyhow::{Result, bail};
use paguro_ram::PageKind;
use paguro_sys::Host;
use paguro_vmm::Accel;
use paguro_workload::Spec;
use paguro_workload::spec::{Op, Pattern};
use serde::Serialize;

use super::rig::Rig;
use super::run::{Around, wait_before, wait_for_idle};
use super::stats::{Spread, quantile};

/// RAM that is written or read to find what is lost.
pub const SET_BYTES: u64 = 256 << 20;
/// RAM of the machine that does so.
pub const MEMORY_BYTES: u64 = 512 << 20;

/// Pages that a guest is made to fault on.
const FAULTS: usize = 2048;

/// What a fault costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BareFault {
    /// Taken by a vCPU of `kvm`, or by a thread (`threads`).
    pub through: &'static str,
    /// Faults measured.
    pub count: usize,
    /// Half of the stalls are no longer.
    pub p50_us: f64,
    /// 99 of 100 are no longer.
    pub p99_us: f64,
}

/// What protection costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProtectOnce {
    /// `4k` or `thp`.
    pub pages: &'static str,
    /// `write` or `read`.
    pub load: &'static str,
    /// How many times.
    pub runs: usize,
    /// Guest time lost, defined as for snapshots.
    pub lost_us: Spread,
    /// Guest time lost in the idle window.
    pub idle_lost_us: Spread,
    /// How long it took.
    pub took_us: Spread,
}

/// A guest that goes over its set at random, as fast as it can.
pub fn full_speed(op: Op, set_bytes: Option<u64>) -> Spec {
    Spec {
        pattern: Pattern::Random,
        rate_pages_per_s: 0,
        op,
        set_bytes,
        ..Spec::default()
    }
}

/// The bare fault round trip.
pub fn bare_fault(accel: Accel, host: &Host) -> Result<BareFault> {
    const SET: u64 = 64 << 20;
    const MEMORY: u64 = 96 << 20;
    // Less than the fault of a thread costs, and of a vCPU.
    let threshold_us = if accel == Accel::Kvm { 20 } else { 3 };
    let spec = full_speed(Op::Write, Some(SET));
    let rig = Rig::start(accel, PageKind::Small, spec, MEMORY, threshold_us, host)?;
    let ruler = rig.ruler()?;
    wait_before();
    let window = rig.fault_once(FAULTS)?;
    wait_before();
    let gaps = ruler.read().gaps()?;
    let mut stalls: Vec<f64> = gaps
        .within(window)
        .map(|gap| gap.ns() as f64 / 1e3)
        .collect();
    // As for snapshots: as many of the longest as there were faults.
    stalls.sort_by(|a, b| b.total_cmp(a));
    stalls.truncate(FAULTS);
    let (Some(p50_us), Some(p99_us)) = (quantile(&stalls, 0.5), quantile(&stalls, 0.99)) else {
        bail!("the guest met no protected page");
    };
    Ok(BareFault {
        through: accel.name(),
        count: stalls.len(),
        p50_us,
        p99_us,
    })
}

/// Guest time lost when all is protected and let go, `runs` times.
pub fn protect_once(
    accel: Accel,
    pages: (&'static str, PageKind),
    load: (&'static str, Op),
    runs: usize,
    host: &Host,
    next: &mut dyn FnMut() -> Result<()>,
) -> Result<ProtectOnce> {
    let spec = full_speed(load.1, Some(SET_BYTES));
    let rig = Rig::start(accel, pages.1, spec, MEMORY_BYTES, 20, host)?;
    let mut all = Vec::new();
    for _ in 0..runs {
        let ruler = rig.ruler()?;
        wait_before();
        let whole = rig.protect_once()?;
        wait_for_idle(whole);
        let record = ruler.read();
        // What was not all seen says nothing.
        record.gaps()?;
        let around = Around {
            record: &record,
            whole,
        };
        all.push((
            around.lost_us(),
            around.idle_lost_us(),
            whole.ns() as f64 / 1e3,
        ));
        next()?;
    }
    Ok(ProtectOnce {
        pages: pages.0,
        load: load.0,
        runs,
        lost_us: Spread::of(all.iter().map(|run| run.0)),
        idle_lost_us: Spread::of(all.iter().map(|run| run.1)),
        took_us: Spread::of(all.iter().map(|run| run.2)),
    })
}
