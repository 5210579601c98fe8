//! What the sender hands to the multifd channels, and whichever is free takes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::packet::Batch;
use crate::source::hooks::Hooks;

/// Batches that wait, for each channel.
const WAITING: usize = 2;

/// What the sender and the threads of the channels share.
pub(in crate::source) struct Queue {
    inner: Mutex<Inner>,
    /// There is work.
    work: Condvar,
    /// There is room, or a channel has come to SYNC.
    room: Condvar,
    channels: usize,
    counts: Counts,
    writing: Mutex<Writing>,
    hooks: Hooks,
}

/// For how long any of the channels was writing. What several do at a time is one time: the way that they
/// share is as fast as all of them together.
#[derive(Default)]
struct Writing {
    channels: usize,
    since: Option<Instant>,
    before: Duration,
}

impl Writing {
    fn spent(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Held by a channel while it writes.
pub(super) struct Writes<'a>(&'a Queue);

impl<'a> Writes<'a> {
    pub(super) fn begin(queue: &'a Queue) -> Self {
        let mut writing = queue.writing();
        writing.channels += 1;
        writing.since.get_or_insert_with(Instant::now);
        drop(writing);
        Self(queue)
    }
}

impl Drop for Writes<'_> {
    fn drop(&mut self) {
        let mut writing = self.0.writing();
        writing.channels -= 1;
        if writing.channels == 0 {
            writing.before = writing.spent();
            writing.since = None;
        }
    }
}

#[derive(Default)]
struct Inner {
    batches: VecDeque<Batch>,
    /// The number of the next packet.
    number: u64,
    /// SYNCs asked for, and how many channels wrote the last of them.
    syncs: u64,
    synced: usize,
    /// All is sent: end the channels as whole ones.
    finished: bool,
    /// Nobody wants anything any more.
    ended: bool,
    /// A channel broke; the control side knows why.
    broken: bool,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// Done.
    Done,
    /// Not within the time.
    Busy,
    /// A channel broke, and has said why.
    Broken,
}

impl Queue {
    fn new(channels: usize, hooks: Hooks) -> Self {
        Self {
            inner: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            channels,
            counts: Counts::default(),
            writing: Mutex::default(),
            hooks,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a channel is about to write, in pages.
    pub(super) fn count(&self, normal: usize, zero: usize) {
        self.counts.normal_pages.fetch_add(normal as u64, Relaxed);
        self.counts.zero_pages.fetch_add(zero as u64, Relaxed);
    }

    /// A channel wrote so many bytes.
    pub(super) fn wrote(&self, bytes: usize) {
        self.counts.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A channel wrote a SYNC, its last of so many.
    pub(super) fn wrote_sync(&self, synced: u64) {
        let mut inner = self.lock();
        // That of START is not waited for: a channel may be one behind.
        inner.synced += usize::from(inner.syncs == synced);
        drop(inner);
        self.room.notify_all();
        self.work.notify_all();
    }

    /// A channel broke.
    pub(super) fn give_up(&self) {
        self.end(|inner| inner.broken = true);
    }

    pub(super) fn hooks(&self) -> Hooks {
        self.hooks
    }

    fn end(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Waits until `done` says so, for at most `time`.
    fn wait(
        &self,
        time: Duration,
        done: impl Fn(&Inner) -> bool,
    ) -> (MutexGuard<'_, Inner>, Tried) {
        let inner = self.lock();
        let (inner, _) = self
            .room
            .wait_timeout_while(inner, time, |inner| !inner.broken && !done(inner))
            .unwrap_or_else(PoisonError::into_inner);
        let tried = match (inner.broken, done(&inner)) {
            (true, _) => Tried::Broken,
            (false, true) => Tried::Done,
            (false, false) => Tried::Busy,
        };
        (inner, tried)
    }

    /// The next thing to do for a channel that has written so many SYNCs.
    pub(super) fn next(&self, synced: u64) -> Work {
        let mut inner = self.lock();
        loop {
            if inner.ended || inner.broken {
                return Work::End(Ending::Broken);
            }
            let number = inner.number;
            if let Some(batch) = inner.batches.pop_front() {
                inner.number += 1;
                self.room.notify_all();
                return Work::Batch(batch, number);
            }
            if inner.syncs > synced {
                inner.number += 1;
                return Work::Sync(number);
            }
            if inner.finished {
                return Work::End(Ending::Whole);
            }
            inner = self
                .work
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For what is broken on purpose: until all others wrote the last SYNC, or all ends.
    pub(super) fn hold(&self) {
        let inner = self.lock();
        let others = self.channels - 1;
        let waits = |inner: &mut Inner| {
            !inner.ended && !inner.broken && !inner.finished && inner.synced < others
        };
        drop(self.work.wait_while(inner, waits));
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack, and nothing is allocated for a batch"
)]
pub(super) enum Work {
    Batch(Batch, u64),
    Sync(u64),
    End(Ending),
}

/// How channels end.
pub(super) enum Ending {
    /// All was sent, and has arrived.
    Whole,
    /// Nothing more is to be sent.
    Broken,
}

/// The sender's end of the channels. Dropping it ends their threads.
pub(super) struct Lanes(Arc<Queue>);

impl Lanes {
    pub(super) fn new(channels: u8, hooks: Hooks) -> (Self, Arc<Queue>) {
        let queue = Arc::new(Queue::new(usize::from(channels), hooks));
        (Self(queue.clone()), queue)
    }

    /// Bytes that they wrote so far.
    pub(super) fn written_bytes(&self) -> u64 {
        self.0.counts.bytes.load(Relaxed)
    }

    /// All that they did so far.
    pub(super) fn done(&self) -> Done {
        let counts = &self.0.counts;
        Done {
            // Time first: what is written meanwhile counts next time as a little more, not as no time.
            spent: self.0.writing().spent(),
            bytes: counts.bytes.load(Relaxed),
            normal_pages: counts.normal_pages.load(Relaxed),
            zero_pages: counts.zero_pages.load(Relaxed),
        }
    }

    /// Hands a batch over, if there is room for it within `time`.
    pub(super) fn push(&self, batch: &Batch, time: Duration) -> Tried {
        let limit = WAITING * self.0.channels;
        let (mut inner, tried) = self.0.wait(time, |inner| inner.batches.len() < limit);
        if tried == Tried::Done {
            inner.batches.push_back(*batch);
            drop(inner);
            self.0.work.notify_one();
        }
        tried
    }

    /// Has every channel write SYNC behind what was handed over; to be waited for. Whether it does.
    pub(super) fn ask_sync(&self, last: bool) -> bool {
        if !self.0.hooks.syncs(last) {
            return false;
        }
        self.0.end(|inner| {
            inner.syncs += 1;
            inner.synced = 0;
        });
        true
    }

    /// Waits until every channel wrote SYNC, for at most `time`.
    pub(super) fn synced(&self, time: Duration) -> Tried {
        let all = self.0.channels;
        self.0.wait(time, |inner| inner.synced == all).1
    }

    /// All was sent, and has arrived.
    pub(super) fn finish(&self) {
        self.0.end(|inner| inner.finished = true);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.0.end(|inner| inner.ended |= !inner.finished);
    }
}

/// What the channels did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// For how long any of them was writing.
    pub(super) spent: Duration,
    pub(super) bytes: u64,
    pub(super) normal_pages: u64,
    pub(super) zero_pages: u64,
}

/// The same while they do it: each of their threads adds to it.
#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    normal_pages: AtomicU64,
    zero_pages: AtomicU64,
}
