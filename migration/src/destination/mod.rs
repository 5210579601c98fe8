//! A machine that comes in.
//!
//! | room | for |
//! |---|---|
//! | [`Arrival`] | one machine's arrival as its operator sees it |
//! | `drive` | obeys the control side: loads, starts, answers |
//! | `door` | lets connections in and finds out what each is |
//! | `stream` | reads the stream and hands over what it says |
//! | `lanes`, `lane` | the multifd channels as they stand, and the thread of each |
//! | `packets` | what comes over one of them |
//! | `memory` | what finds its place, in [`Arrivals`](paguro_faults::Arrivals) |
//! | `direct` | pages that go there straight from a socket |
//! | `patience` | a source that sends a byte a second is not waited for |
//!
//! Until the source has permitted it, and this side has loaded everything, nothing runs here. What
//! is decided when the channel breaks is decided by [`switchover`](crate::switchover); therefore
//! the door stays open while anything is in doubt, for a source that asks over a connection of its
//! own.

mod direct;
mod door;
mod drive;
mod error;
mod lane;
mod lanes;
mod memory;
mod options;
mod packets;
mod patience;
mod stream;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paguro_wire::device::DeviceSection;

use crate::channel::{Handle, Writer};
use crate::handover::Way;
use crate::progress::Progress;
use crate::switchover::{
    Advice, Answer, Destination, DestinationAction, DestinationConfig, DestinationEvent,
    DestinationState, HeldState, MigrationStatus, Query, Unexpected,
};

use lanes::Lanes;

pub use drive::receive;
pub use error::ReceiveError;
pub use options::{ReceiveMode, ReceiveOptions};

type StatusHook = Box<dyn Fn(MigrationStatus) + Send + Sync>;

/// The arrival of one machine, shared by the threads that see to it and all who ask. Made before
/// [`receive`] is called, for one call of it.
pub struct Arrival {
    inner: Mutex<Inner>,
    changed: Condvar,
    began: Instant,
    progress: Progress,
    options: ReceiveOptions,
    hook: Option<StatusHook>,
    lanes: Lanes,
}

struct Inner {
    destination: Destination,
    actions: VecDeque<DestinationAction>,
    /// Why it failed; the first reason.
    error: Option<Arc<ReceiveError>>,
    /// Device sections that came.
    devices: Vec<DeviceSection>,
    /// The way back to the source, and what ends its channel.
    back: Option<Writer>,
    channel: Option<Handle>,
    /// Last words went out on it.
    is_told: bool,
    /// Where the source asked last, over a connection of its own.
    asker: Option<(Query, Asker)>,
    /// Since when it is as it is.
    since: Instant,
}

/// The way back of a connection on which is asked.
type Asker = Arc<Mutex<Writer>>;

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arrival({})", self.status().name())
    }
}

impl Arrival {
    /// One that is about to be waited for. `hook` is called at each change of status, in any
    /// thread; it must not block, nor call back.
    pub fn new(options: ReceiveOptions, hook: Option<StatusHook>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                destination: Destination::new(DestinationConfig {
                    return_path: options.return_path,
                    paused: options.paused,
                }),
                actions: VecDeque::new(),
                error: None,
                devices: Vec::new(),
                back: None,
                channel: None,
                is_told: false,
                asker: None,
                since: Instant::now(),
            }),
            changed: Condvar::new(),
            began: Instant::now(),
            progress: Progress::default(),
            lanes: Lanes::new(&options),
            options,
            hook,
        }
    }

    /// Bytes and pages that came in so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Time since it is waited for.
    pub fn total_time(&self) -> Duration {
        self.began.elapsed()
    }

    /// For `query-migrate`.
    pub fn status(&self) -> MigrationStatus {
        self.lock().destination.status()
    }

    /// For `query-status`, while the machine is not this side's.
    pub fn held(&self) -> Option<HeldState> {
        self.lock().destination.held()
    }

    /// What is so, and what an operator may do.
    pub fn advice(&self) -> Advice {
        self.lock().destination.advice()
    }

    /// Why it failed, or why its outcome is in doubt.
    pub fn error(&self) -> Option<Arc<ReceiveError>> {
        self.lock().error.clone()
    }

    /// `cont`: once the machine is this side's this is nothing but a `cont` of the machine, which is
    /// the caller's business.
    ///
    /// # Errors
    ///
    /// Why it must not run now.
    pub fn cont(&self) -> Result<(), &'static str> {
        match self.on(DestinationEvent::Cont) {
            Ok(()) | Err(Unexpected::Late(_)) => Ok(()),
            Err(Unexpected::NotNow(why)) => Err(why),
        }
    }

    /// Watches the connection on which RAM was handed over, to its end: without its source, which
    /// said nothing on the main one yet, nothing will ever come. To be called in a thread of its own.
    pub fn watch(&self, way: Way) {
        way.wait_end();
        let mut inner = self.lock();
        if inner.destination.state() == DestinationState::Listening {
            let error = ReceiveError::SourceGone;
            let reason = error.reason();
            inner.error = Some(error.into());
            // Whoever listens can fail.
            let _ = self.deliver(&mut inner, DestinationEvent::Failed(reason));
        }
    }

    /// The process is about to end.
    pub fn quit(&self) {
        let _ = self.on(DestinationEvent::Quit);
    }

    /// Hands an event to the control side; its actions are queued for the driver.
    fn on(&self, event: DestinationEvent) -> Result<(), Unexpected> {
        self.deliver(&mut self.lock(), event)
    }

    fn deliver(&self, inner: &mut Inner, event: DestinationEvent) -> Result<(), Unexpected> {
        let (before, state) = (inner.destination.status(), inner.destination.state());
        let actions = inner.destination.on(event).inspect_err(|why| {
            tracing::debug!(?event, %why, ?state, "not now");
        })?;
        let now = inner.destination.state();
        tracing::debug!(?event, state = ?now, "destination");
        if now != state {
            inner.since = Instant::now();
        }
        inner.actions.extend(actions);
        let after = inner.destination.status();
        if let Some(hook) = self.hook.as_ref().filter(|_| after != before) {
            hook(after);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// A source that asks over a connection of its own.
    fn asked(&self, query: Query, asker: &Asker) {
        let mut inner = self.lock();
        let known = inner.destination.id() == Some(query.id);
        if known {
            inner.asker = Some((query, asker.clone()));
        }
        let taken = self.deliver(&mut inner, DestinationEvent::Query(query));
        // What is refused is refused here, where the connection is at hand.
        inner
            .actions
            .retain(|action| *action != DestinationAction::Refuse);
        drop(inner);
        if !known && taken.is_ok() {
            drive::say(asker, Answer::Unknown, query);
        }
    }

    /// Keeps an error, if it is the first.
    fn note(&self, error: ReceiveError) {
        tracing::debug!(error = crate::error::with_causes(&error), "noted");
        self.lock().error.get_or_insert_with(|| error.into());
    }

    /// This side or the channel failed.
    fn fail(&self, error: ReceiveError) {
        let reason = error.reason();
        let mut inner = self.lock();
        let first = inner.error.is_none();
        if first {
            inner.error = Some(error.into());
        }
        let taken = self.deliver(&mut inner, DestinationEvent::Failed(reason));
        if taken.is_err() && first {
            inner.error = None;
        }
    }

    fn state(&self) -> DestinationState {
        self.lock().destination.state()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
