//! The page buffer: copies of pages that wait to be written, bounded in bytes.
//!
//! A vCPU that writes a frozen page waits until its chunk is copied, and the copy waits for room
//! here: so a slow disk slows the guest's writes down and never grows memory (P9). Room is taken
//! for a whole chunk at once; taking it piecewise could leave two copiers each holding half of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use paguro_sys::{Unit, page_size};
use parking_lot::{Condvar, Mutex};

use crate::FreezeError;
use crate::sizes::{GRANULE, UNIT_PAGES};

/// Room that the scan takes at a time.
pub(crate) const SCAN_UNITS: usize = GRANULE / UNIT_PAGES;

/// What a buffer begins with. It grows before arming if the guest is seen writing more.
pub(crate) const START_BYTES: usize = 32 << 20;

/// Units of 64 KiB, and the queue of what was copied into some of them ahead of the scan.
#[derive(Debug)]
pub struct Buffer<T> {
    state: Mutex<State<T>>,
    /// Where writers wait for room: apart from copiers. Of those who wait together one is woken after the
    /// other, each when the one before has been here, and a copier may have to wait for a core.
    room: Condvar,
    /// Where copiers wait, for room or for what a writer has had copied.
    changed: Condvar,
    reserve: usize,
}

#[derive(Debug)]
struct State<T> {
    free: Vec<Unit>,
    queue: VecDeque<T>,
    closed: bool,
    /// Units that exist.
    made: usize,
    /// Units that may exist.
    limit: usize,
    /// Units that were in use at the same time, at most.
    most_used: usize,
    waits: Waits,
    /// Writers that wait at the moment.
    waiting: usize,
}

/// What it cost writers that the buffer was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Writers that had to wait for room.
    pub count: u64,
    /// How long they did, all together.
    pub total: Duration,
    /// The longest of them.
    pub longest: Duration,
}

/// What a copier finds.
pub(crate) enum Room<T> {
    /// Room.
    Units(Vec<Unit>),
    /// A chunk to be written first.
    Queued(T),
    /// It is over.
    Closed,
}

impl<T> Buffer<T> {
    /// A buffer of `bytes`, for chunks of up to `chunk_pages`.
    pub(crate) fn new(bytes: usize, chunk_pages: usize) -> Result<Self, FreezeError> {
        let unit_bytes = UNIT_PAGES * page_size();
        let chunk = chunk_pages.div_ceil(UNIT_PAGES);
        let units = bytes / unit_bytes;
        // The scan takes a granule at a time, and leaves room for a fault.
        let least = SCAN_UNITS + chunk;
        if units < least {
            return Err(FreezeError::BufferTooSmall {
                bytes,
                least: least * unit_bytes,
            });
        }
        let made = units.min(least.max(START_BYTES / unit_bytes));
        let free = Unit::split(made, unit_bytes)
            .map_err(|source| FreezeError::Buffer { bytes, source })?;
        let state = State {
            free,
            queue: VecDeque::new(),
            closed: false,
            made,
            limit: units,
            most_used: 0,
            waits: Waits::default(),
            waiting: 0,
        };
        // The scan leaves room for one chunk, so that a fault need not wait for the scan's writes.
        Ok(Self {
            state: Mutex::new(state),
            room: Condvar::new(),
            changed: Condvar::new(),
            reserve: chunk,
        })
    }

