//! Machines that are warm, files that have room: what must be so before anything is timed.

use std::path::Path;

use anyhow::{Context, Result};
use paguro_lab::machine::Parameters;
use paguro_lab::{Choice, Machine, host};
use paguro_migration::SnapshotOptions;
use paguro_workload::Spec;
use paguro_workload::spec::Op;
use serde_json::json;

use super::fill::{Part, fill};
use super::series::What;

/// What an idle guest goes over: nothing is written but its own counters.
pub const IDLE_SET: u64 = 2 << 20;

/// Memory that is left to the host.
pub const SPARE: u64 = 2 << 30;

/// Fills the first `share` of RAM, and waits until the guest has gone over its set at least once.
pub fn warm(machine: &mut Machine, spec: Spec, share: f64) -> Result<What> {
    let memory_bytes = machine.options().memory_bytes;
    fill(machine, Part::dense(share))?;
    let set_bytes = spec.set_bytes.unwrap_or(memory_bytes);
    // Twice as many pages hold one whole pass, wherever in a pass it begins.
    machine.wait_writes(2 * set_bytes / paguro_sys::page_size() as u64)?;
    let load = match (spec.op, set_bytes) {
        (_, IDLE_SET) => "idle",
        (Op::Write, _) => "write",
        (Op::Read, _) => "read",
    };
    Ok(What {
        memory_bytes,
        set_bytes: if load == "idle" { 0 } else { set_bytes },
        pages: machine.options().pages.name(),
        load,
        page_buffer_bytes: page_buffer_bytes(machine)?,
        huge_bytes: machine.ram_memory()?.huge_bytes,
    })
}

/// As it is configured where nothing is said about it.
fn page_buffer_bytes(machine: &mut Machine) -> Result<u64> {
    let parameters = machine.execute("query-migrate-parameters", json!({}))?;
    match parameters["x-paguro-page-buffer"].as_u64() {
        Some(0) | None => {
            let ram = machine.options().memory_bytes as usize;
            Ok(SnapshotOptions::new().page_buffer_for(ram) as u64)
        }
        Some(bytes) => Ok(bytes),
    }
}

/// A directory for snapshots that goes away with them.
pub fn files_in(parent: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new()
        .prefix("paguro-bench-")
        .tempdir_in(parent);
    made.with_context(|| format!("cannot make a directory in {}", parent.display()))
}

/// One snapshot that nothing is measured of but what its report says.
pub fn snapshot(machine: &mut Machine, dir: &Path, sync: bool) -> Result<serde_json::Value> {
    let path = dir.join("snapshot");
    let parameters = Parameters::from_iter([("x-paguro-sync".to_owned(), json!(sync))]);
    let report = machine.snapshot(&path, &parameters, true)?;
    std::fs::remove_file(&path).context("cannot remove a snapshot")?;
    Ok(report)
}

/// Touches so much of the host's free memory, and gives it back.
///
/// What is free in a host that is itself a guest need not be there: to touch it for the first time
/// costs ten times of what it costs later, and the whole core stands still meanwhile. Memory given back
/// last is handed out first, so that after this what is measured finds memory of the same kind in
/// each run. What the host needs itself is left alone.
pub fn warm_host(bytes: u64) {
    let there = host::memory_available_bytes().unwrap_or(0);
    let bytes = bytes.min(there.saturating_sub(SPARE));
    // Not zeros, which could be mapped without being touched; nor may the compiler see that nobody
    // ever looks at it.
    drop(std::hint::black_box(vec![0x55_u8; bytes as usize]));
}

/// Whether a machine of that size and its snapshot fit into memory.
pub fn room_for(bytes: u64) -> Result<(), String> {
    let wanted = 2 * bytes + SPARE;
    match host::memory_available_bytes() {
        Some(there) if there < wanted => Err(format!(
            "it needs {} MiB of memory, and {} MiB are available",
            wanted >> 20,
            there >> 20
        )),
        _ => Ok(()),
    }
}

/// Whether so many bytes fit into a directory.
pub fn room_in(dir: &Path, bytes: u64) -> Result<(), String> {
    match rustix::fs::statvfs(dir) {
        Ok(stat) if stat.f_bavail.saturating_mul(stat.f_frsize) < bytes => {
            Err("there is not enough room".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
