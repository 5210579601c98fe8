//! The one owner of guest RAM's userfaultfd.
//!
//! The kernel allows one userfaultfd for a mapping and fixes its features when it is made, so all
//! who want to hear of faults share this room: the *pager* answers what is missing, the *freeze*
//! answers what is write-protected. Both are handlers that are attached here ([`Handlers`]); this
//! room reads the events, finds the page, and calls one of them.
//!
//! All that is known of RAM here is where it is ([`Span`]), in this process or in another one that has
//! sent its userfaultfd ([`Faults::adopt`]): a pager can serve a VMM that it is no part of.
//!
//! Pages arrive in RAM in one place, too ([`Arrivals`]), wherever they come from; where those are that
//! have not is a [`Supply`].
//!
//! Three rules hold here and nowhere else:
//!
//! * **The gate.** A reader holds it (shared) from before it reads events until all of them are
//!   answered. Whoever takes it exclusively ([`Faults::barrier`]) knows that no event is in hand
//!   and no answer under way. This is step 4 of a pause.
//! * **Placing while protecting.** Between [`Faults::protect_placements`] and its end every page
//!   that is placed is placed protected, zeros as a protected copy (`UFFDIO_ZEROPAGE` cannot
//!   protect). Switching waits for placements under way.
//! * **Nobody waits for ever.** A fault that no handler answers is answered here: a missing page
//!   with zeros, a protected one by releasing it. A handler that panics does not take the thread
//!   that reads faults with it: it is told that it is broken, and fails what it serves. An answer that
//!   the host refuses is given again, until it does not ([`Faults::again`]).
//!
//! # Locks
//!
//! A panic leaves no lock behind that others could not take: what they guard are counters, lists and a
//! choice of handlers, all valid at every step, and a guest may be waiting for us. Of handlers the same
//! is asked.
//!
//! Who holds a lock shared and waits for it once more waits for ever, if somebody else wants it alone in
//! between. So:
//!
//! * The gate is held while handlers are called. What they call here only *tries* to take it again
//!   (where the kernel has events to be read first); a barrier is taken by no handler.
//! * How pages are placed, and what is registered, is locked for as long as the kernel is asked, and it
//!   may have events to be read first. What was given back is noted then, in the middle of it, and
//!   noting places nothing and asks for no registration. A handler that panics over it does, when it is
//!   told so: that is left to a reader.

#![forbid(unsafe_code)]

mod arrivals;
mod error;
mod holes;
mod placing;
mod reader;
mod registration;
mod retrying;
mod supply;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paguro_ram::{GuestRam, Located, Span, Spans};
use paguro_sys::{Event, HUGE_PAGE_BYTES, Host, Limits, Uffd, UffdError, Zeros};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use rustix::event::EventfdFlags;

pub use arrivals::Arrivals;
pub use error::FaultsError;
pub use placing::Outcome;
pub use registration::Use;
pub use supply::Supply;

/// How long who waits for an answer that failed waits for the next.
const AGAIN: Duration = Duration::from_millis(1);
/// How often it is traced that answers fail.
const TELL: Duration = Duration::from_secs(10);

/// Answers faults on absent pages.
pub trait MissingHandler: Send + Sync {
    /// Somebody waits for this page. Must see to it that it is placed, or that the waiter is
    /// woken, now or later. May hand the work on; must not block for long.
    fn missing(&self, faults: &Faults, at: Located);

    /// These pages of a block were given back, and with them whatever was still to come for them. Also
    /// called while pages are placed or registered, so it does neither. If it panics it may be called
    /// again with the same.
    fn removed(&self, _faults: &Faults, _block: usize, _pages: Range<usize>) {}

    /// One of the calls above panicked over this page. Must see to it that nobody goes on with what
    /// is half done, and that whoever waits for the page is let go; must not panic itself.
    fn broken(&self, faults: &Faults, at: Located);
}

/// Answers faults on protected pages.
pub trait ProtectedHandler: Send + Sync {
    /// Somebody waits to write this page. Must see to it that the page is released.
    fn protected(&self, faults: &Faults, at: Located);

