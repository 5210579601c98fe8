//! A freeze: its parts, its epochs, its end.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use paguro_faults::{Barrier, Faults, Use};
use paguro_ram::{GuestRam, PageSet, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Advice, page_size};

use crate::arming::Pace;
use crate::hooks::Hooks;
use crate::moments::Moments;
use crate::picture::Picture;
use crate::sizes::CHUNK;
use crate::sizing::Sizing;
use crate::{FreezeError, FreezeOptions, PageBuffer, UNIT_PAGES, Unarrived, Waits};

/// Numbers of a freeze.
#[derive(Debug, Default)]
pub struct FreezeStats {
    /// Faults on protected pages while arming.
    pub arming_faults: AtomicU64,
    /// Faults on protected pages while frozen that led to a copy.
    pub faults: AtomicU64,
    /// Pages copied because of a fault.
    pub fault_pages: AtomicU64,
    /// Rounds of arming.
    pub rounds: AtomicU64,
    /// Pages armed inside the pause.
    pub rearmed_pages: AtomicU64,
}

pub(crate) const ARMING: u8 = 0;
pub(crate) const FROZEN: u8 = 1;
pub(crate) const OVER: u8 = 2;

/// While it lives nobody answers a fault and nobody gives pages back.
pub struct Standstill<'a> {
    _readers: Option<Barrier<'a>>,
    _discards: RwLockWriteGuard<'a, ()>,
}

/// A freeze of guest RAM. See the crate documentation for its life.
pub struct Freeze {
    pub(crate) faults: Option<Arc<Faults>>,
    pub(crate) ram: GuestRam,
    pub(crate) options: FreezeOptions,
    pub(crate) blocks: Vec<Picture>,
    pub(crate) epoch: AtomicU8,
    pub(crate) buffer: Arc<PageBuffer>,
    pub(crate) source: Option<Arc<dyn Unarrived>>,
    pub(crate) pagemap: Pagemap,
    pub(crate) sizing: Sizing,
    /// Pages that a fault releases while arming.
    pub(crate) arming_pages: AtomicUsize,
    pub(crate) pace: Mutex<Pace>,
    /// The order of the scan, made at the first look, and how far it is.
    pub(crate) order: OnceLock<Vec<(usize, usize)>>,
    pub(crate) cursor: AtomicUsize,
    /// Pages of the picture that are neither saved nor known to be zero nor discarded.
    pub(crate) left: AtomicUsize,
    /// Pages of the picture.
    pub(crate) total: AtomicUsize,
    failed: Mutex<Option<FreezeError>>,
    ended: AtomicBool,
    /// Held (shared) while pages are given back in the arming epoch.
    pub(crate) discarding: RwLock<()>,
    stats: FreezeStats,
    pub(crate) hooks: Hooks,
    pub(crate) moments: Moments,
}

impl std::fmt::Debug for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Freeze(epoch {}, {:?})",
            self.epoch.load(Ordering::Relaxed),
            self.stats
        )
    }
}