    /// Bytes that were in use at the same time, at most.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.state.lock().most_used * UNIT_PAGES * page_size()
    }

    /// Bytes that it has room for by now.
    #[cfg(test)]
    pub(crate) fn made_bytes(&self) -> usize {
        self.state.lock().made * UNIT_PAGES * page_size()
    }

    /// Whether a writer waits for room now.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// What writers have waited for room so far.
    pub(crate) fn waits(&self) -> Waits {
        self.state.lock().waits
    }

    /// Room for a fault's chunk; `None` once it is closed.
    pub(crate) fn take(&self, units: usize) -> Option<Vec<Unit>> {
        let mut state = self.state.lock();
        let mut since = None;
        let room = loop {
            if state.closed {
                break None;
            }
            if let Some(units) = state.split(units, 0) {
                break Some(units);
            }
            if since.is_none() {
                since = Some(Instant::now());
                state.waiting += 1;
            }
            self.room.wait(&mut state);
        };
        if let Some(since) = since {
            let waited = since.elapsed();
            state.waiting -= 1;
            let waits = &mut state.waits;
            waits.count += 1;
            waits.total += waited;
            waits.longest = waits.longest.max(waited);
        }
        room
    }

    /// Whether its limit is above what it begins with.
    pub(crate) fn may_grow(&self) -> bool {
        let state = self.state.lock();
        state.made < state.limit
    }

    /// Makes the buffer as large as its limit allows, up to `bytes`, as long as `go_on` says so.
    /// Before the pause only: on some hosts fresh memory takes longer to be had than a full buffer
    /// takes to be written.
    pub(crate) fn grow(&self, bytes: usize, mut go_on: impl FnMut() -> bool) {
        let unit_bytes = UNIT_PAGES * page_size();
        while go_on() {
            let mut state = self.state.lock();
            let wanted = (bytes / unit_bytes).min(state.limit);
            // Each step is a mapping, of which a process may not have many: so they get larger.
            let step = SCAN_UNITS.max(state.made / 16);
            let more = wanted.saturating_sub(state.made).min(step);
            if more == 0 || state.closed {
                return;
            }
            state.made += more;
            drop(state);
            // The lock is not held while the host hands memory out.
            let made = Unit::split(more, unit_bytes);
            let mut state = self.state.lock();
            match made {
                Ok(made) => state.free.extend(made),
                Err(error) => {
                    // What there is must do.
                    tracing::warn!(%error, "the page buffer cannot grow");
                    state.made -= more;
                    state.limit = state.made;
                }
            }
        }
    }

    /// Room for the scan, or what must be written before it goes on.
    pub(crate) fn take_for_scan(&self, units: usize) -> Room<T> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Room::Closed;
            }
            if let Some(copied) = state.queue.pop_front() {
                return Room::Queued(copied);
            }
            if let Some(units) = state.split(units, self.reserve) {
                return Room::Units(units);
            }
            self.changed.wait(&mut state);
        }
    }

    /// The next chunk copied by a fault. Waits while `pending` says that one may still come.
    pub(crate) fn next_queued(&self, pending: impl Fn() -> bool) -> Room<T> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Room::Closed;
            }
            if let Some(copied) = state.queue.pop_front() {
                return Room::Queued(copied);
            }
            if !pending() {
                return Room::Units(Vec::new());
            }
            self.changed.wait(&mut state);
        }
    }

    /// A chunk that a fault has copied.
    pub(crate) fn push(&self, copied: T) {
        self.state.lock().queue.push_back(copied);
        self.changed.notify_all();
    }

    /// Units that are free again.
    pub(crate) fn give_back(&self, units: impl IntoIterator<Item = Unit>) {
        self.state.lock().free.extend(units);
        self.room.notify_all();
        self.changed.notify_all();
    }

    /// Tells copiers that wait to look again.
    pub(crate) fn nudge(&self) {
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Ends it: nobody waits for room any more.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.queue);
        drop(state);
        self.room.notify_all();
        self.changed.notify_all();
        drop(dropped);
    }
}

impl<T> State<T> {
    fn split(&mut self, units: usize, keep: usize) -> Option<Vec<Unit>> {
        let left = self.free.len().checked_sub(units)?;
        if left < keep {
            return None;
        }
        let room = self.free.split_off(left);
        self.most_used = self.most_used.max(self.made - left);
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use paguro_testkit::{ends, run, wait_until};

    use super::*;

    #[test]
    fn a_writer_waits_for_room_until_there_is_some_or_it_is_over() {
        let buffer = Arc::new(Buffer::<()>::new(4 << 20, 16).unwrap());
        let all = buffer.made_bytes() / (UNIT_PAGES * page_size());
        let waits = || {
            let its = buffer.clone();
            let waits = run(move || its.take(1));
            wait_until("a writer waits", || buffer.is_waited_for());
            waits
        };
        let taken = buffer.take(all).unwrap();
        let writer = waits();
        buffer.give_back(taken);
        let taken = (ends(&writer), buffer.take(all - 1));
        assert!(matches!(&taken, (Some(_), Some(_))));
        let writer = waits();
        buffer.close();
        assert!(ends(&writer).is_none());
        assert_eq!(buffer.waits().count, 2);
    }

    #[test]
    fn a_large_buffer_is_of_few_mappings() {
        const BYTES: usize = 128 << 20;
        let buffer = Buffer::<()>::new(BYTES, GRANULE).unwrap();
        buffer.grow(BYTES, || true);
        assert_eq!(buffer.made_bytes(), BYTES);
        let mut units: Vec<usize> = buffer
            .state
            .lock()
            .free
            .iter()
            .map(|unit| unit.as_ptr() as usize)
            .collect();
        units.sort_unstable();
        let bytes = UNIT_PAGES * page_size();
        let pieces = units.windows(2).filter(|two| two[1] - two[0] > bytes);
        let pieces = pieces.count() + 1;
        assert!(pieces <= 32, "{pieces}");
    }
}
