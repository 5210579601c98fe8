//! What stopping, saving and loading a machine costs.
//!
//! Most of it is KVM's, by vCPU, and one after the other. Until it was done here it is assumed, by what
//! it is on a host of today; what was measured counts from then on. A machine that came from elsewhere
//! knows how long loading took, and takes it to be as long where it goes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use paguro_migration::machine::DeviceCost;
use paguro_wire::device::DeviceSection;

use crate::Accel;

/// Whatever the machine is, for saving and for loading it.
const MACHINE: Duration = Duration::from_millis(1);
/// For each vCPU of KVM.
const SAVE: Duration = Duration::from_micros(350);
const LOAD: Duration = Duration::from_micros(550);
const KVM_BYTES: u64 = 16 << 10;
/// For each thread that stands for one.
const THREAD: Duration = Duration::from_micros(20);
const THREAD_BYTES: u64 = 1 << 10;

/// What it was; 0 where it was never done.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    saving_us: AtomicU64,
    loading_us: AtomicU64,
    bytes: AtomicU64,
}

impl Costs {
    /// It was stopped and saved in so long. The fastest counts: a host that stood still meanwhile would
    /// keep the machine from ever being stopped again.
    pub(crate) fn saved(&self, sections: &[DeviceSection], took: Duration) {
        let bytes = sections.iter().map(|section| section.body.len() as u64);
        self.bytes.store(bytes.sum(), Relaxed);
        keep_least(&self.saving_us, took);
    }

    /// It was loaded in so long.
    pub(crate) fn loaded(&self, took: Duration) {
        keep_least(&self.loading_us, took);
    }

    /// What it will cost to move a machine of so many vCPUs.
    pub(crate) fn expect(&self, accel: Accel, cpus: u32) -> DeviceCost {
        let (save, load, bytes) = match accel {
            Accel::Kvm => (SAVE, LOAD, KVM_BYTES),
            Accel::Threads => (THREAD, THREAD, THREAD_BYTES),
        };
        let measured = |us: &AtomicU64| match us.load(Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        };
        let saving = measured(&self.saving_us).unwrap_or(MACHINE + save * cpus);
        let loading = measured(&self.loading_us).unwrap_or(MACHINE + load * cpus);
        let bytes = match self.bytes.load(Relaxed) {
            0 => bytes * u64::from(cpus),
            bytes => bytes,
        };
        DeviceCost {
            bytes,
            // While the other side loads this one describes what it saved, which is about as long as
            // saving it.
            time: saving + loading.max(saving),
        }
    }
}

fn keep_least(us: &AtomicU64, took: Duration) {
    let took = (took.as_micros() as u64).max(1);
    let before = us.load(Relaxed);
    if before == 0 || took < before {
        us.store(took, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_counts_and_its_best() {
        let costs = Costs::default();
        let ms = Duration::from_millis;
        let assumed = costs.expect(Accel::Kvm, 64);
        assert!((ms(40)..ms(80)).contains(&assumed.time), "{assumed:?}");
        assert!(costs.expect(Accel::Kvm, 1).time < ms(4));
        costs.loaded(ms(10));
        costs.loaded(ms(500));
        costs.saved(&[], ms(30));
        costs.saved(&[], ms(20));
        assert_eq!(costs.expect(Accel::Kvm, 64).time, ms(40));
        let costs = Costs::default();
        costs.loaded(ms(90));
        costs.saved(&[], ms(20));
        assert_eq!(costs.expect(Accel::Kvm, 64).time, ms(110));
    }
}