impl Freeze {
    /// Prepares a freeze: makes its sets and its page buffer, registers all blocks that the guest
    /// can write, and answers protection faults from now on. Nothing is protected yet.
    ///
    /// Without `faults` nothing is ever protected: the picture of a guest that stands still. `hot`
    /// are the granules of 2 MiB, for each block, that the last freeze saw written.
    ///
    /// # Errors
    ///
    /// [`FreezeError::Unprotectable`], `Faults`, `Tables`, `Buffer`, `BufferTooSmall`: nothing is left
    /// registered then. `Busy`: another one was not ended yet, and goes on.
    pub fn new(
        faults: Option<Arc<Faults>>,
        ram: GuestRam,
        source: Option<Arc<dyn Unarrived>>,
        hot: &[PageSet],
        options: FreezeOptions,
    ) -> Result<Arc<Self>, FreezeError> {
        let chunk = options.chunk_pages.clamp(1, CHUNK);
        let blocks: Vec<Picture> = ram
            .blocks()
            .iter()
            .map(|block| Picture::new(block.clone(), &options))
            .collect::<Result<_, _>>()?;
        for (block, hot) in blocks.iter().zip(hot) {
            hot.runs(0..hot.pages().min(block.hot.pages()), |run| {
                block.hot.insert_range(run)
            });
        }
        let largest = blocks
            .iter()
            .map(|block| block.unit)
            .max()
            .unwrap_or(1)
            .max(chunk);
        // More than all of RAM and a chunk for the scan is never in use.
        let most = ram.pages().next_multiple_of(CHUNK) + CHUNK + 2 * largest.max(UNIT_PAGES);
        let most = most * page_size();
        let buffer = Arc::new(PageBuffer::new(options.buffer_bytes.min(most), largest)?);
        let pagemap = Pagemap::open(&options.host).map_err(|source| FreezeError::Presence {
            block: String::new(),
            source,
        })?;
        let freeze = Arc::new(Self {
            faults,
            ram,
            blocks,
            epoch: AtomicU8::new(ARMING),
            buffer,
            source,
            pagemap,
            sizing: Sizing::new(chunk),
            arming_pages: AtomicUsize::new(CHUNK),
            pace: Mutex::default(),
            order: OnceLock::new(),
            cursor: AtomicUsize::new(0),
            left: AtomicUsize::new(usize::MAX),
            total: AtomicUsize::new(0),
            failed: Mutex::new(None),
            ended: AtomicBool::new(false),
            discarding: RwLock::new(()),
            stats: FreezeStats::default(),
            hooks: options.sabotage.into(),
            moments: Moments::default(),
            options,
        });
        if let Some(faults) = &freeze.faults {
            let mut handlers = faults.barrier();
            if handlers.protected.is_some() {
                return Err(FreezeError::Busy);
            }
            handlers.protected = Some(freeze.clone());
        }
        if let Err(error) = freeze.attach() {
            freeze.end();
            return Err(error);
        }
        Ok(freeze)
    }

    fn attach(&self) -> Result<(), FreezeError> {
        let registered = self.register();
        // Afterwards: registering may unmap shared page tables.
        registered.and_then(|()| self.blocks.iter().try_for_each(map_rest))
    }

    fn register(&self) -> Result<(), FreezeError> {
        let Some(faults) = &self.faults else {
            return Ok(());
        };
        for (index, block) in self.blocks.iter().enumerate() {
            if !block.is_protected() {
                continue;
            }
            self.refuse_merging(block)?;
            if let Err(source) = faults.register(index, Use::WriteProtect) {
                if block.ram.can_be_protected() {
                    return Err(source.into());
                }
                tracing::debug!(%source, "not protectable");
                return Err(FreezeError::Unprotectable {
                    block: block.ram.id().to_owned(),
                    why: "it is a private mapping of a file on a disk",
                });
            }
            // Asked afterwards: from here on no pager can take its registration away.
            let placed = faults.is_registered(index, Use::Missing);
            block.placed.store(placed, Ordering::Release);
        }
        self.hooks
            .protect_placements(|| faults.protect_placements());
        Ok(())
    }

    /// The kernel merges a protected page with equal ones of others (KSM) and drops its protection
    /// without an event. What this process has mapped for guest RAM is kept out of that; of memory
    /// that somebody else made, it is his decision, and there is no freeze where he wants it.
    fn refuse_merging(&self, block: &Picture) -> Result<(), FreezeError> {
        let mapping = block.ram.mapping();
        let asked = mapping
            .keep_unmerged()
            .and_then(|()| mapping.is_mergeable());
        match asked {
            Ok(false) => Ok(()),
            Ok(true) => Err(FreezeError::Mergeable {
                block: block.ram.id().to_owned(),
            }),
            Err(source) => Err(FreezeError::Presence {
                block: block.ram.id().to_owned(),
                source,
            }),
        }
    }

