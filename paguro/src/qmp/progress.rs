//! `query-migrate`: how far a migration is, in QEMU's fields.

use std::sync::atomic::{AtomicU64, Ordering};

use paguro_migration::Ended;
use paguro_migration::control::Control;
use paguro_migration::source::{MigrateError, Migration, Progress};
use paguro_migration::switchover::Advice;
use serde_json::{Value, json};

use super::commands::Answer;
use super::incoming::Entry;
use super::jobs::{Job, Outcome, Work};
use super::{Args, Monitor, QmpError, with_causes};

/// `query-migrate`: of the last one out, or else of the one in; `{}` before any.
pub fn query(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    if let Some(job) = monitor.migrations.last() {
        return Ok(of_job(&job).into());
    }
    let entry = monitor.arrivals.entry();
    Ok(entry
        .map_or_else(|| json!({}), |entry| of_arrival(&entry))
        .into())
}

/// `x-paguro-query-report`: the own report of the last snapshot or migration, `{}` if there is none.
pub fn query_report(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let report = monitor
        .migrations
        .last()
        .and_then(|job| job.outcome())
        .and_then(|outcome| outcome.report);
    Ok(report.unwrap_or_else(|| json!({})).into())
}

fn of_job(job: &Job) -> Value {
    // In this order: what has an outcome has its last status too.
    let outcome = job.outcome();
    let status = job.status();
    let mut all = json!({ "status": status });
    let failure = match (&job.work, &outcome) {
        (Work::Snapshot { .. }, outcome) => outcome.clone(),
        (Work::Migration(_), Some(outcome)) => Some(outcome.clone()),
        // It is in doubt, or goes on telling its destination that it was given up.
        (Work::Migration(migration), None) => Some(unfinished(migration)),
    };
    let report = outcome.as_ref().and_then(|outcome| outcome.report.as_ref());
    if let Some(warning) = report.and_then(|report| report["warning"].as_str()) {
        all["x-paguro-warning"] = warning.into();
    }
    if let Some(why) = not_resumed(&job.work) {
        all["x-paguro-not-resumed"] = why.into();
    }
    if let Some(failure) = failure.filter(|_| status != "cancelled") {
        tell_failure(&mut all, failure);
    }
    match &job.work {
        Work::Snapshot {
            control,
            background,
            ..
        } => {
            if !matches!(status, "failed" | "cancelled") || outcome.is_none() {
                of_snapshot(&mut all, control, status);
                all["x-paguro-background"] = (*background).into();
            }
        }
        Work::Migration(migration) => of_migration(&mut all, migration, status),
    }
    all
}

fn unfinished(migration: &Migration) -> Outcome {
    let error = migration.error();
    match migration.reason() {
        Some(why) => {
            let error = MigrateError::Ended(Ended { why, cause: error });
            Outcome::of_migration(&error.into(), migration.address())
        }
        None => Outcome::unfinished(error),
    }
}

/// Why the guest stands still although it was to run on here.
fn not_resumed(work: &Work) -> Option<String> {
    let migration = match work {
        Work::Snapshot { control, .. } => return control.not_resumed(),
        Work::Migration(migration) => migration,
    };
    match &*migration.error()? {
        MigrateError::NotResumed { source, .. } => Some(with_causes(source)),
        _ => None,
    }
}

fn tell_failure(all: &mut Value, failure: Outcome) {
    let Some(error) = failure.error else { return };
    let hinted = failure.hint.as_ref();
    let hinted = hinted.map(|hint| format!("{error} ({hint})"));
    all["error-desc"] = hinted.unwrap_or_else(|| error.clone()).into();
    all["x-paguro-error"] = error.into();
    all["x-paguro-hint"] = failure.hint.into();
}

fn of_snapshot(all: &mut Value, control: &Control, status: &str) {
    let Control { counters, .. } = control;
    let took = control.total_time();
    let (setup_us, pause_us) = (load(&counters.setup_us), load(&counters.pause_us));
    all["total-time"] = millis(took.as_micros() as u64).into();
    all["setup-time"] = millis(setup_us).into();
    if status == "completed" {
        all["downtime"] = millis(pause_us).into();
        all["x-paguro-downtime-us"] = pause_us.into();
    }
    let page = paguro_sys::page_size() as u64;
    let (total, done) = (load(&counters.total_pages), load(&counters.done_pages));
    let transferred = load(&counters.transferred_bytes);
    let seconds = took.as_secs_f64().max(1e-6);
    let ram = Ram {
        total_bytes: total * page,
        remaining_bytes: total.saturating_sub(done) * page,
        transferred_bytes: transferred,
        zero_pages: load(&counters.zero_pages),
        normal_pages: load(&counters.normal_pages),
        mbps: transferred as f64 * 8.0 / seconds / 1e6,
        pages_per_second: (done as f64 / seconds) as u64,
        ..Ram::default()
    };
    all["ram"] = ram.to_json();
    all["x-paguro-faults"] = load(&counters.faults).into();
    let buffer_bytes = load(&counters.page_buffer_bytes);
    if buffer_bytes > 0 {
        all["x-paguro-page-buffer"] = json!({
            "size": buffer_bytes,
            "wanted": load(&counters.page_buffer_wanted_bytes),
            "bound": control.page_buffer_bound(),
            "waits": load(&counters.buffer_waits),
            "wait-us": load(&counters.buffer_wait_us),
        });
    }
}

