//! What an operator sees of a running snapshot and how he stops it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paguro_dirty::Waits;

use crate::options::BufferSize;
use crate::time::micros;

/// Where a migration is, in QEMU's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Status {
    /// None was started yet.
    None,
    /// Arming memory; opening the file.
    Setup,
    /// Saving RAM.
    Active,
    /// Writing device state, syncing, renaming.
    Device,
    /// Done; the file stands under its name.
    Completed,
    /// A cancel was asked for and is being carried out.
    Cancelling,
    /// Cancelled; nothing is left of it.
    Cancelled,
    /// Failed; the reason is kept beside.
    Failed,
}

impl Status {
    const ALL: [Self; 8] = [
        Self::None,
        Self::Setup,
        Self::Active,
        Self::Device,
        Self::Completed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Failed,
    ];

    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing goes on (any more).
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::None | Self::Completed | Self::Cancelled | Self::Failed
        )
    }
}

/// Numbers that grow while a snapshot runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Pages of RAM, all in all.
    pub total_pages: AtomicU64,
    /// Pages settled so far (saved, or known to be zero).
    pub done_pages: AtomicU64,
    /// Pages written to the file.
    pub normal_pages: AtomicU64,
    /// Pages that are zero: those that were never there, and those found to be.
    pub zero_pages: AtomicU64,
    /// Bytes written to the file so far, everything included.
    pub transferred_bytes: AtomicU64,
    /// Write-protect faults that led to a copy.
    pub faults: AtomicU64,
    /// Microseconds from the command to the pause.
    pub setup_us: AtomicU64,
    /// Microseconds of the pause, as the engine sees it.
    pub pause_us: AtomicU64,
    /// Bytes of page copies that may wait to be written.
    pub page_buffer_bytes: AtomicU64,
    /// Bytes that these would be if the host had any amount of memory.
    pub page_buffer_wanted_bytes: AtomicU64,
    /// Writers that waited for room among them.
    pub buffer_waits: AtomicU64,
    /// Microseconds that they waited, all together.
    pub buffer_wait_us: AtomicU64,
}

/// A limit that no disk comes to stands for none that was set.
const AS_ASKED: u64 = u64::MAX;

type StatusHook = Box<dyn Fn(Status) + Send + Sync>;

/// One snapshot, seen from outside: shared between the thread that runs it and all who ask.
pub struct Control {
    status: AtomicU8,
    cancel: AtomicBool,
    /// Bytes a second; [`AS_ASKED`] until somebody says otherwise.
    max_bandwidth: AtomicU64,
    started: Instant,
    took_us: AtomicU64,
    error: Mutex<Option<String>>,
    page_buffer_bound: Mutex<Option<String>>,
    not_resumed: Mutex<Option<String>>,
    hook: Option<StatusHook>,
    /// Numbers so far.
    pub counters: Counters,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({}, {:?})", self.status().name(), self.counters)
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Control {
    /// A fresh one. `hook` is called at each change of status, in the thread that runs the
    /// snapshot; it must not block.
    pub fn new(hook: Option<StatusHook>) -> Self {
        Self {
            status: AtomicU8::new(Status::None as u8),
            cancel: AtomicBool::new(false),
            max_bandwidth: AtomicU64::new(AS_ASKED),
            started: Instant::now(),
            took_us: AtomicU64::new(0),
            error: Mutex::new(None),
            page_buffer_bound: Mutex::new(None),
            not_resumed: Mutex::new(None),
            hook,
            counters: Counters::default(),
        }
    }

    /// Where it is.
    pub fn status(&self) -> Status {
        Status::ALL[usize::from(self.status.load(Ordering::Acquire))]
    }

    /// Asks it to stop: soon afterwards it is [`Status::Cancelled`], unless it was done already.
    /// Asking again changes nothing.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        let mut now = self.status.load(Ordering::Acquire);
        while !Status::ALL[usize::from(now)].is_final() && now != Status::Cancelling as u8 {
            let next = Status::Cancelling as u8;
            match self
                .status
                .compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return self.tell(Status::Cancelling),
                Err(other) => now = other,
            }
        }
    }

    /// Whether a cancel was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// From now on so many bytes a second are written at most; 0: no limit. It counts instead of
    /// [`SnapshotOptions::max_bandwidth`](crate::SnapshotOptions::max_bandwidth), whether the snapshot
    /// has begun or not. Any thread.
    pub fn set_max_bandwidth(&self, bytes_per_s: u64) {
        let limit = bytes_per_s.min(AS_ASKED - 1);
        self.max_bandwidth.store(limit, Ordering::Relaxed);
    }

    /// The limit that counts now, for one that was begun with such a limit.
    pub(crate) fn max_bandwidth(&self, asked: u64) -> u64 {
        match self.max_bandwidth.load(Ordering::Relaxed) {
            AS_ASKED => asked,
            limit => limit,
        }
    }

    /// Time since the command, or that it took.
    pub fn total_time(&self) -> Duration {
        match self.took_us.load(Ordering::Acquire) {
            0 => self.started.elapsed(),
            us => Duration::from_micros(us),
        }
    }

    /// Why it failed.
    pub fn error(&self) -> Option<String> {
        self.error
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Why the guest stands still although it was to run on, whatever became of the snapshot.
    pub fn not_resumed(&self) -> Option<String> {
        let why = self.not_resumed.lock();
        why.unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub(crate) fn set_not_resumed(&self, why: String) {
        let before = self.not_resumed.lock();
        *before.unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(why);
    }

    /// What made the page buffer smaller than it would be.
    pub fn page_buffer_bound(&self) -> Option<String> {
        let bound = self.page_buffer_bound.lock();
        bound
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    pub(crate) fn set_page_buffer(&self, buffer: &BufferSize) {
        let Counters {
            page_buffer_bytes,
            page_buffer_wanted_bytes,
            ..
        } = &self.counters;
        page_buffer_bytes.store(buffer.bytes as u64, Ordering::Relaxed);
        page_buffer_wanted_bytes.store(buffer.wanted_bytes as u64, Ordering::Relaxed);
        let mut bound = self
            .page_buffer_bound
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *bound = buffer.bound.as_ref().map(ToString::to_string);
    }

    pub(crate) fn note_waits(&self, waits: Waits) {
        let counters = &self.counters;
        counters.buffer_waits.store(waits.count, Ordering::Relaxed);
        counters
            .buffer_wait_us
            .store(micros(waits.total), Ordering::Relaxed);
    }

    /// Goes to a state that is not final, unless it is being cancelled.
    pub(crate) fn advance(&self, to: Status) {
        let mut now = self.status.load(Ordering::Acquire);
        while now != Status::Cancelling as u8 {
            match self
                .status
                .compare_exchange(now, to as u8, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return self.tell(to),
                Err(other) => now = other,
            }
        }
    }

    /// Ends it.
    pub(crate) fn finish(&self, to: Status, error: Option<String>) {
        *self
            .error
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = error;
        let took = self.started.elapsed().as_micros().max(1);
        self.took_us
            .store(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Release);
        self.status.store(to as u8, Ordering::Release);
        self.tell(to);
    }

    fn tell(&self, status: Status) {
        if let Some(hook) = &self.hook {
            hook(status);
        }
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