    /// Somebody else gave these pages of a block back: their content is gone already. Called as
    /// [`MissingHandler::removed`].
    fn removed(&self, block: usize, pages: Range<usize>);

    /// As [`MissingHandler::broken`].
    fn broken(&self, faults: &Faults, at: Located);
}

/// Who answers what.
#[derive(Default)]
pub struct Handlers {
    /// Answers what is missing.
    pub missing: Option<Arc<dyn MissingHandler>>,
    /// Answers what is protected.
    pub protected: Option<Arc<dyn ProtectedHandler>>,
}

/// While it lives no event is in hand, no answer is under way, and the handlers may be changed.
pub type Barrier<'a> = RwLockWriteGuard<'a, Handlers>;

/// The owner of guest RAM's userfaultfd, with the threads that read it.
pub struct Faults {
    /// What the host could do when this was opened; of an adopted one nobody has asked.
    host: Option<Host>,
    uffd: Uffd,
    spans: Spans,
    zeros: Zeros,
    gate: RwLock<Handlers>,
    placing: RwLock<placing::Mode>,
    registered: Mutex<registration::Registered>,
    stop: OwnedFd,
    /// Events that were read by somebody who could not answer them, see [`Faults::drain`].
    backlog: Mutex<VecDeque<Event>>,
    /// An eventfd that counts the backlog.
    bell: OwnedFd,
    readers: Mutex<Vec<JoinHandle<()>>>,
    /// Those that are still to be started.
    unstarted: AtomicUsize,
    failed_answers: AtomicU64,
    /// When it was traced last that one failed.
    told: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faults({:?})", self.uffd)
    }
}

impl Faults {
    /// Opens the userfaultfd and starts `readers` threads (at least one).
    ///
    /// # Errors
    ///
    /// [`FaultsError::Open`]: the host has none for us; [`FaultsError::Thread`],
    /// [`FaultsError::Zeros`].
    pub fn open(host: &Host, ram: GuestRam, readers: usize) -> Result<Arc<Self>, FaultsError> {
        let uffd = host.open_uffd().map_err(FaultsError::Open)?;
        let faults = Self::over(Some(*host), uffd, ram.spans().clone(), readers)?;
        faults.listen()?;
        Ok(faults)
    }

    /// The same over a userfaultfd that somebody else has opened ([`Uffd::adopt`]), and spans of his
    /// memory as he names them. He may be another process: then pages of its memory are watched,
    /// protected, placed and released, all as if they were here. Whoever adopts reads all events; so
    /// nobody else may. They are read from [`Faults::listen`] on: who waits already, because the owner
    /// registered his memory and ran on, waits until there is somebody with an answer.
    ///
    /// Who opened it may keep a descriptor of his own. Then dropping this ends nothing, and whoever faults
    /// waits on: what is registered is to be [unregistered](Faults::unregister) before
    /// ([`Arrivals::end`]). When his process ends, nobody waits and nothing more is placed, which the
    /// descriptor does not tell: whoever hears of the end drops this.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Zeros`], [`FaultsError::Thread`].
    pub fn adopt(uffd: Uffd, spans: Spans, readers: usize) -> Result<Arc<Self>, FaultsError> {
        Self::over(None, uffd, spans, readers)
    }

