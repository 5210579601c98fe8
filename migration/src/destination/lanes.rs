//! The multifd channels of a destination.
//!
//! They may come before the main channel, and in any order. Each has a thread that puts pages in
//! their place. At its SYNC a channel waits until the main one comes to its mark, and there the
//! main one waits until every channel is at its SYNC: so a page of the next pass is never
//! overtaken by one of the pass before.
//!
//! **No packet is missed.** A source that was told of more channels than this side sends pages over
//! some that are not let in here, and if all goes fast that is the only sign of them. But packets
//! are numbered through all channels, so where every channel is at its SYNC there are as many as the
//! highest number says. At the first mark, before any page, a channel may be ahead of the others.
//!
//! **Nobody waits for ever.** A channel may be idle for as long as the main one goes on: whether
//! the source is well is seen there. Where the main channel waits, it waits only while the others
//! bring something. A channel that breaks ends everything until all of RAM is here; from then on
//! nothing of what comes is looked at. When the main channel ends, all end.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paguro_wire::stream::ram::BlockTable;

use super::error::ReceiveError;
use super::memory::Arriving;
use super::options::ReceiveOptions;
use crate::channel::Handle;
use crate::multifd::Multifd;
use crate::progress::Progress;

/// How often a wait is looked into.
const LOOK: Duration = Duration::from_millis(200);

/// The channels as they stand; shared by their threads and that of the main channel.
pub(super) struct Lanes {
    inner: Mutex<Inner>,
    changed: Condvar,
    multifd: Option<Multifd>,
    connect_timeout: Duration,
    silence: Option<Duration>,
}

#[derive(Default)]
struct Inner {
    /// By number.
    lanes: Vec<Option<Lane>>,
    /// Where pages go, once that is known.
    place: Option<Place>,
    began: Option<Instant>,
    /// Marks that the main channel came to.
    released: u64,
    /// Packets that came over all channels, up to their SYNCs.
    taken: Taken,
    /// There are so many now of which this side was not told.
    excess: usize,
    /// All of RAM is here.
    closed: bool,
    /// The migration is over, one way or the other.
    ended: bool,
    /// A channel broke; the control side knows why.
    broken: bool,
}

/// Packets: how many, and how many there must be by their numbers.
#[derive(Clone, Copy, Default)]
pub(super) struct Taken {
    pub(super) packets: u64,
    pub(super) numbered: u64,
}

impl Taken {
    pub(super) fn add(&mut self, more: Self) {
        self.packets += more.packets;
        self.numbered = self.numbered.max(more.numbered);
    }
}

struct Lane {
    handle: Handle,
    /// SYNCs that it came to.
    syncs: u64,
}

#[derive(Clone)]
pub(super) struct Place {
    pub(super) memory: Arc<Arriving>,
    pub(super) table: Arc<BlockTable>,
}

