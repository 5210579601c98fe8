//! All that is done before the pause, while the guest runs: refusals, the way out, arming.
//!
//! The refusals own nothing. What is opened next is the way out, so that a name that cannot be had, or
//! nobody who listens, costs the guest nothing; then comes the freeze, whose protection the guest
//! notices. A failure takes it all back in the opposite order: protection goes before the file.

use std::sync::Arc;

use paguro_dirty::{Freeze, FreezeOptions};
use paguro_faults::Faults;
use paguro_sys::page_size;

use super::refusals::{check, watch};
use super::report::SnapshotReport;
use super::request::Request;
use crate::SnapshotError;

/// What stands when the pause may come. Its owner takes it apart into values of this order, of which the
/// last one is dropped first.
pub(super) struct Prepared<O> {
    /// The way out; nothing of it is left unless it is completed.
    pub(super) opened: O,
    /// Armed. It tells what it saw when it is over, too.
    pub(super) freeze: Arc<Freeze>,
    /// Ends it.
    pub(super) frozen: Frozen,
}

/// A freeze that is ended on every path.
pub(super) struct Frozen(Arc<Freeze>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Refuses, opens, arms.
pub(super) fn prepare<O>(
    request: Request<'_>,
    open: impl FnOnce() -> Result<O, SnapshotError>,
    report: &mut SnapshotReport,
) -> Result<Prepared<O>, SnapshotError> {
    let Request {
        machine,
        options,
        control,
    } = request;
    check(options)?;
    let faults = if options.background {
        Some(watch(machine)?)
    } else {
        None
    };
    let opened = open()?;
    let freeze = make_freeze(request, faults, report)?;
    machine.memory().set_freeze(&freeze);
    let frozen = Frozen(freeze.clone());
    if !options.for_tests.arm_in_pause {
        let armed = freeze.arm(|| !control.is_cancelled());
        armed.map_err(|error| {
            if control.is_cancelled() {
                SnapshotError::Cancelled
            } else {
                SnapshotError::Freeze(error)
            }
        })?;
    }
    Ok(Prepared {
        opened,
        freeze,
        frozen,
    })
}

/// Nothing is protected by it yet.
fn make_freeze(
    request: Request<'_>,
    faults: Option<Arc<Faults>>,
    report: &mut SnapshotReport,
) -> Result<Arc<Freeze>, SnapshotError> {
    let options = request.options;
    let memory = request.machine.memory();
    let ram = memory.ram();
    let buffer = options.page_buffer(ram);
    if let Some(bound) = &buffer.bound {
        let bytes = buffer.bytes;
        tracing::info!(%bound, bytes, wanted = buffer.wanted_bytes, "a small page buffer");
    }
    report.note_buffer(&buffer);
    request.control.set_page_buffer(&buffer);
    Freeze::new(
        faults,
        ram.clone(),
        memory.supply(),
        &memory.take_written(),
        FreezeOptions {
            host: memory.host(),
            chunk_pages: options.chunk_bytes / page_size(),
            buffer_bytes: buffer.bytes,
            huge: options.huge,
            retry: memory.map_retry(),
            check: options.for_tests.check_freeze && options.background,
            sabotage: options.for_tests.sabotage,
        },
    )
    .map_err(SnapshotError::Freeze)
}
