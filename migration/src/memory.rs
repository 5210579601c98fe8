//! What outlives a single snapshot, restore or migration of one machine.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use paguro_dirty::tracker::DirtyRate;
use paguro_dirty::{Freeze, FreezeError, Sampling, SamplingError};
use paguro_faults::{Faults, FaultsError, Supply};
use paguro_ram::{GuestRam, PageSet};
use paguro_sys::Host;
use paguro_wire::device::DeviceSection;

use crate::cost::DeviceCost;

/// Threads that read faults. Two, so that a writer of one chunk need not wait for the copy of
/// another; more would take the cores that the vCPUs need.
const READERS: usize = 2;

/// The engine's side of a machine's RAM: the one userfaultfd, where pages come from that have not
/// arrived yet, and what the last snapshot saw written. It is of one RAM and one host, which nobody
/// else is told of, and lives as long as the machine ([`Board::memory`](crate::machine::Board::memory)).
/// Cheap to make; opens nothing before it is needed.
#[derive(Debug)]
pub struct Memory {
    host: Host,
    ram: GuestRam,
    /// Once they are open, with what was known of the host then.
    faults: Mutex<Option<(Host, Arc<Faults>)>>,
    filler: Mutex<Option<Arc<dyn Filling>>>,
    /// What watches a file that the RAM maps, and how long reads of it are tried again.
    watch: OnceLock<(Arc<dyn Origin>, Duration)>,
    written: Mutex<Vec<PageSet>>,
    freeze: Mutex<Weak<Freeze>>,
    /// What stopping and saving the machine cost, the fastest of all times.
    saving: Mutex<Option<DeviceCost>>,
    busy: AtomicBool,
}

impl Memory {
    /// For this RAM, of which there is no other one, on this host. A VMM that locks itself in (`chroot`,
    /// seccomp) calls [`Resources::open`](paguro_sys::Resources::open) before it does; all here then
    /// goes through what is open.
    pub fn new(host: Host, ram: GuestRam) -> Arc<Self> {
        Arc::new(Self {
            host,
            ram,
            faults: Mutex::default(),
            filler: Mutex::default(),
            watch: OnceLock::new(),
            written: Mutex::default(),
            freeze: Mutex::default(),
            saving: Mutex::default(),
            busy: AtomicBool::new(false),
        })
    }

    /// The machine was stopped and its devices were saved, which took so long.
    pub(crate) fn was_saved(&self, devices: &[DeviceSection], time: Duration) {
        let bytes = devices.iter().map(|section| section.body.len() as u64);
        let bytes = bytes.sum();
        let mut saving = lock(&self.saving);
        // A host that stood still meanwhile would keep the machine from ever being stopped again.
        let time = saving.map_or(time, |before| before.time.min(time));
        *saving = Some(DeviceCost { bytes, time });
    }

    /// What that cost, if it was ever done.
    pub(crate) fn last_saving(&self) -> Option<DeviceCost> {
        *lock(&self.saving)
    }

    /// What this host can do. Its kernel stays the same, but the right to use userfaultfd may come and
    /// go while a machine runs (a setting of the host, a process that gives up privileges), so it is
    /// asked for anew until there is one open; then that one counts, with what was known of the host
    /// when it was opened.
    pub fn host(&self) -> Host {
        match &*lock(&self.faults) {
            Some((host, faults)) => {
                let now = host.asked_again();
                now.with_right_to(faults.uffd().is_user_mode_only())
            }
            None => self.host.asked_again(),
        }
    }

    /// The RAM. Blocks may change their length, but none comes or goes.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Whether a snapshot or migration is under way.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// The owner of its userfaultfd, opened at the first call.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Open`]: this process has no right to one.
    pub fn faults(&self) -> Result<Arc<Faults>, FaultsError> {
        let mut faults = lock(&self.faults);
        if let Some((_, faults)) = &*faults {
            return Ok(faults.clone());
        }
        let host = self.host.asked_again();
        let opened = Faults::open(&host, self.ram.clone(), READERS)?;
        *faults = Some((host, opened.clone()));
        Ok(opened)
    }

