//! All pages leave, then all protection goes.
//!
//! The way out is owned here while pages go through it: what fails drops it, and so the file, before the
//! guest that was stopped runs on and before the freeze ends. It is handed back when all pages are in
//! it.

use std::time::Instant;

use paguro_dirty::Freeze;

use super::outlet::{Opened, Outlet};
use super::picture::Picture;
use super::preparation::Frozen;
use super::report::SnapshotReport;
use super::request::Request;
use crate::time::{micros, monotonic_ns};
use crate::{Memory, SnapshotError};

/// Has all pages leave, of blocks that had these lengths in the pause.
pub(super) fn save<O: Opened>(
    request: Request<'_>,
    opened: O,
    freeze: &Freeze,
    lengths: &[usize],
    report: &mut SnapshotReport,
) -> Result<O::Outlet, SnapshotError> {
    let saving = Instant::now();
    let mut outlet = opened.lay_out(request, lengths)?;
    let picture = Picture::new(request, freeze);
    picture.cancellable(|| outlet.save_pages(&picture))?;
    report.save_us = micros(saving.elapsed());
    Ok(outlet)
}

/// Takes all protection and registration away. What was seen written tells the next freeze where to
/// begin.
pub(super) fn release(
    frozen: Frozen,
    freeze: &Freeze,
    memory: &Memory,
    report: &mut SnapshotReport,
) {
    let teardown = Instant::now();
    drop(frozen);
    report.teardown_us = micros(teardown.elapsed());
    report.free_at_ns = monotonic_ns();
    memory.set_written(freeze.written());
}