fn of_migration(all: &mut Value, migration: &Migration, status: &str) {
    let progress = migration.progress();
    let total_us = migration.total_time().as_micros() as u64;
    all["total-time"] = millis(total_us).into();
    all["setup-time"] = millis(load(&progress.setup_us)).into();
    match status {
        "completed" => {
            let downtime_us = load(&progress.downtime_us);
            all["downtime"] = millis(downtime_us).into();
            all["x-paguro-downtime-us"] = downtime_us.into();
            all["x-paguro-forecast-us"] = load(&progress.forecast_us).into();
        }
        _ => {
            let expected_us = load(&progress.expected_downtime_us);
            all["expected-downtime"] = millis(expected_us).into();
            all["x-paguro-expected-downtime-us"] = expected_us.into();
        }
    }
    if load(&progress.forced) != 0 {
        all["x-paguro-forced"] = true.into();
    }
    let throttle = load(&progress.throttle_percent);
    if throttle > 0 {
        all["cpu-throttle-percentage"] = throttle.into();
    }
    all["ram"] = Ram::moving(progress, total_us).to_json();
    if let Some(cache_bytes) = migration.xbzrle_cache_bytes() {
        all["xbzrle-cache"] = xbzrle(progress, cache_bytes);
    }
    advise(all, migration.advice());
}

fn xbzrle(progress: &Progress, cache_bytes: u64) -> Value {
    let rate = |permille: &AtomicU64| load(permille) as f64 / 1000.0;
    json!({
        "cache-size": cache_bytes,
        "bytes": load(&progress.xbzrle_bytes),
        "pages": load(&progress.xbzrle_pages),
        "cache-miss": load(&progress.xbzrle_cache_misses),
        "cache-miss-rate": rate(&progress.xbzrle_cache_miss_permille),
        "encoding-rate": rate(&progress.xbzrle_encoding_rate_permille),
        "overflow": load(&progress.xbzrle_overflows),
    })
}

fn of_arrival(entry: &Entry) -> Value {
    let arrival = &entry.arrival;
    let mut all = json!({ "status": arrival.status().name() });
    if let Some(address) = entry.socket_address() {
        all["socket-address"] = address;
    }
    let failure = entry.outcome();
    let failure = failure.unwrap_or_else(|| Outcome::unfinished(arrival.error()));
    tell_failure(&mut all, failure);
    let total_us = arrival.total_time().as_micros() as u64;
    all["total-time"] = millis(total_us).into();
    all["ram"] = Ram::moving(arrival.progress(), total_us).to_json();
    // Once it is this side's, it is a machine as any other.
    if arrival.held().is_some() {
        advise(&mut all, arrival.advice());
    }
    all
}

/// What is so, and what an operator may do.
fn advise(all: &mut Value, advice: Advice) {
    let may: Vec<_> = advice.may.iter().map(|choice| choice.text()).collect();
    all["x-paguro-advice"] = json!({ "is": advice.is, "may": may });
}

/// The part `ram`. What only postcopy counts is 0.
#[derive(Default)]
struct Ram {
    total_bytes: u64,
    remaining_bytes: u64,
    transferred_bytes: u64,
    zero_pages: u64,
    normal_pages: u64,
    mbps: f64,
    pages_per_second: u64,
    dirty_pages_rate: u64,
    dirty_syncs: u64,
    multifd_bytes: u64,
    precopy_bytes: u64,
    downtime_bytes: u64,
}

impl Ram {
    fn moving(progress: &Progress, total_us: u64) -> Self {
        let (zero, normal) = (load(&progress.zero_pages), load(&progress.normal_pages));
        let seconds = total_us.max(1) as f64 / 1e6;
        Self {
            total_bytes: load(&progress.total_bytes),
            remaining_bytes: load(&progress.remaining_bytes),
            transferred_bytes: load(&progress.transferred_bytes),
            zero_pages: zero,
            normal_pages: normal,
            mbps: load(&progress.bandwidth) as f64 * 8.0 / 1e6,
            pages_per_second: ((zero + normal) as f64 / seconds) as u64,
            dirty_pages_rate: load(&progress.dirty_pages_rate),
            dirty_syncs: load(&progress.dirty_syncs),
            multifd_bytes: load(&progress.multifd_bytes),
            precopy_bytes: load(&progress.precopy_bytes),
            downtime_bytes: load(&progress.downtime_bytes),
        }
    }

    fn to_json(&self) -> Value {
        let page = paguro_sys::page_size() as u64;
        json!({
            "total": self.total_bytes,
            "remaining": self.remaining_bytes,
            "transferred": self.transferred_bytes,
            "duplicate": self.zero_pages,
            "normal": self.normal_pages,
            "normal-bytes": self.normal_pages * page,
            "page-size": page,
            "mbps": self.mbps,
            "pages-per-second": self.pages_per_second,
            "dirty-pages-rate": self.dirty_pages_rate,
            "dirty-sync-count": self.dirty_syncs,
            "dirty-sync-missed-zero-copy": 0,
            "postcopy-requests": 0,
            "multifd-bytes": self.multifd_bytes,
            "precopy-bytes": self.precopy_bytes,
            "downtime-bytes": self.downtime_bytes,
            "postcopy-bytes": 0,
        })
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// QEMU counts whole milliseconds.
fn millis(us: u64) -> u64 {
    us / 1000
}
