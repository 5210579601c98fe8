//! The loop, on memory that records every access.

use std::collections::BTreeMap;

use paguro_workload::layout::{AREA_START, PAGE_BYTES};
use paguro_workload::mailbox::{BEGUN, Counters, DONE, MARK};
use paguro_workload::progress::{self, Gap, Progress, RING_ENTRIES};
use paguro_workload::{Cpu, End, Params, Setup, Spec, Stream, run};

/// Memory of a vCPU whose clock advances at each look, by a schedule.
struct Recorder {
    pages: BTreeMap<(u64, usize), u64>,
    mailbox: BTreeMap<usize, u64>,
    progress: BTreeMap<usize, u64>,
    ticks: u64,
    steps: Vec<u64>,
    looks: usize,
    stores: u64,
    /// Stop after so many stores to RAM, as a pause in the middle of a write does.
    stores_allowed: u64,
    waited_us: u64,
}

impl Recorder {
    fn new(steps: &[u64]) -> Self {
        Self {
            pages: BTreeMap::new(),
            mailbox: BTreeMap::new(),
            progress: BTreeMap::new(),
            ticks: 1_000,
            steps: steps.to_vec(),
            looks: 0,
            stores: 0,
            stores_allowed: u64::MAX,
            waited_us: 0,
        }
    }

    fn may_store(&mut self) -> bool {
        self.stores += 1;
        self.stores <= self.stores_allowed
    }

    fn counters(&self) -> Counters {
        let word = |offset| self.mailbox.get(&offset).copied().unwrap_or(0);
        Counters {
            begun: word(BEGUN),
            done: word(DONE),
            mark: word(MARK),
        }
    }
}

impl Cpu for Recorder {
    type Page = u64;

    fn page(&mut self, gpa: u64) -> u64 {
        gpa
    }
    fn store(&mut self, page: u64, word: usize, value: u64) {
        if self.may_store() {
            self.pages.insert((page, word), value);
        }
    }
    fn load(&mut self, page: u64, word: usize) -> u64 {
        self.pages.get(&(page, word)).copied().unwrap_or(0)
    }
    fn mailbox_load(&mut self, offset: usize) -> u64 {
        self.mailbox.get(&offset).copied().unwrap_or(0)
    }
    fn mailbox_store(&mut self, offset: usize, value: u64) {
        if self.may_store() {
            self.mailbox.insert(offset, value);
        }
    }
    fn progress_load(&mut self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < progress::PROGRESS_BYTES);
        self.progress.get(&offset).copied().unwrap_or(0)
    }
    fn progress_store(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset < progress::PROGRESS_BYTES);
        self.progress.insert(offset, value);
    }
    fn now_ticks(&mut self) -> u64 {
        self.ticks = self
            .ticks
            .wrapping_add(self.steps[self.looks % self.steps.len()]);
        self.looks += 1;
        self.ticks
    }
    fn wait_us(&mut self, us: u32) {
        self.waited_us += u64::from(us);
        self.ticks += u64::from(us) * 1_000;
    }
    fn must_stop(&mut self) -> bool {
        self.stores > self.stores_allowed
    }
}

fn params(spec: &str, vcpus: u64) -> Params {
    Params::new(&Setup {
        spec: spec.parse::<Spec>().unwrap(),
        vcpus,
        ram: &[(0, AREA_START + 20 * PAGE_BYTES)],
        ticks_per_s: 1_000_000_000,
        gap_threshold_us: 2,
        threads: true,
        dma: false,
        dma_direct: false,
    })
    .unwrap()
}

/// What RAM must hold after `done` writes, and possibly a part of one more.
fn check(recorder: &Recorder, params: &Params, vcpu: u64) {
    let (stream, counters) = (Stream::vcpu(params, vcpu), recorder.counters());
    assert!(counters.are_possible(), "{counters:?}");
    for page in 0..params.area.pages() {
        let gpa = params.area.gpa(page);
        let old = stream.content_at(page, counters.done);
        let in_flight = counters.in_flight().filter(|n| stream.page(*n) == page);
        let mut new_words = in_flight.map_or(0, |_| stream.words());
        for word in 0..512 {
            let found = recorder.pages.get(&(gpa, word)).copied().unwrap_or(0);
            let expect = |content: Option<paguro_workload::Content>| {
                content
                    .filter(|_| word < stream.words())
                    .map_or(0, |c| c.word(word))
            };
            if word < new_words && found == expect(in_flight.map(|n| stream.content(page, n))) {
                continue;
            }
            new_words = 0;
            assert_eq!(found, expect(old), "page {page} word {word}");
        }
    }
}