    /// Says where pages come from that have not arrived.
    pub(crate) fn set_filler(&self, filler: Arc<dyn Filling>) {
        *lock(&self.filler) = Some(filler);
    }

    /// Says what watches the file that the RAM maps.
    pub(crate) fn set_watch(&self, watch: Arc<dyn Origin>, retry: Duration) {
        // Once: there is one mapping.
        let _ = self.watch.set((watch, retry));
    }

    /// How long a page of a file that the RAM maps is tried again, where it maps one.
    pub(crate) fn map_retry(&self) -> Duration {
        self.watch.get().map_or(Duration::ZERO, |(_, retry)| *retry)
    }

    /// Whether something in it is not what it should be, and never will be: pages could not be had, so
    /// that somebody was given zeros in their place, or the file that it maps was written to. To be asked
    /// after the last page was read, and before anybody may run or load what was read.
    pub(crate) fn is_spoilt(&self) -> bool {
        let filler = lock(&self.filler);
        let watch = self.watch.get();
        filler.as_ref().is_some_and(|filler| filler.has_failed())
            || watch.is_some_and(|(watch, _)| watch.has_failed())
    }

    /// Where those pages are; nowhere once all have arrived.
    pub(crate) fn supply(&self) -> Option<Arc<dyn Supply>> {
        let mut filler = lock(&self.filler);
        if filler.as_ref().is_some_and(|filler| filler.is_done()) {
            *filler = None;
        }
        filler.as_ref().map(|filler| filler.supply())
    }

    /// Estimates how fast its pages are written while `wait` waits. It may be called beside a snapshot
    /// or a migration, and blocks this thread only.
    ///
    /// # Errors
    ///
    /// [`SamplingError`].
    pub fn sample_writes(
        &self,
        sampling: &Sampling,
        wait: impl FnOnce(),
    ) -> Result<DirtyRate, SamplingError> {
        let supply = self.supply();
        sampling.measure(&self.ram, &self.host(), supply.as_deref(), wait)
    }

    pub(crate) fn take_written(&self) -> Vec<PageSet> {
        std::mem::take(&mut lock(&self.written))
    }

    pub(crate) fn set_written(&self, written: Vec<PageSet>) {
        *lock(&self.written) = written;
    }

    /// Gives pages of a block back by calling `give_back`. Whoever discards guest RAM does it
    /// through here, or through [`Memory::discard_at`] if he has addresses: a snapshot that is under way
    /// copies them first.
    ///
    /// # Errors
    ///
    /// What copying ran into; the pages were not given back then, and the snapshot has failed.
    pub fn discard<T>(
        &self,
        block: usize,
        pages: Range<usize>,
        give_back: impl FnOnce() -> T,
    ) -> Result<T, FreezeError> {
        // Not held while copying: a new freeze must not have to wait for an old one's buffer.
        let freeze = lock(&self.freeze).upgrade();
        match freeze {
            Some(freeze) => freeze.discard(block, pages, give_back),
            None => Ok(give_back()),
        }
    }

    pub(crate) fn set_freeze(&self, freeze: &Arc<Freeze>) {
        *lock(&self.freeze) = Arc::downgrade(freeze);
    }

    /// One at a time: the guard frees it.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let free = self
            .busy
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
        free.is_ok().then(|| Busy(self.clone()))
    }
}

/// Where RAM comes from, for as long as it may turn out to be other than it should. Asked from any
/// thread; never waits.
pub(crate) trait Origin: fmt::Debug + Send + Sync {
    /// Whether RAM is not what it should be, and never will be: a page could not be had, or what it is in
    /// was written to.
    fn has_failed(&self) -> bool;
}

/// One whose pages are still coming.
pub(crate) trait Filling: Origin {
    /// Where they are, and what has arrived.
    fn supply(&self) -> Arc<dyn Supply>;

    /// Whether all has arrived and nothing is registered for it any more.
    fn is_done(&self) -> bool;
}

/// While it lives no other snapshot begins.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Memory>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
