//! The pages that one writer writes, forward and backward.
//!
//! Writes are dealt out to *levels* in a fixed round: all of them to the one level of
//! `sequential` and `random`, nine of ten to the hot level of `hotset`, one each to the levels
//! of `zipf`. A level is a prefix of the writer's pages in a scattered order that all levels
//! share, so levels are nested; the writes dealt to it walk it pass after pass, each pass in
//! another permutation. Dealing, walking and scattering can all be inverted, so the write that
//! last went to a page is found level by level.

use crate::area::Writer;
use crate::content::{Content, writer_key};
use crate::mix::{Divisor, SPREAD, mix, mix2};
use crate::params::{MAX_MAPPED_GIB, Params};
use crate::permutation::Domain;
use crate::spec::{Op, Pattern};

/// Levels of the deepest `zipf`: an area has fewer than 4^13 pages.
const MAX_LEVELS: usize = 14;

const _: () = assert!(MAX_MAPPED_GIB << 18 < 1 << (2 * (MAX_LEVELS - 1)));

/// Keeps the keys of a writer's orders apart from those of its contents.
const ORDER_KEY: u64 = 0x6f72_6465_7220_6f66;

/// All writes of one writer.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    first_page: u64,
    stride: u64,
    pages: u64,
    words: usize,
    op: Op,
    content_key: u64,
    sequential: bool,
    /// Whether pages are ordered by `scatter`; without nested levels it would change nothing.
    scattered: bool,
    scatter: Domain,
    scatter_key: u64,
    round: Divisor,
    level_count: usize,
    levels: [Level; MAX_LEVELS],
}

/// A nested subset of the pages: the first `size` of the scattered order.
#[derive(Clone, Copy, Debug)]
struct Level {
    size: Divisor,
    domain: Domain,
    key: u64,
    /// Writes of a round that go here: `slots` of them from number `first_slot` on.
    first_slot: u32,
    slots: u32,
}

impl Stream {
    /// The writes of vCPU `vcpu`, which is less than the vCPUs of `params`.
    pub fn vcpu(params: &Params, vcpu: u64) -> Self {
        let all = params.split().vcpu_pages;
        let pages = all.saturating_sub(vcpu).div_ceil(params.vcpus).max(1);
        let hot_pages = (params.hot_pages / params.vcpus).clamp(1, pages);
        let mut stream = Self::empty(params.seed, vcpu, pages);
        stream.first_page = vcpu;
        stream.stride = params.vcpus;
        stream.words = params.bytes.words();
        stream.op = params.op;
        stream.sequential = params.pattern == Pattern::Sequential;
        match params.pattern {
            Pattern::Sequential | Pattern::Random => stream.add_level(pages, 1),
            Pattern::HotSet => {
                stream.add_level(hot_pages, 9);
                stream.add_level(pages, 1);
            }
            Pattern::Zipf => {
                let mut size = pages;
                stream.add_level(size, 1);
                while size > hot_pages {
                    size = (size / 4).max(hot_pages);
                    stream.add_level(size, 1);
                }
            }
        }
        stream
    }

    /// The writes of device `writer`: whole pages, in random order. `None` if `params` have no
    /// such device.
    pub fn device(params: &Params, writer: u64) -> Option<Self> {
        let pages = params.split().device_pages(writer);
        let count = pages
            .end
            .checked_sub(pages.start)
            .filter(|&count| count > 0)?;
        let mut stream = Self::empty(params.seed, writer, count);
        stream.first_page = pages.start;
        stream.words = crate::layout::PAGE_WORDS;
        stream.add_level(count, 1);
        Some(stream)
    }

    /// The writes of whoever owns area page `page`.
    pub fn of(params: &Params, writer: Writer) -> Option<Self> {
        match writer {
            Writer::Vcpu(vcpu) => (vcpu < params.vcpus).then(|| Self::vcpu(params, vcpu)),
            Writer::Device(writer) => Self::device(params, writer),
        }
    }

    #[inline(always)]
    fn empty(seed: u64, writer: u64, pages: u64) -> Self {
        let scatter = Domain::new(pages);
        let unused = Level {
            size: Divisor::new(1),
            domain: scatter,
            key: 0,
            first_slot: 0,
            slots: 1,
        };
        Self {
            first_page: 0,
            stride: 1,
            pages,
            words: 1,
            op: Op::Write,
            content_key: writer_key(seed, writer),
            sequential: false,
            scattered: false,
            scatter,
            scatter_key: mix2(seed ^ ORDER_KEY, writer),
            round: Divisor::new(1),
            level_count: 0,
            levels: [unused; MAX_LEVELS],
        }
    }

    // In place and not inlined: the guest builds this on a stack of one page.
    #[inline(never)]
    fn add_level(&mut self, size: u64, slots: u32) {
        let first_slot = match self.level_count {
            0 => 0,
            _ => self.round.value as u32,
        };
        self.levels[self.level_count] = Level {
            size: Divisor::new(size),
            domain: Domain::new(size),
            key: mix2(self.scatter_key, self.level_count as u64),
            first_slot,
            slots,
        };
        self.level_count += 1;
        self.scattered = self.level_count > 1;
        self.round = Divisor::new(u64::from(first_slot + slots));
    }

