use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use paguro_faults::Faults;
use paguro_pager::{Failure, PageSource, Pager, PagerOptions, Prefetch, SourceError};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock};
use paguro_sys::{Fallbacks, Host};
pub use paguro_testkit::{HugePages, IN_VAIN, alone, ends, mappings, run, skipped, wait_until};

pub const PAGE: usize = 4096;

/// The host, or a printed reason why there is nothing to be tested here.
pub fn host() -> Option<Host> {
    let host = Host::probe(&Fallbacks::default());
    if host.can_freeze() && host.can_freeze_shared() {
        return Some(host);
    }
    skipped("userfaultfd is not available to this process");
    None
}

/// What a page is at the source.
pub fn content(page: usize) -> u8 {
    (page % 200 + 1) as u8
}

/// A source that counts what is asked of it.
pub struct Source {
    pub has: PageSet,
    pub reads: Mutex<Vec<usize>>,
    pub broken: Mutex<BTreeSet<usize>>,
    pub asked: AtomicUsize,
    pub panics_at: AtomicUsize,
    /// Pages that cannot be read for now.
    pub away: Mutex<BTreeSet<usize>>,
    /// Reads that failed because of that.
    pub refused: AtomicUsize,
    /// Held while it shall be slow.
    pub slow: Mutex<()>,
    /// Whoever holds it has reads hang from page 100 on.
    pub gate: RwLock<()>,
    /// Held while nobody shall count what he has placed.
    pub counting: Mutex<()>,
    /// How often somebody was about to.
    pub counts: AtomicUsize,
}

thread_local! {
    /// This thread has read and not asked since what there is, which it does when it counts.
    static HAS_READ: Cell<bool> = const { Cell::new(false) };
}

impl Source {
    pub fn new(pages: usize, has: impl Iterator<Item = usize>) -> Arc<Self> {
        let set = PageSet::new(pages);
        has.for_each(|page| {
            set.insert(page);
        });
        Arc::new(Self {
            has: set,
            reads: Mutex::default(),
            broken: Mutex::default(),
            asked: AtomicUsize::new(0),
            panics_at: AtomicUsize::new(usize::MAX),
            away: Mutex::default(),
            refused: AtomicUsize::new(0),
            slow: Mutex::default(),
            gate: RwLock::new(()),
            counting: Mutex::default(),
            counts: AtomicUsize::new(0),
        })
    }

    /// How often each page was read, at most.
    pub fn most_reads(&self) -> usize {
        let reads = self.reads.lock().unwrap();
        let count = |page| reads.iter().filter(|&&other| other == page).count();
        (0..self.has.pages()).map(count).max().unwrap_or(0)
    }

    pub fn was_read(&self, page: usize) -> bool {
        self.reads.lock().unwrap().contains(&page)
    }
}

impl PageSource for Source {
    fn has(&self, _: usize) -> &PageSet {
        if HAS_READ.replace(false) {
            self.counts.fetch_add(1, Ordering::SeqCst);
            drop(self.counting.lock());
        }
        &self.has
    }

    fn read(&self, block: usize, pages: Range<usize>, to: &mut [u8]) -> Result<(), SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.slow.lock().unwrap());
        assert_eq!(to.len(), pages.len() * PAGE);
        if pages.end > 100 {
            drop(self.gate.read().unwrap());
        }
        let panics_at = self.panics_at.load(Ordering::SeqCst);
        assert!(!pages.contains(&panics_at), "as it should");
        if let Some(&page) = self.away.lock().unwrap().range(pages.clone()).next() {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(SourceError::Read {
                block: format!("ram{block}"),
                first: page,
                end: page + 1,
                source: std::io::Error::from_raw_os_error(paguro_testkit::EIO),
            });
        }
        let broken = self.broken.lock().unwrap();
        if let Some(&page) = broken.range(pages.clone()).next() {
            let block = format!("ram{block}");
            let (expected, found) = (1, 2);
            return Err(SourceError::Damaged {
                block,
                page,
                expected,
                found,
            });
        }
        for (page, to) in pages.zip(to.chunks_exact_mut(PAGE)) {
            assert!(self.has.contains(page), "page {page} was never there");
            self.reads.lock().unwrap().push(page);
            to.fill(content(page));
        }
        HAS_READ.set(true);
        Ok(())
    }
}

/// RAM that a pager fills.
pub struct Rig {
    pub faults: Arc<Faults>,
    pub pager: Arc<Pager>,
}

impl Rig {
    pub fn start(
        pages: usize,
        kind: Backing,
        source: &Arc<Source>,
        fill: Prefetch,
    ) -> Option<Self> {
        let failure: Failure = Box::new(|error| panic!("{error}"));
        Self::of(block(pages, kind, PageKind::Small), source, fill, failure)
    }

    pub fn of(
        block: RamBlock,
        source: &Arc<Source>,
        prefetch: Prefetch,
        failure: Failure,
    ) -> Option<Self> {
        Self::patient(block, source, prefetch, Duration::ZERO, failure)
    }

    pub fn patient(
        block: RamBlock,
        source: &Arc<Source>,
        prefetch: Prefetch,
        retry: Duration,
        failure: Failure,
    ) -> Option<Self> {
        let faults = Faults::open(&host()?, GuestRam::new(vec![block]), 2).unwrap();
        let options = PagerOptions {
            urgent_threads: 2,
            prefetch,
            retry,
        };
        let pager = Pager::start(&faults, source.clone(), options, failure).unwrap();
        Some(Self { faults, pager })
    }

    pub fn read(&self, page: usize) -> Receiver<u8> {
        let mapping = self.faults.block(0).mapping().unwrap().clone();
        run(move || {
            let mut bytes = [0; PAGE];
            mapping.copy_out(page * PAGE, &mut bytes);
            assert!(
                bytes.iter().all(|&byte| byte == bytes[0]),
                "{page} is mixed"
            );
            bytes[0]
        })
    }

    pub fn write(&self, page: usize, value: u8) -> Receiver<()> {
        let mapping = self.faults.block(0).mapping().unwrap().clone();
        run(move || mapping.copy_in(page * PAGE, &[value; PAGE]))
    }
}

pub fn block(pages: usize, backing: Backing, kind: PageKind) -> RamBlock {
    RamBlock::new(BlockConfig {
        id: "ram0".into(),
        guest_address: 0,
        bytes: pages * PAGE,
        backing,
        pages: kind,
    })
    .unwrap()
}

/// Waits until something is so.
#[track_caller]
pub fn until(so: impl Fn() -> bool + Send + 'static) {
    ends(&run(move || {
        while !so() {
            std::thread::yield_now();
        }
    }));
}
