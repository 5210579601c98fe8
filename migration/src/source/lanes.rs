//! The multifd channels of a source.
//!
//! The sender hands over batches of pages, each of one block; whichever channel is free takes the
//! next. The queue is short, so that what was handed over is sent before long and a slow network
//! holds the sender up.
//!
//! **A page must not be overtaken by an older copy of itself.** Within a pass each page is sent
//! once. At the end of a pass every channel writes what it has in hand and then SYNC, and none
//! takes a batch of the next pass before all have done so; the destination takes nothing of the
//! next pass before it saw the SYNC of every channel.
//!
//! **A channel that breaks ends the migration** until its last SYNC is written. After that it has
//! nothing to write, and whatever becomes of it matters to nobody.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use paguro_ram::GuestRam;
use paguro_sys::{Places, page_size};
use paguro_wire::stream::multifd::{self, PACKET_BYTES, PAGES_MAX, Packet};
use paguro_wire::stream::ram::BlockTable;

use super::tally::LaneCounts;
use super::{MigrateError, Migration, drive};
use crate::channel::Writer;
use crate::multifd::{Compression, Packer};

/// Batches that wait, for each channel.
const WAITING: usize = 2;

/// A packet's pages may lie all apart.
const _: () = assert!(PAGES_MAX <= Places::MOST);

/// What is broken on purpose holds the first packet from this one on: those before it are of memory
/// that guests seldom write.
const HELD: u64 = 10;

/// Pages of one block for one packet.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    block: usize,
    /// Pages to be read at the front, pages that are gone at the back.
    pages: [usize; PAGES_MAX],
    content: usize,
    gone: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            block: 0,
            pages: [0; PAGES_MAX],
            content: 0,
            gone: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content + self.gone == 0
    }

    /// Whether a page of `block` still fits.
    pub(super) fn takes(&self, block: usize) -> bool {
        self.is_empty() || (self.block == block && self.content + self.gone < PAGES_MAX)
    }

    /// Adds a page that [`takes`](Self::takes) has promised to take.
    pub(super) fn add(&mut self, block: usize, page: usize, is_gone: bool) {
        self.block = block;
        match is_gone {
            true => {
                self.gone += 1;
                self.pages[PAGES_MAX - self.gone] = page;
            }
            false => {
                self.pages[self.content] = page;
                self.content += 1;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        (self.content, self.gone) = (0, 0);
    }
}

/// What the sender and the threads of the channels share.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// There is work.
    work: Condvar,
    /// There is room, or a channel has come to SYNC.
    room: Condvar,
    channels: usize,
    counts: LaneCounts,
    writing: Mutex<Writing>,
    /// Leave out every SYNC but the last, and let a page be overtaken.
    unordered: bool,
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
struct Writes<'a>(&'a Queue);

