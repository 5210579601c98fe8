use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use paguro_dirty::{Freeze, FreezeError, FreezeOptions, HugePolicy, Sabotage};
use paguro_faults::{Faults, Supply};
use paguro_ram::{Backing, BlockConfig, Discards, GuestRam, PageKind, RamBlock, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Advice, Fallbacks, Host};
pub use paguro_testkit::{HugePages, alone, ends, mappings, run, skipped, wait_until};

pub const PAGE: usize = 4096;

/// The host, or a printed reason why there is nothing to be tested here.
pub fn host(forced: &Fallbacks) -> Option<Host> {
    let host = Host::probe(forced);
    if host.can_freeze() && host.can_freeze_shared() {
        return Some(host);
    }
    skipped("userfaultfd with write-protection is not available to this process");
    None
}

pub fn options(host: Host) -> FreezeOptions {
    FreezeOptions {
        host,
        chunk_pages: 512,
        buffer_bytes: 8 << 20,
        huge: HugePolicy::Keep,
        retry: Duration::ZERO,
        check: true,
        sabotage: Sabotage::None,
    }
}

/// Some RAM with the owner of its userfaultfd.
pub struct Rig {
    pub host: Host,
    pub ram: GuestRam,
    pub faults: Arc<Faults>,
}

impl Rig {
    /// Blocks of so many pages.
    pub fn new(blocks: &[(usize, Backing, PageKind)]) -> Option<Self> {
        Self::with(blocks, 2, None)
    }

    /// One block of small anonymous pages.
    pub fn small(pages: usize) -> Option<Self> {
        Self::new(&[(pages, Backing::Anonymous, PageKind::Small)])
    }

    pub fn with(
        blocks: &[(usize, Backing, PageKind)],
        readers: usize,
        discards: Option<Arc<dyn Discards>>,
    ) -> Option<Self> {
        let host = host(&Fallbacks::default())?;
        Some(Self::of(host, blocks, readers, discards))
    }

    /// On a host of which something is denied.
    pub fn on(host: Host, blocks: &[(usize, Backing, PageKind)]) -> Self {
        Self::of(host, blocks, 2, None)
    }

    fn of(
        host: Host,
        blocks: &[(usize, Backing, PageKind)],
        readers: usize,
        discards: Option<Arc<dyn Discards>>,
    ) -> Self {
        let block = |(index, &(pages, backing, kind)): (usize, &(usize, Backing, PageKind))| {
            RamBlock::new(BlockConfig {
                id: format!("ram{index}"),
                guest_address: (index as u64) << 32,
                bytes: pages * PAGE,
                backing,
                pages: kind,
            })
            .unwrap()
        };
        let mut ram = GuestRam::new(blocks.iter().enumerate().map(block).collect());
        if let Some(discards) = discards {
            ram = ram.with_discards(discards);
        }
        let faults = Faults::open(&host, ram.clone(), readers).unwrap();
        Self { host, ram, faults }
    }

    pub fn options(&self) -> FreezeOptions {
        options(self.host)
    }

    pub fn freeze(&self, options: FreezeOptions) -> Result<Arc<Freeze>, FreezeError> {
        self.freeze_of(None, options)
    }

    pub fn freeze_of(
        &self,
        source: Option<Arc<dyn Supply>>,
        options: FreezeOptions,
    ) -> Result<Arc<Freeze>, FreezeError> {
        let faults = Some(self.faults.clone());
        Freeze::new(faults, self.ram.clone(), source, &[], options)
    }

    /// An armed and held freeze.
    pub fn held(&self, options: FreezeOptions) -> Arc<Freeze> {
        let freeze = self.freeze(options).unwrap();
        freeze.arm(|| true).unwrap();
        hold(&freeze);
        freeze
    }

    pub fn put(&self, block: usize, page: usize, value: u8) {
        let content = [value; PAGE];
        self.ram.blocks()[block]
            .mapping()
            .copy_in(page * PAGE, &content);
    }

    /// Whether a page exists.
    pub fn is_there(&self, block: usize, page: usize) -> bool {
        let pagemap = Pagemap::open(&self.host).unwrap();
        let mut found = false;
        let part = page..page + 1;
        presence::present(&self.ram.blocks()[block], part, &pagemap, |_| found = true).unwrap();
        found
    }

    /// Writes a page in a thread of its own.
    pub fn write(&self, block: usize, page: usize, value: u8) -> Receiver<()> {
        let mapping = self.ram.blocks()[block].mapping().clone();
        run(move || mapping.copy_in(page * PAGE, &[value; PAGE]))
    }

    /// Gives a page back behind the back of the freeze.
    pub fn drop_page(&self, block: usize, page: usize) {
        let mapping = self.ram.blocks()[block].mapping().clone();
        ends(&run(move || {
            mapping.advise(page * PAGE, PAGE, Advice::DontNeed).unwrap();
        }));
    }
}

/// Threads that write everything until dropped.
pub struct Vandals {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Vandals {
    pub fn start(ram: &GuestRam, count: usize, value: u8) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|index| {
            let (ram, stop) = (ram.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut step = index;
                while !stop.load(Ordering::Relaxed) {
                    for block in ram.blocks() {
                        let page = step.wrapping_mul(7919) % block.pages();
                        block.mapping().copy_in(page * PAGE + 8 * index, &[value]);
                    }
                    step += 1;
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }
}

impl Drop for Vandals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| {
            let _ = thread.join();
        });
    }
}

pub fn hold(freeze: &Arc<Freeze>) {
    freeze.hold(freeze.barrier()).unwrap();
}

/// Pages with content, by block and number.
pub type Picture = BTreeMap<(usize, usize), Vec<u8>>;

/// What a number of threads get out of a freeze: pages with content, and how many were zero.
pub fn picture(freeze: &Arc<Freeze>, threads: usize) -> Result<(Picture, usize), FreezeError> {
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let freeze = freeze.clone();
            run(move || {
                let (mut pages, mut zeros) = (Vec::new(), 0);
                while let Some(copied) = freeze.next()? {
                    zeros += copied.zero_pages();
                    for (slot, &page) in copied.pages().iter().enumerate() {
                        pages.push(((copied.block(), page), copied.content(slot).to_vec()));
                    }
                }
                Ok((pages, zeros))
            })
        })
        .collect();
    let mut all = Picture::new();
    let (mut zero_pages, mut failed) = (0, None);
    for worker in workers {
        match ends(&worker) {
            Ok((pages, zeros)) => {
                zero_pages += zeros;
                for (at, content) in pages {
                    assert!(all.insert(at, content).is_none(), "{at:?} left twice");
                }
            }
            // The reason is told to one of them.
            Err(FreezeError::Ended) => failed = failed.or(Some(FreezeError::Ended)),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok((all, zero_pages)),
    }
}

/// The value that fills a page of a picture, zero if it has none.
#[track_caller]
pub fn value(picture: &Picture, block: usize, page: usize) -> u8 {
    let Some(content) = picture.get(&(block, page)) else {
        return 0;
    };
    assert!(
        content.iter().all(|byte| *byte == content[0]),
        "page {page} is mixed"
    );
    content[0]
}

#[track_caller]
pub fn values(picture: &Picture, block: usize, pages: Range<usize>) -> Vec<u8> {
    pages.map(|page| value(picture, block, page)).collect()
}
