//! The loop that does the writes, over any memory.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::layout::PAGE_WORDS;
use crate::mailbox::{BEGUN, DONE, MARK, mark};
use crate::pace::{Pace, Pacer};
use crate::params::Params;
use crate::progress::{
    LAST_TICKS, LONG_GAPS, LONG_GAPS_TICKS, MAX_GAP_TICKS, MAX_LATE_TICKS, REBASES, WAITS, WRITES,
    bucket, ring_entry,
};
use crate::spec::{Bytes, Op};
use crate::stream::Stream;

/// What one vCPU, or a thread in its place, can do.
///
/// Every load and store must reach memory as it is called and in the order of the calls, as
/// volatile accesses do: the vCPU may be stopped between any two of them.
pub trait Cpu {
    /// A page of the workload area that can be accessed: an address, a pointer.
    type Page: Copy;

    /// The page at a guest-physical address that lies in the area.
    fn page(&mut self, gpa: u64) -> Self::Page;
    /// Stores to the `word`-th word of a page.
    fn store(&mut self, page: Self::Page, word: usize, value: u64);
    /// Loads the `word`-th word of a page.
    fn load(&mut self, page: Self::Page, word: usize) -> u64;
    /// Loads from a byte offset of this vCPU's mailbox page.
    fn mailbox_load(&mut self, offset: usize) -> u64;
    /// Stores to a byte offset of this vCPU's mailbox page.
    fn mailbox_store(&mut self, offset: usize, value: u64);
    /// Loads from a byte offset of this vCPU's progress memory.
    fn progress_load(&mut self, offset: usize) -> u64;
    /// Stores to a byte offset of this vCPU's progress memory.
    fn progress_store(&mut self, offset: usize, value: u64);
    /// The clock, in ticks.
    fn now_ticks(&mut self) -> u64;
    /// Waits for so many microseconds. May return early or late.
    fn wait_us(&mut self, us: u32);
    /// Whether to stop before the next write. A guest never does.
    #[inline(always)]
    fn must_stop(&mut self) -> bool {
        false
    }
}

/// Why [`run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Cpu::must_stop`] said so.
    Stopped,
    /// All [`Params::writes`] are done.
    Finished,
}

/// Does the writes of vCPU `vcpu`, from where its mailbox says it is.
///
/// A write that was begun and not done is done again from its start: it stores the same words.
pub fn run<C: Cpu>(cpu: &mut C, params: &Params, vcpu: u64) -> End {
    match (params.op, params.bytes) {
        (Op::Read, _) => run_words::<C, 0>(cpu, params, vcpu),
        (Op::Write, Bytes::Eight) => run_words::<C, 1>(cpu, params, vcpu),
        (Op::Write, Bytes::SixtyFour) => run_words::<C, 8>(cpu, params, vcpu),
        (Op::Write, Bytes::Page) => run_words::<C, PAGE_WORDS>(cpu, params, vcpu),
    }
}

/// With `WORDS` known, storing a word is a store; 0 means that pages are read.
fn run_words<C: Cpu, const WORDS: usize>(cpu: &mut C, params: &Params, vcpu: u64) -> End {
    let stream = Stream::vcpu(params, vcpu);
    let end = if params.writes == 0 {
        u64::MAX
    } else {
        params.writes
    };
    let mut n = cpu.mailbox_load(DONE);
    let mut last_ticks = cpu.now_ticks();
    let mut pacer = Pacer::new(params, last_ticks, n);
    while n < end {
        if cpu.must_stop() {
            return End::Stopped;
        }
        if let Some(pacer) = &mut pacer
            && !pacer.is_due(n)
            && !keep_pace(cpu, pacer, n, &mut last_ticks)
        {
            continue;
        }
        let page = stream.page(n);
        let content = stream.content(page, n);
        let at = cpu.page(params.area.gpa(page));
        cpu.mailbox_store(MARK, mark(2 * n + 1));
        in_order();
        cpu.mailbox_store(BEGUN, n + 1);
        in_order();
        if WORDS == 0 {
            cpu.load(at, 0);
        }
        for word in 0..WORDS {
            cpu.store(at, word, content.word(word));
        }
        in_order();
        cpu.mailbox_store(DONE, n + 1);
        in_order();
        cpu.mailbox_store(MARK, mark(2 * n + 2));
        n += 1;
        let now_ticks = cpu.now_ticks();
        post(cpu, n, last_ticks, now_ticks, params.gap_threshold_ticks);
        last_ticks = now_ticks;
    }
    End::Finished
}

/// Whether write `n` may begin; if not, waits a while first.
#[cold]
#[inline(never)]
fn keep_pace<C: Cpu>(cpu: &mut C, pacer: &mut Pacer, n: u64, last_ticks: &mut u64) -> bool {
    let asked_ticks = cpu.now_ticks();
    match pacer.ask(n, asked_ticks) {
        Pace::Go => true,
        Pace::GoRebased => {
            add(cpu, REBASES, 1);
            true
        }
        Pace::Wait { us } => {
            cpu.wait_us(us);
            add(cpu, WAITS, 1);
            // The wait is no gap; that it took longer than asked may be one.
            let now_ticks = cpu.now_ticks();
            let late_ticks = elapsed(asked_ticks, now_ticks).saturating_sub(pacer.ticks_of(us));
            if late_ticks > cpu.progress_load(MAX_LATE_TICKS) {
                cpu.progress_store(MAX_LATE_TICKS, late_ticks);
            }
            *last_ticks = now_ticks;
            false
        }
    }
}

#[inline(always)]
fn post<C: Cpu>(cpu: &mut C, writes: u64, last_ticks: u64, now_ticks: u64, threshold_ticks: u64) {
    let gap_ticks = elapsed(last_ticks, now_ticks);
    cpu.progress_store(WRITES, writes);
    cpu.progress_store(LAST_TICKS, now_ticks);
    add(cpu, bucket(gap_ticks), 1);
    if gap_ticks > cpu.progress_load(MAX_GAP_TICKS) {
        cpu.progress_store(MAX_GAP_TICKS, gap_ticks);
    }
    if gap_ticks >= threshold_ticks {
        list_gap(cpu, now_ticks, gap_ticks);
    }
}

#[cold]
#[inline(never)]
fn list_gap<C: Cpu>(cpu: &mut C, end_ticks: u64, length_ticks: u64) {
    let gap = cpu.progress_load(LONG_GAPS);
    let entry = ring_entry(gap);
    cpu.progress_store(entry, end_ticks);
    cpu.progress_store(entry + 8, length_ticks);
    add(cpu, LONG_GAPS_TICKS, length_ticks);
    in_order();
    cpu.progress_store(LONG_GAPS, gap + 1);
}

#[inline(always)]
fn add<C: Cpu>(cpu: &mut C, offset: usize, by: u64) {
    let value = cpu.progress_load(offset);
    cpu.progress_store(offset, value.wrapping_add(by));
}

#[inline(always)]
fn elapsed(from_ticks: u64, to_ticks: u64) -> u64 {
    let ticks = to_ticks.wrapping_sub(from_ticks);
    if ticks >> 63 == 0 { ticks } else { 0 }
}

#[inline(always)]
fn in_order() {
    compiler_fence(Ordering::SeqCst);
}
