//! What comes after the pages, up to the name of the file or the end of the stream.
//!
//! Nothing is protected any more, and the way out is owned here: what fails drops it, and then the guest
//! that was stopped runs on, beside no file. But whoever finds a file may run the guest that is in it. So
//! from just before the file gets its name the guest is held, and nothing but the certainty that it did
//! not lets it run on. A cancel counts for as long as nobody can have it all yet, which the way out
//! knows.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use paguro_dirty::Freeze;
use paguro_sys::page_size;
use paguro_wire::globalstate;
use paguro_wire::snapshot::extension::Facts;

use super::outlet::Outlet;
use super::pause::Moment;
use super::report::SnapshotReport;
use super::request::Request;
use crate::machine::Stay;
use crate::time::micros;
use crate::{SnapshotError, Status};

/// Writes the rest, and gives the whole its name or its end.
pub(super) fn finish(
    request: Request<'_>,
    mut outlet: impl Outlet,
    freeze: &Freeze,
    moment: &mut Moment<'_>,
    report: &mut SnapshotReport,
) -> Result<(), SnapshotError> {
    let control = request.control;
    let memory = request.machine.memory();
    if control.is_cancelled() {
        return Err(SnapshotError::Cancelled);
    }
    moment.guest.check_ram(memory)?;
    control.advance(Status::Device);
    let finishing = Instant::now();
    let state = if moment.was_running {
        globalstate::RUNNING
    } else {
        globalstate::PAUSED
    };
    let mut sections = vec![globalstate::section(state)?];
    sections.append(&mut moment.devices);
    let table_bytes = outlet.table_bytes();
    outlet.write_rest(&sections, &facts(moment.was_running))?;
    let transferred = &control.counters.transferred_bytes;
    transferred.store(outlet.written_bytes(), Ordering::Relaxed);
    report.count(freeze, table_bytes, control);
    outlet.settle(control)?;
    // What is wrong with a page may be noticed a little after it was read.
    moment.guest.check_ram(memory)?;
    report.file_bytes = outlet.len_bytes();
    moment.guest.hold(Stay::InDoubt);
    match outlet.complete() {
        Ok(warning) => {
            moment.guest.hold(Stay::Stopped);
            report.warning = warning;
        }
        Err(error) => {
            if !error.is_in_doubt() {
                moment.guest.free();
            }
            return Err(error);
        }
    }
    report.finish_us = micros(finishing.elapsed());
    Ok(())
}

/// What a file tells whoever looks at it.
fn facts(was_running: bool) -> Facts {
    Facts {
        paguro_version: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at_unix_s: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        was_running,
        host_page_size_bytes: page_size() as u64,
    }
}
