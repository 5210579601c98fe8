//! A machine that leaves while it runs: its RAM is sent (precopy), or handed over.
//!
//! | room | for |
//! |---|---|
//! | [`Migration`] | one migration as its operator sees it |
//! | [`Mode`] | what becomes of RAM |
//! | `drive` | obeys the control side: stops the machine, lets it run on, asks for the outcome |
//! | `standstill` | the guest while it is stopped |
//! | `outcome` | asks for the outcome |
//! | `connection` | channels to the destination, and the threads on them; can be replaced |
//! | `transfer` | what is to be sent and what was, whatever connection it goes by |
//! | `sender` | the thread that sends |
//! | `tally` | what it has done so far |
//! | `answers` | the thread that hears what the destination says |
//! | `outstanding` | which pages are still to be sent |
//! | `way` | how pages go: on it, as what changed of them (XBZRLE), over multifd channels |
//! | `digestion` | what the destination has still to digest |
//! | `forecast`, `throttle` | when the guest is stopped, and what if it writes too fast |
//! | `hooks` | where it can be broken on purpose |
//!
//! RAM is sent in passes. Each pass sends what was dirty when it began; then the tracker is asked
//! what was written meanwhile. When what is left would take no longer than the guest may stand
//! still, and another pass would not make it much less, it is stopped, and the rest is sent with the
//! state of its devices. Who may run then is decided by [`switchover`](crate::switchover) and nobody
//! else.

mod answers;
mod command;
mod connection;
mod digestion;
mod drive;
mod forecast;
mod heard;
mod hooks;
mod mode;
mod nothing;
mod options;
mod outcome;
mod outstanding;
mod sender;
mod standstill;
mod tally;
mod throttle;
mod transfer;
mod way;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Address, ChannelError, Stop};
use crate::machine::MachineError;
use crate::switchover::{
    Advice, HeldState, MigrationId, MigrationStatus, Reason, Source, SourceAction, SourceConfig,
    SourceEvent, SourceState, Unexpected,
};
use crate::time::micros;

use heard::Heard;

pub use crate::error::MigrateError;
pub use crate::progress::{MigrateReport, Progress};
pub use drive::migrate;
pub use hooks::SourceSabotage;
pub use mode::{Mode, Pages};
pub use options::{AtTimeout, Convergence, DirtyLimit, MigrateOptions, Throttle};

type StatusHook = Box<dyn Fn(MigrationStatus) + Send + Sync>;
type PassHook = Box<dyn Fn(u64) + Send + Sync>;

/// One migration of one machine, shared by the threads that run it and all who ask. Made before
/// [`migrate`] is called, for one call of it.
pub struct Migration {
    inner: Mutex<Inner>,
    changed: Condvar,
    id: MigrationId,
    began: Instant,
    progress: Progress,
    /// Ends connecting.
    connecting: Stop,
    mode: Mode,
    address: Address,
    hook: Option<StatusHook>,
    pass_hook: Option<PassHook>,
    limits: Limits,
    /// Of the cache that was asked for, then of the one that there is; 0: none.
    xbzrle_cache_bytes: AtomicU64,
}

/// What may be changed while it runs.
#[derive(Debug)]
struct Limits {
    downtime_us: AtomicU64,
    /// Bytes a second; 0: none.
    bandwidth: AtomicU64,
}

struct Inner {
    source: Source,
    actions: VecDeque<SourceAction>,
    /// Why it failed; the first reason.
    error: Option<Arc<MigrateError>>,
    /// What could not be confirmed, in words.
    warning: Option<String>,
    heard: Heard,
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Migration({}, {:?})",
            self.status().name(),
            self.progress
        )
    }
}