impl Lanes {
    pub(super) fn new(options: &ReceiveOptions) -> Self {
        let mut inner = Inner::default();
        let count = options.mode.multifd().map_or(0, |multifd| multifd.channels);
        inner.lanes.resize_with(usize::from(count), || None);
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            multifd: options.mode.multifd(),
            connect_timeout: options.connect_timeout,
            silence: options.silence,
        }
    }

    /// How many there are to be.
    pub(super) fn count(&self) -> usize {
        self.multifd
            .map_or(0, |multifd| usize::from(multifd.channels))
    }

    /// The list of blocks came: pages may be placed.
    pub(super) fn begin(&self, memory: Arc<Arriving>, table: Arc<BlockTable>) {
        self.change(|inner| {
            inner.place = Some(Place { memory, table });
            inner.began = Some(Instant::now());
        });
    }

    /// The main channel came to its mark: waits until each channel is at its SYNC, and lets them
    /// go on.
    pub(super) fn flush(&self, progress: &Progress) -> Result<(), ReceiveError> {
        let bytes = || progress.multifd_bytes.load(Relaxed);
        let mut moved = (bytes(), Instant::now());
        let mut inner = self.lock();
        loop {
            if inner.ended || inner.broken {
                return Err(ReceiveError::BrokenChannel);
            }
            if inner.excess > 0 {
                return Err(ReceiveError::MoreChannels {
                    channels: self.count(),
                });
            }
            let behind = inner.released;
            let at_sync = |lane: &Option<Lane>| lane.as_ref().is_some_and(|l| l.syncs > behind);
            if inner.lanes.iter().all(at_sync) {
                let Taken { packets, numbered } = inner.taken;
                if behind > 0 && packets != numbered {
                    return Err(ReceiveError::MissingPackets {
                        came: packets,
                        of: numbered,
                        channels: self.count(),
                    });
                }
                inner.released += 1;
                self.changed.notify_all();
                return Ok(());
            }
            let came = inner.lanes.iter().flatten().count();
            let waited = inner.began.map_or(Duration::ZERO, |began| began.elapsed());
            if came < self.count() && waited >= self.connect_timeout {
                return Err(ReceiveError::MissingChannels {
                    came,
                    of: self.count(),
                    within: self.connect_timeout,
                });
            }
            if bytes() != moved.0 || came < self.count() {
                moved = (bytes(), Instant::now());
            }
            if let Some(silence) = self.silence.filter(|limit| moved.1.elapsed() >= *limit) {
                return Err(ReceiveError::SilentChannels(silence));
            }
            inner = self.wait(inner);
        }
    }

    /// All of RAM is here: what the channels still bring is not looked at.
    pub(super) fn close(&self) {
        self.change(|inner| inner.closed = true);
        self.shutdown();
    }

    /// The migration is over.
    pub(super) fn end(&self) {
        self.change(|inner| inner.ended = true);
        self.shutdown();
    }

    fn shutdown(&self) {
        for lane in self.lock().lanes.iter().flatten() {
            lane.handle.shutdown();
        }
    }

    /// Takes a channel in, unless its place is taken or nobody wants it any more.
    pub(super) fn enter(&self, channel: u8, handle: Handle) -> bool {
        let mut entered = false;
        self.change(|inner| {
            let over = inner.closed || inner.ended || inner.broken;
            if let Some(lane) = inner.lanes.get_mut(usize::from(channel))
                && lane.is_none()
                && !over
            {
                *lane = Some(Lane { handle, syncs: 0 });
                entered = true;
            }
        });
        entered
    }

    /// Holds a channel of which this side was not told, until the main one has seen to it.
    pub(super) fn exceed(&self) {
        self.change(|inner| inner.excess += 1);
        let since = Instant::now();
        let mut inner = self.lock();
        while !inner.is_over() && since.elapsed() < self.connect_timeout {
            inner = self.wait(inner);
        }
        if inner.place.is_none() {
            // A stranger's, with which no main channel came: the next source has nothing to do with it.
            inner.excess -= 1;
        }
    }

    pub(super) fn leave(&self, channel: u8) {
        self.change(|inner| inner.lanes[usize::from(channel)] = None);
    }

    /// Where pages go; none if the main channel does not come in time.
    pub(super) fn place(&self) -> Option<Place> {
        let since = Instant::now();
        let mut inner = self.lock();
        loop {
            if inner.place.is_some() {
                return inner.place.clone();
            }
            if inner.ended || since.elapsed() >= self.connect_timeout {
                return None;
            }
            inner = self.wait(inner);
        }
    }

    /// A channel is at SYNC, and took so much since the last one: waits for the main one. Whether it
    /// goes on.
    pub(super) fn sync(&self, channel: u8, taken: Taken) -> bool {
        let mut inner = self.lock();
        inner.taken.add(taken);
        let Some(lane) = &mut inner.lanes[usize::from(channel)] else {
            return false;
        };
        lane.syncs += 1;
        let syncs = lane.syncs;
        self.changed.notify_all();
        while inner.released < syncs && !inner.is_over() {
            inner = self.wait(inner);
        }
        !inner.is_over()
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// A channel broke.
    pub(super) fn break_all(&self) {
        self.change(|inner| inner.broken = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let waited = self.changed.wait_timeout(inner, LOOK);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_over(&self) -> bool {
        self.closed || self.ended || self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::ReceiveMode;

    /// Somebody knocks as no source of this destination would, and goes; then the source comes.
    #[test]
    fn a_stranger_with_whom_no_source_came_is_forgotten() {
        let mut options = ReceiveOptions::new(true, false);
        options.mode = ReceiveMode::Precopy {
            multifd: Some(Multifd::new(2)),
        };
        options.connect_timeout = Duration::from_millis(1);
        let lanes = Lanes::new(&options);
        lanes.exceed();
        assert_eq!(lanes.lock().excess, 0);
    }
}
