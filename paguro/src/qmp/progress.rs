//! `query-migrate`: how far a migration is, in QEMU's fields.

use std::sync::atomic::{AtomicU64, Ordering};

use paguro_migration::control::{Control, Status};
use serde_json::{Value, json};

use super::commands::Answer;
use super::migrate::{Job, Outcome};
use super::{Args, Monitor, QmpError};

/// `query-migrate`: `{}` before the first migration.
pub fn query(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let last = monitor.migrations.lock().last.clone();
    Ok(last.map_or_else(|| json!({}), |job| describe(&job)).into())
}

/// `x-paguro-query-report`: the last snapshot's own report, `{}` if there is none.
pub fn query_report(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let last = monitor.migrations.lock().last.clone();
    let report = last
        .and_then(|job| job.outcome())
        .and_then(|outcome| outcome.report);
    Ok(report.unwrap_or_else(|| json!({})).into())
}

fn describe(job: &Job) -> Value {
    // In this order: what has an outcome has its last status too.
    let outcome = job.outcome();
    let status = shown(job.control.status(), outcome.is_some());
    let mut all = json!({ "status": status.name() });
    match outcome {
        Some(outcome) if status != Status::Completed => {
            let Outcome {
                error: Some(error),
                hint,
                ..
            } = outcome
            else {
                return all;
            };
            if status == Status::Failed {
                let hinted = hint.as_ref().map(|hint| format!("{error} ({hint})"));
                all["error-desc"] = hinted.unwrap_or_else(|| error.clone()).into();
                all["x-paguro-error"] = error.into();
                all["x-paguro-hint"] = hint.into();
            }
        }
        _ => numbers(&mut all, job, status),
    }
    all
}

/// A migration whose thread has not come to its end shows no final state: a client that reads
/// `completed` may start the next one.
fn shown(status: Status, ended: bool) -> Status {
    match status {
        Status::None => Status::Setup,
        Status::Completed | Status::Failed if !ended => Status::Device,
        Status::Cancelled if !ended => Status::Cancelling,
        other => other,
    }
}

fn numbers(all: &mut Value, job: &Job, status: Status) {
    let Control { counters, .. } = &job.control;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let took = job.control.total_time();
    let (setup_us, pause_us) = (load(&counters.setup_us), load(&counters.pause_us));
    all["total-time"] = millis(took.as_micros() as u64).into();
    all["setup-time"] = millis(setup_us).into();
    if status == Status::Completed {
        all["downtime"] = millis(pause_us).into();
        all["x-paguro-downtime-us"] = pause_us.into();
    }
    let page = paguro_sys::page_size() as u64;
    let (total, done) = (load(&counters.total_pages), load(&counters.done_pages));
    let transferred = load(&counters.transferred_bytes);
    let normal = load(&counters.normal_pages);
    let seconds = took.as_secs_f64().max(1e-6);
    all["ram"] = json!({
        "total": total * page,
        "remaining": total.saturating_sub(done) * page,
        "transferred": transferred,
        "duplicate": load(&counters.zero_pages),
        "normal": normal,
        "normal-bytes": normal * page,
        "page-size": page,
        "mbps": transferred as f64 * 8.0 / seconds / 1e6,
        "pages-per-second": (done as f64 / seconds) as u64,
        // What only precopy and postcopy count.
        "dirty-pages-rate": 0,
        "dirty-sync-count": 0,
        "dirty-sync-missed-zero-copy": 0,
        "postcopy-requests": 0,
        "multifd-bytes": 0,
        "precopy-bytes": 0,
        "downtime-bytes": 0,
        "postcopy-bytes": 0,
    });
    all["x-paguro-faults"] = load(&counters.faults).into();
    all["x-paguro-background"] = job.background.into();
}

/// QEMU counts whole milliseconds.
fn millis(us: u64) -> u64 {
    us / 1000
}