impl Migration {
    /// One that is about to begin. `hook` is called at each change of status, in any thread; it
    /// must not block, nor call back.
    ///
    /// # Errors
    ///
    /// The host's: no descriptors, or no random numbers.
    pub fn new(options: &MigrateOptions, hook: Option<StatusHook>) -> std::io::Result<Self> {
        let mut random = [0; 16];
        let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        debug_assert_eq!(got, random.len());
        let source = Source::new(SourceConfig {
            return_path: options.address.can_return(),
            reconnects: matches!(
                options.address,
                Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. }
            ),
            pause_before_switchover: options.pause_before_switchover,
        });
        Ok(Self {
            inner: Mutex::new(Inner {
                source,
                actions: VecDeque::new(),
                error: None,
                warning: None,
                heard: Heard::new(),
            }),
            changed: Condvar::new(),
            id: MigrationId::new(random),
            began: Instant::now(),
            progress: Progress::default(),
            connecting: Stop::new()?,
            mode: options.mode.clone(),
            address: options.address.clone(),
            hook,
            pass_hook: None,
            limits: Limits {
                downtime_us: AtomicU64::new(micros(options.downtime_limit)),
                bandwidth: AtomicU64::new(options.max_bandwidth),
            },
            xbzrle_cache_bytes: options.mode.xbzrle_cache_bytes().unwrap_or(0).into(),
        })
    }

    /// `hook` is called with its number when a pass over the written pages begins (as QEMU's event
    /// `MIGRATION_PASS`), in the thread that sends; it must not block, nor call back.
    #[must_use]
    pub fn on_pass(mut self, hook: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.pass_hook = Some(Box::new(hook));
        self
    }

    /// From now on another limit counts for how long the guest may stand still. Any thread.
    pub fn set_downtime_limit(&self, limit: Duration) {
        self.limits.downtime_us.store(micros(limit), Relaxed);
    }

    /// From now on so many bytes a second are sent at most while the guest runs; 0: no limit. Any
    /// thread.
    pub fn set_max_bandwidth(&self, bytes_per_s: u64) {
        self.limits.bandwidth.store(bytes_per_s, Relaxed);
    }

    /// Bytes of the XBZRLE cache, if there is one: those that were asked for, or as many as the host
    /// has memory for.
    pub fn xbzrle_cache_bytes(&self) -> Option<u64> {
        match self.xbzrle_cache_bytes.load(Relaxed) {
            0 => None,
            bytes => Some(bytes),
        }
    }

    fn downtime_limit(&self) -> Duration {
        Duration::from_micros(self.limits.downtime_us.load(Relaxed))
    }

    fn max_bandwidth(&self) -> u64 {
        self.limits.bandwidth.load(Relaxed)
    }

    fn begin_pass(&self, number: u64) {
        if let Some(hook) = &self.pass_hook {
            hook(number);
        }
    }

    /// The numbers.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Time since the command, or that it took.
    pub fn total_time(&self) -> Duration {
        match Progress::get(&self.progress.total_us) {
            0 => self.began.elapsed(),
            us => Duration::from_micros(us),
        }
    }

    /// Where to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// For `query-migrate`.
    pub fn status(&self) -> MigrationStatus {
        self.lock().source.status()
    }

    /// For `query-status`, while it holds the machine.
    pub fn held(&self) -> Option<HeldState> {
        self.lock().source.held()
    }

    /// Whether the destination may run, or soon may, and has not confirmed.
    pub fn is_permitted(&self) -> bool {
        matches!(self.lock().source.state(), SourceState::Permitted { .. })
    }

    /// What is so, and what an operator may do.
    pub fn advice(&self) -> Advice {
        let inner = self.lock();
        let ram = self.mode.advice(inner.source.state());
        let advice = ram.unwrap_or_else(|| inner.source.advice());
        match inner.error.as_deref() {
            Some(MigrateError::NotResumed { .. }) => Advice {
                is: "the guest was to run on here, could not be resumed, and stands still",
                ..advice
            },
            _ => advice,
        }
    }

    /// Why it failed, or why its outcome is in doubt.
    pub fn error(&self) -> Option<Arc<MigrateError>> {
        self.lock().error.clone()
    }

    /// What could not be confirmed of one that has completed; see [`MigrateReport::warning`].
    pub fn warning(&self) -> Option<String> {
        self.lock().warning.clone()
    }

    /// Why it was given up, as far as the control side knows; [`Self::error`] says more.
    pub fn reason(&self) -> Option<Reason> {
        match self.lock().source.state() {
            SourceState::Ending { why, .. } | SourceState::Resumed { why, .. } => Some(why),
            _ => None,
        }
    }

    /// `migrate_cancel`. That there is nothing to cancel is no error.
    ///
    /// # Errors
    ///
    /// Why it cannot be cancelled now.
    pub fn cancel(&self) -> Result<(), &'static str> {
        let done = self.command(SourceEvent::Cancel);
        if done.is_ok() {
            self.connecting.stop();
        }
        done
    }

    /// `migrate-continue`.
    ///
    /// # Errors
    ///
    /// What it is that it does not wait for.
    pub fn proceed(&self) -> Result<(), &'static str> {
        self.command(SourceEvent::Continue)
    }

    /// `cont`, for a machine that the migration [holds](Self::held).
    ///
    /// # Errors
    ///
    /// Why it must not run now.
    pub fn cont(&self) -> Result<(), &'static str> {
        self.command(SourceEvent::Cont)
    }

    /// The process is about to end.
    pub fn quit(&self) {
        // A source can always go.
        let _ = self.on(SourceEvent::Quit);
        self.connecting.stop();
    }

    fn command(&self, event: SourceEvent) -> Result<(), &'static str> {
        match self.on(event) {
            Ok(()) | Err(Unexpected::Late(_)) => Ok(()),
            Err(Unexpected::NotNow(why)) => Err(why),
        }
    }

    pub(crate) fn id(&self) -> MigrationId {
        self.id
    }

    /// Hands an event to the control side; its actions are queued for the driver.
    fn on(&self, event: SourceEvent) -> Result<(), Unexpected> {
        self.take_in(&mut self.lock(), event)
    }

    fn take_in(&self, inner: &mut Inner, event: SourceEvent) -> Result<(), Unexpected> {
        let before = inner.source.status();
        let actions = inner.source.on(event).inspect_err(|why| {
            tracing::debug!(?event, %why, state = ?inner.source.state(), "not now");
        })?;
        tracing::debug!(?event, state = ?inner.source.state(), "source");
        inner.actions.extend(actions);
        let after = inner.source.status();
        if let Some(hook) = self.hook.as_ref().filter(|_| after != before) {
            hook(after);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Keeps an error, if it is the first.
    fn note(&self, error: MigrateError) {
        tracing::debug!(error = crate::error::with_causes(&error), "noted");
        self.lock().error.get_or_insert_with(|| error.into());
    }

    /// The guest, which was to run on here, stands still. That is told with what led to it.
    fn stuck(&self, source: MachineError) {
        tracing::error!(
            error = crate::error::with_causes(&source),
            "the guest does not run on"
        );
        let mut inner = self.lock();
        let failed = inner.error.take();
        inner.error = Some(Arc::new(MigrateError::NotResumed { failed, source }));
    }

    /// Keeps in words what could not be confirmed of a stream that is whole.
    fn warn(&self, unconfirmed: &ChannelError) {
        let text = crate::error::unconfirmed(unconfirmed);
        tracing::debug!(%text, "not confirmed");
        self.lock().warning = Some(text);
    }

    /// This side or the channel failed.
    fn fail(&self, error: MigrateError) {
        let reason = error.reason();
        let mut inner = self.lock();
        let first = inner.error.is_none();
        if first {
            inner.error = Some(error.into());
        }
        // What counts is what made the difference.
        let taken = self.take_in(&mut inner, SourceEvent::Failed(reason));
        if taken.is_err() && first {
            inner.error = None;
        }
    }

    /// The PONG of a PING 1 came.
    fn answered(&self) {
        self.lock().heard.digestion.answer(Instant::now());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
