//! The threads that read events.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use paguro_ram::Located;
use paguro_sys::{Event, Fault, FaultKind, page_size};
use rustix::event::{PollFd, PollFlags, poll};

use crate::Faults;

pub(crate) fn spawn(faults: &Arc<Faults>, index: usize) -> std::io::Result<JoinHandle<()>> {
    // Weak, so that the readers do not keep what they read alive. The descriptors stay open while
    // `Drop` of the owner waits for the threads, which each hold none of their own.
    let weak = Arc::downgrade(faults);
    let uffd = faults.uffd.as_fd().try_clone_to_owned()?;
    let stop = faults.stop.as_fd().try_clone_to_owned()?;
    let bell = faults.bell.as_fd().try_clone_to_owned()?;
    paguro_sys::NewThread::named(format!("faults/{index}")).spawn(move || {
        paguro_sys::raise_priority();
        loop {
            let mut fds = [
                PollFd::new(&uffd, PollFlags::IN),
                PollFd::new(&stop, PollFlags::IN),
                PollFd::new(&bell, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => tracing::error!(%error, "cannot wait for faults"),
            }
            // One token of the bell is one event of the backlog; another may be faster.
            let rung =
                !fds[2].revents().is_empty() && rustix::io::read(&bell, &mut [0u8; 8]).is_ok();
            if !fds[1].revents().is_empty() || !answer(&weak, rung) {
                return;
            }
        }
    })
}

/// Answers one event, so that others can take the next; false when the owner is gone.
fn answer(faults: &Weak<Faults>, backlog: bool) -> bool {
    let Some(faults) = faults.upgrade() else {
        return false;
    };
    // The gate is held from before reading: an event in hand is an event that a barrier waits for.
    let handlers = faults.gate.read();
    let event = if backlog {
        faults.backlog.lock().pop_front()
    } else {
        read_one(&faults)
    };
    match event {
        Some(Event::Fault(fault)) => one_fault(&faults, &handlers, fault),
        Some(Event::Removed { start, end }) => {
            if let Some(broken) = note_removed(&faults, &handlers, start, end) {
                broken.tell(&faults, &handlers);
            }
        }
        Some(Event::Other(number)) => tracing::warn!(number, "unexpected userfaultfd event"),
        None => {}
    }
    true
}

fn read_one(faults: &Faults) -> Option<Event> {
    let mut event = [Event::Other(0)];
    match faults.uffd.read(&mut event) {
        Ok(0) => None,
        Ok(_) => Some(event[0]),
        Err(error) => {
            // An error of the descriptor does not end the thread: the guest would be stuck.
            tracing::error!(%error, "cannot read faults");
            None
        }
    }
}

fn one_fault(faults: &Faults, handlers: &crate::Handlers, fault: Fault) {
    let Some(at) = faults.spans.locate(fault.address) else {
        tracing::error!(address = fault.address, "fault outside guest RAM");
        return;
    };
    match (fault.kind, &handlers.missing, &handlers.protected) {
        (FaultKind::WriteProtect, _, Some(handler)) => {
            if !returns(|| handler.protected(faults, at)) {
                handler.broken(faults, at);
            }
        }
        (FaultKind::Missing | FaultKind::Minor, Some(handler), _) => {
            if !returns(|| handler.missing(faults, at)) {
                handler.broken(faults, at);
            }
        }
        (FaultKind::WriteProtect, _, None) => {
            // A leftover of a freeze that is over: the page is free.
            if let Err(error) = faults.release(at.block, faults.unit_of(at)) {
                faults.again(at, &error);
            }
        }
        (_, None, _) => {
            // Registered for missing pages, and nobody has any: then it is zero.
            faults.answer_with_zeros(at);
        }
    }
}

/// Tells the handlers what was given back. Which of them panicked, if any did: who calls this from a
/// reader tells them so, anybody else leaves the event to a reader.
pub(crate) fn note_removed(
    faults: &Faults,
    handlers: &crate::Handlers,
    start: usize,
    end: usize,
) -> Option<Broken> {
    let mut broken = None;
    for (block, span) in faults.spans.all().iter().enumerate() {
        // A mapping may be larger than what of it is RAM, and have several spans.
        let here = span.addresses_of(&(0..span.max_pages()));
        let (from, to) = (start.max(here.start), end.min(here.end));
        if from >= to {
            continue;
        }
        let page = (from - here.start) / page_size();
        let pages = page..(to - here.start).div_ceil(page_size());
        let missing = (handlers.missing.as_ref())
            .is_some_and(|handler| !returns(|| handler.removed(faults, block, pages.clone())));
        let protected = (handlers.protected.as_ref())
            .is_some_and(|handler| !returns(|| handler.removed(block, pages.clone())));
        if missing || protected {
            broken = Some(Broken {
                at: Located { block, page },
                missing,
                protected,
            });
        }
    }
    broken
}

/// Handlers that panicked over what was given back.
pub(crate) struct Broken {
    at: Located,
    missing: bool,
    protected: bool,
}

impl Broken {
    /// Tells them. They place and release pages then, so the caller is in the middle of neither.
    fn tell(&self, faults: &Faults, handlers: &crate::Handlers) {
        if let (true, Some(handler)) = (self.missing, &handlers.missing) {
            handler.broken(faults, self.at);
        }
        if let (true, Some(handler)) = (self.protected, &handlers.protected) {
            handler.broken(faults, self.at);
        }
    }
}

/// Calls a handler; false if it panicked. That is a bug of ours, and without this it would end the
/// thread with the event in hand: the vCPU that waits for the answer would wait for ever, and so
/// would all that fault after it, once the last reader is gone. What the handler had locked is free
/// again, and held to be valid at every step.
fn returns(call: impl FnOnce()) -> bool {
    let returned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_ok();
    if !returned {
        tracing::error!("a handler of faults panicked: a bug");
    }
    returned
}