    /// Area pages that this writer owns.
    pub fn page_count(&self) -> u64 {
        self.pages
    }

    /// The area page that write `n` goes to.
    #[inline(always)]
    pub fn page(&self, n: u64) -> u64 {
        let local = if self.sequential {
            self.levels[0].size.div_rem(n).1
        } else if !self.scattered {
            self.levels[0].rank(n)
        } else {
            let (round, slot) = self.round.div_rem(n);
            let mut level = &self.levels[0];
            // The levels' slots follow one another; only the first may have more than one.
            if let Some(after) = slot.checked_sub(u64::from(level.slots)) {
                level = &self.levels[(after as usize + 1).min(MAX_LEVELS - 1)];
            }
            let k = round * u64::from(level.slots) + (slot - u64::from(level.first_slot));
            self.scatter.forward(self.scatter_key, level.rank(k))
        };
        self.first_page + local * self.stride
    }

    /// The last write before write `n` that went to area page `page`: the greatest such
    /// number less than `n`. `None` if there is none or the page is not this writer's.
    pub fn last_write(&self, page: u64, n: u64) -> Option<u64> {
        let rank = self.rank_of(page)?;
        self.used_levels()
            .filter(|level| rank < level.size.value)
            .filter_map(|level| {
                let before = level.writes_before(n, self.round);
                let (pass, within) = level.size.div_rem(before);
                let position = self.position(level, pass, rank);
                let k = if position < within {
                    pass * level.size.value + position
                } else {
                    let pass = pass.checked_sub(1)?;
                    pass * level.size.value + self.position(level, pass, rank)
                };
                Some(level.write_number(k, self.round))
            })
            .max()
    }

    /// The first write from write `n` on that goes to area page `page`: the least such number
    /// not less than `n`. `None` if the page is not this writer's, or beyond 2^64 writes.
    pub fn next_write(&self, page: u64, n: u64) -> Option<u64> {
        let rank = self.rank_of(page)?;
        self.used_levels()
            .filter(|level| rank < level.size.value)
            .filter_map(|level| {
                let before = level.writes_before(n, self.round);
                let (pass, within) = level.size.div_rem(before);
                let position = self.position(level, pass, rank);
                let (pass, position) = if position >= within {
                    (pass, position)
                } else {
                    let pass = pass.checked_add(1)?;
                    (pass, self.position(level, pass, rank))
                };
                let k = pass.checked_mul(level.size.value)?.checked_add(position)?;
                (k / u64::from(level.slots))
                    .checked_add(1)?
                    .checked_mul(self.round.value)?;
                Some(level.write_number(k, self.round))
            })
            .min()
    }

    /// What write `n` to area page `page` stores.
    #[inline(always)]
    pub fn content(&self, page: u64, n: u64) -> Content {
        Content::new(self.content_key, page, n)
    }

    /// What area page `page` holds when all writes before `n` are done: the content of its
    /// last write, or `None` for zeros.
    pub fn content_at(&self, page: u64, n: u64) -> Option<Content> {
        match self.op {
            Op::Write => Some(self.content(page, self.last_write(page, n)?)),
            Op::Read => None,
        }
    }

    /// Words that a write stores, from the start of its page.
    pub fn words(&self) -> usize {
        self.words
    }

    /// Whether the pages are written or only read.
    pub fn op(&self) -> Op {
        self.op
    }

    fn used_levels(&self) -> impl Iterator<Item = &Level> {
        self.levels[..self.level_count].iter()
    }

    fn rank_of(&self, page: u64) -> Option<u64> {
        let offset = page.checked_sub(self.first_page)?;
        let local = offset / self.stride;
        if offset % self.stride != 0 || local >= self.pages {
            return None;
        }
        Some(if self.scattered {
            self.scatter.backward(self.scatter_key, local)
        } else {
            local
        })
    }

    fn position(&self, level: &Level, pass: u64, rank: u64) -> u64 {
        if self.sequential {
            rank
        } else {
            level.domain.backward(level.pass_key(pass), rank)
        }
    }
}

impl Level {
    /// The rank that the level's write `k` goes to.
    #[inline(always)]
    fn rank(&self, k: u64) -> u64 {
        let (pass, position) = self.size.div_rem(k);
        self.domain.forward(self.pass_key(pass), position)
    }

    #[inline(always)]
    fn pass_key(&self, pass: u64) -> u64 {
        mix(self.key.wrapping_add(pass.wrapping_mul(SPREAD[0])))
    }

    /// How many of the writer's first `n` writes go to this level.
    fn writes_before(&self, n: u64, round: Divisor) -> u64 {
        let (rounds, slot) = round.div_rem(n);
        let (first, slots) = (u64::from(self.first_slot), u64::from(self.slots));
        rounds * slots + slot.saturating_sub(first).min(slots)
    }

    /// The number among the writer's writes of the level's write `k`.
    fn write_number(&self, k: u64, round: Divisor) -> u64 {
        let (first, slots) = (u64::from(self.first_slot), u64::from(self.slots));
        k / slots * round.value + first + k % slots
    }
}
