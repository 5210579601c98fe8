//! A snapshot from the command to the name, or to the end of a stream.
//!
//! The order is that of the kernel's and QEMU's background snapshots, and of what went wrong with
//! them: guest RAM is armed before the pause, device state is taken inside it and *before* the
//! last look at RAM (collecting it may write there), and written after RAM. Every step that fails
//! drops what was built so far, and the destructors undo it: `PartialFile` leaves no file, and `Frozen`
//! takes all protection away. Between these two the guest is let run on, which may fail and is told.
//!
//! A guest that is stopped for its snapshot may be run by whoever finds the file. So from just
//! before the file gets its name nothing but the certainty that it did not lets it run on.
//!
//! | room | for |
//! |---|---|
//! | `preparation` | refusals, the way out, arming: the guest runs |
//! | `pause` | the moment of which the picture is |
//! | `saving` | all pages leave, then all protection goes |
//! | `finish` | the rest, and the name or the end |
//! | `refusals` | what is not begun at all |
//! | `outlet` | where a snapshot goes: a file, or a stream |
//! | `picture` | hands out copies of frozen pages |
//! | `request`, `report` | what was asked for, and what it was |

mod finish;
mod outlet;
mod pause;
mod picture;
mod preparation;
mod refusals;
mod report;
mod request;
mod saving;

use std::path::{Path, PathBuf};
use std::time::Instant;

use paguro_newfile::PartialFile;

use crate::channel::{self, Address};
use crate::error::with_causes;
use crate::machine::Machine;
use crate::time::{micros, monotonic_ns};
use crate::{Control, SnapshotError, SnapshotOptions, Status};

use finish::finish;
use outlet::{Opened, StreamOutlet};
use pause::pause;
use preparation::{Prepared, prepare};
use request::Request;
use saving::{release, save};

pub use refusals::check_can_freeze;
pub use report::SnapshotReport;

/// Takes a snapshot of `machine` to `path`. Blocks until the file stands under its name, or
/// nothing is left of it; to be run in a thread of its own, while `control` is watched from others.
///
/// # Errors
///
/// [`SnapshotError`]; the machine then runs on if it ran before, unless the error says otherwise
/// ([`NotResumed`](SnapshotError::NotResumed), [`FileInDoubt`](SnapshotError::FileInDoubt),
/// [`LostPages`](SnapshotError::LostPages)). The same text is kept in `control`.
pub fn snapshot(
    machine: &dyn Machine,
    path: &Path,
    options: &SnapshotOptions,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let request = Request {
        machine,
        options,
        control,
    };
    let open = || Ok(PartialFile::create(path, !options.for_tests.unsynced)?);
    conclude(run(request, path.to_owned(), open), control)
}

/// The same as a stream: to any address, as QEMU's `background-snapshot` without `mapped-ram`. Every
/// page is in it once, and nothing tells where the next one is, so one thread writes it. There is no
/// return path: what the other side makes of it is not known, and whoever loads it has a second
/// machine, while this one runs on.
///
/// Options that concern the file (`threads`, `checksums`) mean nothing here.
///
/// # Errors
///
/// [`SnapshotError`], as of [`snapshot`].
pub fn snapshot_to_stream(
    machine: &dyn Machine,
    address: &Address,
    channel: &channel::Options,
    options: &SnapshotOptions,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let request = Request {
        machine,
        options,
        control,
    };
    let open = || {
        let ram = machine.memory().ram();
        StreamOutlet::open(address, channel, machine.machine_name(), ram)
    };
    conclude(run(request, address.to_string().into(), open), control)
}

/// Tells those who watch how it ended.
fn conclude(
    result: Result<SnapshotReport, SnapshotError>,
    control: &Control,
) -> Result<SnapshotReport, SnapshotError> {
    let result = result.map_err(|error| match error {
        // There may be a file.
        error if error.is_in_doubt() => error,
        error @ SnapshotError::NotResumed { .. } => error,
        _ if control.is_cancelled() => SnapshotError::Cancelled,
        error => error,
    });
    let not_resumed = match &result {
        Ok(report) => report.not_resumed.clone(),
        Err(SnapshotError::NotResumed { source, .. }) => Some(with_causes(source)),
        Err(_) => None,
    };
    if let Some(why) = not_resumed {
        control.set_not_resumed(why);
    }
    match &result {
        Ok(_) => control.finish(Status::Completed, None),
        Err(SnapshotError::Cancelled) => control.finish(Status::Cancelled, None),
        Err(error) => control.finish(Status::Failed, Some(with_causes(error))),
    }
    result
}

/// The four parts. What each has made stands here until all is over, in this order; so what fails is
/// undone in the opposite one, after what the part itself held.
fn run<O: Opened>(
    request: Request<'_>,
    path: PathBuf,
    open: impl FnOnce() -> Result<O, SnapshotError>,
) -> Result<SnapshotReport, SnapshotError> {
    let begin = Instant::now();
    let mut report = SnapshotReport {
        path,
        background: request.options.background,
        begin_at_ns: monotonic_ns(),
        ..Default::default()
    };
    let memory = request.machine.memory();
    let _busy = memory.begin().ok_or(SnapshotError::Busy)?;
    request.control.advance(Status::Setup);
    let Prepared {
        opened,
        freeze,
        frozen,
    } = prepare(request, open, &mut report)?;
    report.setup_us = micros(begin.elapsed());
    report.pause_at_ns = monotonic_ns();

    let mut moment = pause(request, &freeze, &mut report)?;
    // Until the guest runs on, if that fails here.
    let mut frozen = Some(frozen);
    let saved = save(request, opened, &freeze, &moment.lengths, &mut report);
    let finished = saved.and_then(|outlet| {
        if let Some(frozen) = frozen.take() {
            release(frozen, &freeze, memory, &mut report);
        }
        finish(request, outlet, &freeze, &mut moment, &mut report)
    });
    finished.map_err(|failed| moment.guest.let_go_after(failed))?;
    report.total_us = micros(begin.elapsed());
    Ok(report)
}

#[cfg(test)]
mod tests;
