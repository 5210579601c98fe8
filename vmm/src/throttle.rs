//! Slowing vCPUs down, for a migration that does not converge.
//!
//! As QEMU does it: a vCPU runs for 10 ms and then naps for as long as makes its percentage. A nap
//! ends at once when the machine is paused or ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

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
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of each vCPU, what is taken of its time.
    percents: Vec<u8>,
    /// Whether the thread is there.
    alive: bool,
}

impl Throttle {
    pub(crate) fn new(vcpus: Vec<Arc<dyn Hold>>) -> Self {
        Self {
            shared: Arc::default(),
            vcpus,
        }
    }

    /// Takes that share of each vCPU's time from now on. Never waits.
    pub(crate) fn set(&self, percent: impl Fn(usize) -> u8) {
        let percents = (0..self.vcpus.len()).map(|vcpu| percent(vcpu).min(MOST_PERCENT));
        let mut state = self.shared.state.lock();
        state.percents = percents.collect();
        self.shared.changed.notify_all();
        if state.is_idle() || state.alive {
            return;
        }
        let (shared, vcpus) = (self.shared.clone(), self.vcpus.clone());
        let spawned =
            paguro_sys::NewThread::named("throttle".to_owned()).spawn(move || shared.run(&vcpus));
        match spawned {
            Ok(_) => state.alive = true,
            Err(error) => tracing::warn!(%error, "vCPUs cannot be slowed down"),
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.set(|_| 0);
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.percents.iter().all(|percent| *percent == 0)
    }
}

impl Shared {
    fn run(&self, vcpus: &[Arc<dyn Hold>]) {
        // When each vCPU has run for its slice.
        let mut due = vec![Instant::now(); vcpus.len()];
        let mut state = self.state.lock();
        while !state.is_idle() {
            let now = Instant::now();
            let mut next = now + Duration::from_secs(1);
            for ((vcpu, percent), due) in vcpus.iter().zip(&state.percents).zip(&mut due) {
                if *percent == 0 {
                    continue;
                }
                if *due <= now {
                    let percent = u32::from(*percent);
                    let nap = SLICE * percent / (100 - percent);
                    vcpu.nap(nap);
                    *due = now + nap + SLICE;
                }
                next = next.min(*due);
            }
            self.changed.wait_until(&mut state, next);
        }
        state.alive = false;
    }
}