#[test]
fn a_stop_between_any_two_stores_leaves_what_the_arithmetic_says() {
    for (spec, writes) in [
        ("bytes=8", 30),
        ("bytes=64,pattern=zipf", 10),
        ("bytes=page,pattern=hotset", 2),
    ] {
        let params = params(&format!("{spec},rate=unlimited"), 3);
        for stores in 0..writes * (4 + Stream::vcpu(&params, 1).words() as u64) {
            let mut recorder = Recorder::new(&[1]);
            recorder.stores_allowed = stores;
            assert_eq!(run(&mut recorder, &params, 1), End::Stopped);
            check(&recorder, &params, 1);
        }
    }
}

#[test]
fn a_fresh_thread_goes_on_where_the_mailbox_says() {
    let params = params("bytes=64,rate=unlimited,writes=40", 2);
    let mut whole = Recorder::new(&[1]);
    assert_eq!(run(&mut whole, &params, 0), End::Finished);
    for stores in [0, 7, 13, 200, 201, 202, 203, 204] {
        let mut parts = Recorder::new(&[1]);
        parts.stores_allowed = stores;
        run(&mut parts, &params, 0);
        (parts.stores, parts.stores_allowed) = (0, u64::MAX);
        assert_eq!(run(&mut parts, &params, 0), End::Finished);
        assert_eq!(
            (&parts.pages, &parts.mailbox),
            (&whole.pages, &whole.mailbox)
        );
    }
}

#[test]
fn reading_writes_counters_only() {
    let params = params("op=read,rate=unlimited,writes=100", 2);
    let mut recorder = Recorder::new(&[1]);
    assert_eq!(run(&mut recorder, &params, 1), End::Finished);
    assert!(recorder.pages.is_empty());
    assert_eq!(recorder.counters().done, 100);
    check(&recorder, &params, 1);
}

#[test]
fn gaps_are_counted_and_the_long_ones_listed() {
    let params = params("rate=unlimited,writes=8", 1);
    // The first look begins; then one look a write.
    let mut recorder = Recorder::new(&[0, 100, 300, 5_000, 1, 2_000, 1_999, 100, 0]);
    run(&mut recorder, &params, 0);
    let progress = Progress::read(|offset| recorder.progress_load(offset));
    assert_eq!((progress.writes, progress.last_ticks), (8, 10_500));
    assert_eq!(
        (
            progress.max_gap_ticks,
            progress.long_gaps_ticks,
            progress.long_gaps
        ),
        (5_000, 7_000, 2)
    );
    assert_eq!(progress.histogram.iter().sum::<u64>(), 8);
    assert_eq!(
        (
            progress.histogram[0],
            progress.histogram[6],
            progress.histogram[10]
        ),
        (2, 2, 2)
    );
    let mut listed = Vec::new();
    assert_eq!(
        progress::gaps(
            0,
            2,
            |offset| recorder.progress_load(offset),
            |gap| listed.push(gap)
        ),
        0
    );
    let gap = |end_ticks, length_ticks| Gap {
        end_ticks,
        length_ticks,
    };
    assert_eq!(listed, [gap(6_400, 5_000), gap(8_401, 2_000)]);
}

#[test]
fn the_ring_keeps_the_newest_gaps() {
    let writes = RING_ENTRIES + 10;
    let params = params(&format!("rate=unlimited,writes={writes}"), 1);
    let mut recorder = Recorder::new(&[2_000]);
    run(&mut recorder, &params, 0);
    let mut ends = Vec::new();
    let lost = progress::gaps(
        3,
        writes,
        |offset| recorder.progress_load(offset),
        |gap| ends.push(gap.end_ticks),
    );
    assert_eq!((lost, ends.len() as u64), (7, RING_ENTRIES));
    assert!(ends.is_sorted() && ends.last() == Some(&recorder.ticks));
}

#[test]
fn a_clock_that_goes_back_is_no_gap() {
    let params = params("rate=unlimited,writes=4", 1);
    let mut recorder = Recorder::new(&[1, 1, 1_000_000u64.wrapping_neg(), 1, 1]);
    recorder.ticks = 1 << 40;
    run(&mut recorder, &params, 0);
    let progress = Progress::read(|offset| recorder.progress_load(offset));
    assert_eq!((progress.max_gap_ticks, progress.long_gaps), (1, 0));
}

#[test]
fn waiting_for_the_rate_is_no_gap() {
    let params = params("rate=1000,writes=200", 2);
    let mut recorder = Recorder::new(&[10]);
    run(&mut recorder, &params, 1);
    let progress = Progress::read(|offset| recorder.progress_load(offset));
    assert_eq!(progress.writes, 200);
    // 500 writes a second are this vCPU's: the last one is due after 398 ms.
    assert!(
        (397_000..399_000).contains(&recorder.waited_us),
        "{}",
        recorder.waited_us
    );
    assert!(progress.waits >= 199 && progress.rebases == 0);
    assert!(progress.max_gap_ticks < 100 && progress.max_late_ticks < 100);
}