    fn over(
        host: Option<Host>,
        uffd: Uffd,
        spans: Spans,
        readers: usize,
    ) -> Result<Arc<Self>, FaultsError> {
        let eventfd = |flags| {
            rustix::event::eventfd(0, flags | EventfdFlags::CLOEXEC)
                .map_err(|errno| FaultsError::Thread(errno.into()))
        };
        let stop = eventfd(EventfdFlags::empty())?;
        let bell = eventfd(EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?;
        let registered = Mutex::new(registration::Registered::new(spans.all().len()));
        let faults = Arc::new(Self {
            host,
            uffd,
            spans,
            zeros: Zeros::map(HUGE_PAGE_BYTES).map_err(FaultsError::Zeros)?,
            gate: RwLock::default(),
            placing: RwLock::default(),
            registered,
            stop,
            backlog: Mutex::default(),
            bell,
            readers: Mutex::default(),
            unstarted: AtomicUsize::new(readers.max(1)),
            failed_answers: AtomicU64::new(0),
            told: Mutex::default(),
        });
        Ok(faults)
    }

    /// From now on events are read. [`Arrivals::serve`] calls it; who has other handlers over an adopted
    /// one calls it when they are [there](Faults::barrier). Calling it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Thread`].
    pub fn listen(self: &Arc<Self>) -> Result<(), FaultsError> {
        for index in 0..self.unstarted.swap(0, Ordering::AcqRel) {
            let thread = reader::spawn(self, index).map_err(FaultsError::Thread)?;
            self.readers.lock().push(thread);
        }
        Ok(())
    }

    /// The RAM it watches: a span a block.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The span of the block of that index.
    pub fn block(&self, index: usize) -> &Span {
        &self.spans.all()[index]
    }

    /// Mappings that a process may have on this host.
    fn most_mappings(&self) -> usize {
        match &self.host {
            Some(host) => host.most_mappings(),
            None => Limits::of_this_process().most_mappings(),
        }
    }

    /// The kernel's side, for those who ask about features.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Waits until no reader has an event in hand and keeps them from reading more.
    ///
    /// A reader that waits in its handler is waited for, so handlers must not wait for the holder
    /// of a barrier.
    pub fn barrier(&self) -> Barrier<'_> {
        self.gate.write()
    }

    /// Protects a range of pages against writing.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Protect`].
    pub fn protect(&self, block: usize, pages: Range<usize>) -> Result<(), FaultsError> {
        let range = self.block(block).addresses_of(&pages);
        self.retry(|| self.uffd.protect(range.clone()))
            .map_err(|source| self.protect_error(block, &pages, source))
    }

    /// Takes the protection of a range away and wakes who waits in it. A range that lost its
    /// registration is woken only: a changed mapping wakes nobody by itself.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Protect`].
    pub fn release(&self, block: usize, pages: Range<usize>) -> Result<(), FaultsError> {
        let range = self.block(block).addresses_of(&pages);
        match self.retry(|| self.uffd.release(range.clone())) {
            Err(UffdError::Gone | UffdError::Ended | UffdError::Other { .. }) => self
                .retry(|| self.uffd.wake(range.clone()))
                .map_err(|source| self.protect_error(block, &pages, source)),
            answer => answer.map_err(|source| self.protect_error(block, &pages, source)),
        }
    }

    /// Wakes who waits in a range: they look again.
    pub fn wake(&self, block: usize, pages: Range<usize>) {
        let range = self.block(block).addresses_of(&pages);
        if let Err(error) = self.retry(|| self.uffd.wake(range.clone())) {
            tracing::warn!(%error, block, ?pages, "cannot wake");
        }
    }

    /// For whoever could not answer a fault, because the host has no memory for zeros perhaps: who
    /// waits there is woken and faults again, so that it is asked again. A little later, in the
    /// caller's time: a reader that has nothing to answer with need not take the next event at once.
    pub fn again(&self, at: Located, error: &FaultsError) {
        self.failed_answers.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        if told.is_none_or(|last| last.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::error!(%error, "a fault cannot be answered; it is tried again");
        }
        drop(told);
        std::thread::sleep(AGAIN);
        self.wake(at.block, self.unit_of(at));
    }

    /// Answers that failed, and were or will be tried again.
    pub fn failed_answers(&self) -> u64 {
        self.failed_answers.load(Ordering::Relaxed)
    }

    fn protect_error(&self, block: usize, pages: &Range<usize>, source: UffdError) -> FaultsError {
        FaultsError::Protect {
            block: self.block(block).id().to_owned(),
            first: pages.start,
            count: pages.len(),
            source,
        }
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // Closing the descriptor, if it is the last, wakes all waiters and drops registration and
        // protection.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let me = std::thread::current().id();
        for reader in self.readers.lock().drain(..) {
            // The last reference may be dropped by a reader itself.
            if reader.thread().id() != me {
                let _ = reader.join();
            }
        }
    }
}