    /// Step 4 of a pause: waits until no discard goes on, no event is in hand and no release under
    /// way. In this order: a discard waits for a reader to take its event.
    pub fn barrier(&self) -> Standstill<'_> {
        let discards = self
            .discarding
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Standstill {
            _readers: self.faults.as_ref().map(|faults| faults.barrier()),
            _discards: discards,
        }
    }

    /// Steps 5 and 6 of a pause: arms what was released or came since, and begins the frozen
    /// epoch. The guest must be at rest. Gives the barrier back, which lets the readers go on.
    ///
    /// # Errors
    ///
    /// Those of arming; the freeze must be ended then.
    pub fn hold(&self, barrier: Standstill<'_>) -> Result<(), FreezeError> {
        // The caller's barrier is what makes this list complete.
        self.hooks.last_look(|| self.arm_rest())?;
        if let Some(source) = &self.source {
            source.settle();
        }
        let mut total = 0;
        let mut left = 0;
        for block in &self.blocks {
            let pages = block.ram.pages();
            block.held.store(pages, Ordering::Release);
            total += pages;
            left += pages;
            self.ram
                .discards()
                .discarded(&block.ram, 0..pages, &mut |part| {
                    // A unit of which a part is discarded is protected, claimed and saved whole.
                    let part = block.units_within(&part);
                    left -= part.len();
                    block.claimed.insert_range(part.clone());
                    block.saved.insert_range(part);
                });
        }
        self.take_digests()?;
        self.total.store(total, Ordering::Release);
        self.left.store(left, Ordering::Release);
        // Not if it failed meanwhile: what is over stays over.
        let _ = self
            .epoch
            .compare_exchange(ARMING, FROZEN, Ordering::AcqRel, Ordering::Acquire);
        drop(barrier);
        Ok(())
    }

    /// The last look, in the pause. Public only for the version that is broken on purpose.
    #[doc(hidden)]
    pub fn arm_rest(&self) -> Result<(), FreezeError> {
        for (index, block) in self.blocks.iter().enumerate() {
            // The block may have grown since it was registered.
            if let Some(faults) = self.faults.as_ref().filter(|_| block.is_protected()) {
                faults.register(index, Use::WriteProtect)?;
            }
        }
        self.arm_again(false)
    }

    /// The RAM that it is of.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Numbers so far.
    pub fn stats(&self) -> &FreezeStats {
        &self.stats
    }

    /// Bytes of copies that waited at the same time, at most.
    pub fn peak_buffer_bytes(&self) -> usize {
        self.buffer.peak_bytes()
    }

    /// Whether a writer waits for room in the page buffer now: whoever makes room must not pace.
    pub fn is_waited_for(&self) -> bool {
        self.buffer.is_waited_for()
    }

    /// What writers have waited for room in the page buffer so far.
    pub fn buffer_waits(&self) -> Waits {
        self.buffer.waits()
    }

    /// Bytes that the sets occupy.
    pub fn set_bytes(&self) -> usize {
        self.blocks.iter().map(Picture::size_bytes).sum()
    }

    /// Pages of the picture, discarded ones included; known once it is held.
    pub fn total_pages(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }

    /// Pages of the picture that are not settled yet.
    pub fn left_pages(&self) -> usize {
        match self.left.load(Ordering::Acquire) {
            usize::MAX => 0,
            left => left,
        }
    }

    /// Granules that were seen written, for each block: where the next freeze begins its scan.
    pub fn written(&self) -> Vec<PageSet> {
        self.blocks
            .iter()
            .map(|block| PageSet::from_words(block.hot.pages(), &block.hot.to_words()))
            .collect()
    }

    /// Remembers the first failure and lets everybody go on unprotected.
    pub(crate) fn fail(&self, error: FreezeError) {
        let mut failed = self
            .failed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.get_or_insert(error);
        drop(failed);
        self.epoch.store(OVER, Ordering::Release);
        self.buffer.close();
    }

    /// The first failure, once.
    pub(crate) fn failure(&self) -> FreezeError {
        let mut failed = self
            .failed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.take().unwrap_or(FreezeError::Ended)
    }

    /// The caller cannot go on: nobody waits for room any more, and writers run on unprotected.
    /// [`Freeze::end`] must follow.
    pub fn abandon(&self) {
        self.fail(FreezeError::Ended);
    }

    /// The end, from any state: whoever waits is released, protection and registration are taken away
    /// in small steps. Safe to call at any moment, from any state, and again; the guest runs on
    /// meanwhile. What cannot be undone is traced: there is nobody to tell who could do more.
    pub fn end(&self) {
        self.epoch.store(OVER, Ordering::Release);
        self.buffer.close();
        // Once: by the second time another freeze may be on.
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(faults) = &self.faults else { return };
        // From here on a protected page is released by whoever reads its event.
        faults.barrier().protected = None;
        faults.free_placements();
        paguro_sys::boost_timer();
        // Whoever faults in a range that is being let go waits for this thread.
        let _raised = paguro_sys::Raised::begin();
        for (index, block) in self.blocks.iter().enumerate() {
            if !faults.is_registered(index, Use::WriteProtect) {
                continue;
            }
            if faults.is_registered(index, Use::Missing) {
                // A pager still fills it, and unregistering would drop both modes.
                self.release_all(index, block);
            }
            let rest = block.rest();
            let undone = faults.unregister(index, Use::WriteProtect, &rest, breathe);
            if let Err(error) = undone {
                tracing::error!(%error, "a part of guest RAM stays registered");
            }
            join(block);
        }
    }

    fn release_all(&self, index: usize, block: &Picture) {
        let Some(faults) = &self.faults else { return };
        let pages = block.ram.max_pages();
        for first in (0..pages).step_by(CHUNK) {
            if let Err(error) = faults.release(index, first..(first + CHUNK).min(pages)) {
                tracing::error!(%error, "a part of guest RAM stays protected");
            }
            breathe();
        }
    }

    /// Takes protection from pages that are safe, and wakes who waits. Whole granules are
    /// unregistered at once where nobody else needs the registration, and where RAM is not in too
    /// many pieces already: one walk over the page tables, and one loss of KVM's mappings, instead
    /// of two.
    pub(crate) fn let_go(&self, index: usize, pages: Range<usize>) -> Result<(), FreezeError> {
        let protected = self.blocks[index].is_protected();
        let Some(faults) = self.faults.as_ref().filter(|_| protected) else {
            return Ok(());
        };
        let whole = pages.start.is_multiple_of(CHUNK) && pages.len() == CHUNK;
        if whole && faults.unregister_part(index, Use::WriteProtect, pages.clone())? {
            self.blocks[index].gone.insert(pages.start / CHUNK);
            return Ok(());
        }
        Ok(faults.release(index, pages)?)
    }
}

/// Maps shared memory by huge pages again where arming has split the mapping. The page cache still
/// has the huge pages, so nothing is copied.
fn join(block: &Picture) {
    block.split.take(0..block.split.pages(), |run| {
        for granule in run {
            let bytes = block
                .ram
                .bytes_of(&(granule * CHUNK..(granule + 1) * CHUNK));
            let joined = block
                .ram
                .mapping()
                .advise(bytes.start, bytes.len(), Advice::Collapse);
            if let Err(error) = joined {
                tracing::debug!(%error, granule, "stays split");
            }
            breathe();
        }
    });
}

/// Lets vCPUs that wait for the address space have it.
pub(crate) fn breathe() {
    std::thread::sleep(Duration::from_micros(30));
}

/// How long something took.
pub(crate) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = what();
    (done, start.elapsed())
}

fn map_rest(block: &Picture) -> Result<(), FreezeError> {
    presence::map_rest(&block.ram).map_err(|source| FreezeError::Presence {
        block: block.ram.id().to_owned(),
        source,
    })
}
