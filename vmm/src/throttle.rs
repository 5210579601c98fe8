//! Slowing vCPUs down, for a migration that does not converge.
//!
//! As QEMU does it: each vCPU runs for 10 ms and then naps for as long as makes the percentage. A
//! nap ends at once when the machine is paused or ends.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::control::Hold;

/// How long a vCPU runs between two naps.
const SLICE: Duration = Duration::from_millis(10);
/// More would be a stop.
const MOST_PERCENT: u8 = 99;

/// What slows the vCPUs of one machine down.
pub(crate) struct Throttle {
    shared: Arc<Shared>,
    vcpus: Vec<Arc<dyn Hold>>,
}

#[derive(Default)]
struct Shared {
    percent: AtomicU8,
    /// Whether its thread is there.
    alive: Mutex<bool>,
    changed: Condvar,
}

impl Throttle {
    pub(crate) fn new(vcpus: Vec<Arc<dyn Hold>>) -> Self {
        Self {
            shared: Arc::default(),
            vcpus,
        }
    }

    /// Takes that share of the vCPUs' time from now on. Never waits.
    pub(crate) fn set(&self, percent: u8) {
        let percent = percent.min(MOST_PERCENT);
        let mut alive = self.shared.lock();
        self.shared.percent.store(percent, Ordering::Release);
        self.shared.changed.notify_all();
        if percent == 0 || *alive {
            return;
        }
        let (shared, vcpus) = (self.shared.clone(), self.vcpus.clone());
        let spawned = std::thread::Builder::new()
            .name("throttle".to_owned())
            .spawn(move || shared.run(&vcpus));
        match spawned {
            Ok(_) => *alive = true,
            Err(error) => tracing::warn!(%error, "vCPUs cannot be slowed down"),
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Shared {
    fn run(&self, vcpus: &[Arc<dyn Hold>]) {
        let mut alive = self.lock();
        loop {
            let percent = u32::from(self.percent.load(Ordering::Acquire));
            if percent == 0 {
                *alive = false;
                return;
            }
            let nap = SLICE * percent / (100 - percent);
            vcpus.iter().for_each(|vcpu| vcpu.nap(nap));
            let (now, _) = self
                .changed
                .wait_timeout(alive, SLICE + nap)
                .unwrap_or_else(PoisonError::into_inner);
            alive = now;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