impl<'a> Writes<'a> {
    fn begin(queue: &'a Queue) -> Self {
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
    fn new(channels: usize, unordered: bool) -> Self {
        Self {
            inner: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            channels,
            counts: LaneCounts::default(),
            writing: Mutex::default(),
            unordered,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn next(&self, synced: u64) -> Work {
        let mut inner = self.lock();
        loop {
            if inner.ended || inner.broken {
                return Work::End { whole: false };
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
                return Work::End { whole: true };
            }
            inner = self
                .work
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For what is broken on purpose: until all others wrote the last SYNC, or all ends.
    fn hold(&self) {
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
enum Work {
    Batch(Batch, u64),
    Sync(u64),
    End { whole: bool },
}

/// The sender's end of the channels. Dropping it ends their threads.
pub(super) struct Lanes(Arc<Queue>);

impl Lanes {
    pub(super) fn new(channels: u8, unordered: bool) -> (Self, Arc<Queue>) {
        let queue = Arc::new(Queue::new(usize::from(channels), unordered));
        (Self(queue.clone()), queue)
    }

    /// What the channels did so far.
    pub(super) fn counts(&self) -> &LaneCounts {
        &self.0.counts
    }

    /// For how long any of them was writing.
    pub(super) fn spent(&self) -> Duration {
        self.0.writing().spent()
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
        if self.0.unordered && !last {
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

/// One channel.
pub(super) struct Lane<'a> {
    pub(super) channel: u8,
    pub(super) writer: Writer,
    pub(super) queue: Arc<Queue>,
    pub(super) ram: GuestRam,
    pub(super) table: Arc<BlockTable>,
    pub(super) compression: Compression,
    pub(super) migration: &'a Migration,
    /// How long the destination may be silent; none: for ever.
    pub(super) silence: Option<Duration>,
}

impl Lane<'_> {
    /// Sends what is handed over until all ends. To be called in a thread of its own.
    pub(super) fn run(self) {
        let (queue, migration, silence) = (self.queue.clone(), self.migration, self.silence);
        let sent = catch_unwind(AssertUnwindSafe(|| self.send()));
        if let Err(error) = sent.unwrap_or(Err(MigrateError::Bug)) {
            queue.end(|inner| inner.broken = true);
            drive::last_words(migration, silence, &error);
            migration.fail(error);
        }
    }

    fn send(mut self) -> Result<(), MigrateError> {
        let broken = |source| MigrateError::broken("write to a multifd channel of", source);
        let codec = |source| MigrateError::broken("compress pages for", source);
        let mut packer = match self.compression {
            Compression::None => None,
            Compression::Zstd { level } => Some(Packer::new(level).map_err(codec)?),
        };
        let mut packet = Sorted::new();
        let mut copies = Copies::default();
        let mut head = Vec::with_capacity(PACKET_BYTES);
        let mut synced = 0;
        let mut holds = self.queue.unordered && self.channel == 0;
        loop {
            match self.queue.next(synced) {
                Work::Batch(batch, number) => {
                    packet.sort(&batch, &self.ram);
                    let counts = &self.queue.counts;
                    LaneCounts::add(&counts.normal_pages, packet.normal);
                    LaneCounts::add(&counts.zero_pages, packet.zero);
                    let late = holds && number >= HELD;
                    if packer.is_none() && self.writer.is_direct() && !late {
                        self.send_pages(&mut head, (batch.block, number), &packet)
                            .map_err(broken)?;
                        continue;
                    }
                    let pages = copies.of(&packet, batch.block, &self.ram);
                    if late {
                        holds = false;
                        self.queue.hold();
                    }
                    let payload = match &mut packer {
                        Some(packer) if packet.normal > 0 => packer.pack(pages).map_err(codec)?,
                        _ => pages,
                    };
                    let packet = packet.at(batch.block, number, payload.len());
                    self.write(&mut head, &packet, payload).map_err(broken)?;
                }
                Work::Sync(number) => {
                    let sync = Packet::sync(number);
                    self.write(&mut head, &sync, &[]).map_err(broken)?;
                    synced += 1;
                    let mut inner = self.queue.lock();
                    // That of START is not waited for: a channel may be one behind.
                    inner.synced += usize::from(inner.syncs == synced);
                    drop(inner);
                    self.queue.room.notify_all();
                    self.queue.work.notify_all();
                }
                Work::End { whole: false } => return Ok(()),
                Work::End { whole: true } => {
                    // The destination may have closed it long since.
                    if let Err(error) = self.writer.finish() {
                        tracing::debug!(%error, "a multifd channel did not end well");
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Writes a packet, and its pages from where they lie. A page that is written to meanwhile goes
    /// in part as it was and in part as it is; it is dirty, and goes again.
    fn send_pages(
        &mut self,
        head: &mut Vec<u8>,
        (block, number): (usize, u64),
        packet: &Sorted,
    ) -> io::Result<()> {
        head.clear();
        let whole = packet.at(block, number, packet.content_bytes());
        whole.encode(&self.table, self.compression.on_wire(), head);
        let mut places = Places::new(self.ram.blocks()[block].mapping());
        for &offset in whole.normal {
            places.push(offset as usize, page_size());
        }
        let mut head = &head[..];
        let _writes = Writes::begin(&self.queue);
        while !head.is_empty() || places.left_bytes() > 0 {
            let sent = self.writer.send(&mut places, &mut head)?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            LaneCounts::add(&self.queue.counts.bytes, sent);
        }
        Ok(())
    }

    /// Writes a packet and its payload together.
    fn write(&mut self, head: &mut Vec<u8>, packet: &Packet<'_>, payload: &[u8]) -> io::Result<()> {
        head.clear();
        packet.encode(&self.table, self.compression.on_wire(), head);
        let mut pieces = [IoSlice::new(head), IoSlice::new(payload)];
        let mut pieces = match payload {
            [] => &mut pieces[..1],
            _ => &mut pieces[..],
        };
        let _writes = Writes::begin(&self.queue);
        while !pieces.is_empty() {
            match self.writer.write_vectored(pieces) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    LaneCounts::add(&self.queue.counts.bytes, count);
                    IoSlice::advance_slices(&mut pieces, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The pages of a packet, by whether they have content.
struct Sorted {
    /// Offsets of pages with content at the front, of zero pages behind them.
    offsets: [u64; PAGES_MAX],
    normal: usize,
    zero: usize,
}

impl Sorted {
    fn new() -> Self {
        Self {
            offsets: [0; PAGES_MAX],
            normal: 0,
            zero: 0,
        }
    }

    /// Looks at the pages as they are now. The guest may write meanwhile: then what was found is looked
    /// at again later.
    fn sort(&mut self, batch: &Batch, ram: &GuestRam) {
        let page_bytes = page_size();
        let mapping = ram.blocks()[batch.block].mapping();
        let mut zeros = [0; PAGES_MAX];
        (self.normal, self.zero) = (0, 0);
        for &page in &batch.pages[..batch.content] {
            let offset = page * page_bytes;
            let (list, count) = match mapping.is_zero(offset, page_bytes) {
                true => (&mut zeros, &mut self.zero),
                false => (&mut self.offsets, &mut self.normal),
            };
            list[*count] = offset as u64;
            *count += 1;
        }
        for &page in &batch.pages[PAGES_MAX - batch.gone..] {
            zeros[self.zero] = (page * page_bytes) as u64;
            self.zero += 1;
        }
        self.offsets[self.normal..][..self.zero].copy_from_slice(&zeros[..self.zero]);
    }

    /// As a packet.
    fn at(&self, block: usize, number: u64, payload_bytes: usize) -> Packet<'_> {
        let (normal, zero) = self.offsets[..self.normal + self.zero].split_at(self.normal);
        Packet {
            sync: false,
            number,
            block,
            normal,
            zero,
            payload_bytes: payload_bytes as u32,
        }
    }

    fn content_bytes(&self) -> usize {
        self.normal * page_size()
    }
}

/// Copies of pages, for what must not change while it is worked on.
#[derive(Default)]
struct Copies(Vec<u8>);

impl Copies {
    /// The pages of a packet that have content.
    fn of(&mut self, packet: &Sorted, block: usize, ram: &GuestRam) -> &[u8] {
        self.0.resize(PAGES_MAX * page_size(), 0);
        let mapping = ram.blocks()[block].mapping();
        let places = self.0.chunks_mut(page_size());
        for (&offset, to) in packet.offsets[..packet.normal].iter().zip(places) {
            mapping.copy_out(offset as usize, to);
        }
        &self.0[..packet.content_bytes()]
    }
}

/// What a channel says first.
pub(super) fn introduce(writer: &mut Writer, channel: u8) -> io::Result<()> {
    let uuid = [0; 16];
    writer.write_all(&multifd::Init { uuid, channel }.encode())
}
