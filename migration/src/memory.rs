//! What outlives a single snapshot or restore of one machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use paguro_dirty::Unarrived;
use paguro_faults::{Faults, FaultsError};
use paguro_ram::{GuestRam, PageSet};
use paguro_sys::Host;

/// Threads that read faults. Two, so that a writer of one chunk need not wait for the copy of
/// another; more would take the cores that the vCPUs need.
const READERS: usize = 2;

/// The engine's side of a machine's RAM: the one userfaultfd, where pages come from that have not
/// arrived yet, and what the last snapshot saw written. Cheap to make; opens nothing before it is
/// needed.
#[derive(Debug)]
pub struct Memory {
    host: Host,
    ram: GuestRam,
    faults: Mutex<Option<Arc<Faults>>>,
    unarrived: Mutex<Option<Arc<dyn Unarrived>>>,
    written: Mutex<Vec<PageSet>>,
    busy: AtomicBool,
}

impl Memory {
    /// For this RAM, on this host.
    pub fn new(host: Host, ram: GuestRam) -> Arc<Self> {
        Arc::new(Self {
            host,
            ram,
            faults: Mutex::default(),
            unarrived: Mutex::default(),
            written: Mutex::default(),
            busy: AtomicBool::new(false),
        })
    }

    /// What this host can do.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The RAM.
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
        if let Some(faults) = &*faults {
            return Ok(faults.clone());
        }
        let opened = Faults::open(&self.host, self.ram.clone(), READERS)?;
        Ok(faults.insert(opened).clone())
    }

    /// Says where pages come from that have not arrived.
    pub(crate) fn set_unarrived(&self, source: Option<Arc<dyn Unarrived>>) {
        *lock(&self.unarrived) = source;
    }

    pub(crate) fn unarrived(&self) -> Option<Arc<dyn Unarrived>> {
        lock(&self.unarrived).clone()
    }

    pub(crate) fn take_written(&self) -> Vec<PageSet> {
        std::mem::take(&mut lock(&self.written))
    }

    pub(crate) fn set_written(&self, written: Vec<PageSet>) {
        *lock(&self.written) = written;
    }

    /// One at a time: the guard frees it.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let free = self
            .busy
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
        free.is_ok().then(|| Busy(self.clone()))
    }
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
