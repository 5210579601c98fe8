//! The frozen picture, as those see it who carry its pages out.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use paguro_dirty::{Copied, Freeze};
use paguro_sys::{Pacer, Raised};

use super::request::Request;
use crate::control::add;
use crate::{Control, Memory, SnapshotError, SnapshotOptions};

/// Hands out copies of pages, each once, to as many threads as ask.
#[derive(Clone, Copy)]
pub(super) struct Picture<'a> {
    pub(super) options: &'a SnapshotOptions,
    pub(super) control: &'a Control,
    freeze: &'a Freeze,
    memory: &'a Memory,
}

impl<'a> Picture<'a> {
    pub(super) fn new(request: Request<'a>, freeze: &'a Freeze) -> Self {
        Self {
            options: request.options,
            control: request.control,
            freeze,
            memory: request.machine.memory(),
        }
    }

    /// The next pages to be written, unless it was cancelled. Between their claim and their release a vCPU
    /// may wait for them, and so for the core of whoever copies them.
    pub(super) fn next_pages(&self) -> Result<Option<Copied>, SnapshotError> {
        let raised = self.options.background.then(Raised::begin);
        let copied = self.freeze.next().map_err(SnapshotError::Freeze)?;
        drop(raised);
        match copied {
            Some(_) if self.control.is_cancelled() => Err(SnapshotError::Cancelled),
            copied => Ok(copied),
        }
    }

    /// These pages are written, and so many bytes by now.
    pub(super) fn count(&self, copied: &Copied, written_bytes: u64) {
        let counters = &self.control.counters;
        let pages = copied.pages().len();
        add(&counters.normal_pages, pages);
        add(&counters.zero_pages, copied.zero_pages());
        add(&counters.done_pages, pages + copied.zero_pages());
        let transferred = &counters.transferred_bytes;
        transferred.store(written_bytes, Ordering::Relaxed);
        self.control.note_waits(self.freeze.buffer_waits());
    }

    /// Bytes a second that may be written at most, as it is now; 0: no limit.
    pub(super) fn max_bandwidth(&self) -> u64 {
        self.control.max_bandwidth(self.options.max_bandwidth)
    }

    /// Leaves the cores to others for a moment, unless the guest waits: for room, or for the end of it
    /// all because it was stopped.
    pub(super) fn breathe(&self, pacer: &mut Pacer) {
        let due = pacer.due();
        if self.options.background && !due.is_zero() && !self.freeze.is_waited_for() {
            std::thread::sleep(due);
        }
    }

    /// Nobody may go on waiting for room that will never come.
    pub(super) fn abandon(&self) {
        self.freeze.abandon();
    }

    /// Where pages are still elsewhere, those who save may be waiting for them: a cancel then ends the
    /// freeze at once, and with it their patience.
    pub(super) fn cancellable<T>(&self, save: impl FnOnce() -> T) -> T {
        const LOOK: Duration = Duration::from_millis(20);
        if self.memory.supply().is_none() && self.memory.map_retry().is_zero() {
            return save();
        }
        let (saving, saved) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let listen = move || {
                while saved.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    if self.control.is_cancelled() {
                        return self.freeze.abandon();
                    }
                }
            };
            let listening = paguro_sys::NewThread::named("save/cancel".to_owned());
            if let Err(error) = listening.spawn_scoped(scope, listen) {
                tracing::warn!(%error, "a cancel may take a while");
            }
            let done = save();
            drop(saving);
            done
        })
    }
}
