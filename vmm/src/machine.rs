//! The machine as the engine sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_migration::Memory;
use paguro_migration::machine::{
    Board, DeviceCost, Machine, MachineError, Paused, Recipient, Stay, Writer,
};
use paguro_wire::device::DeviceSection;

use crate::{Accel, MACHINE_NAME, StateError, Vm, VmError};

impl Board for Vm {
    fn memory(&self) -> &Arc<Memory> {
        Vm::memory(self)
    }

    fn machine_name(&self) -> &str {
        MACHINE_NAME
    }
}

impl Machine for Vm {
    fn writers(&self) -> Vec<Writer> {
        self.all_writers()
    }

    /// KVM takes faults in the kernel. Threads do not, and the device `x-dma` gets along where they
    /// are not served there.
    fn faults_in_kernel(&self) -> bool {
        self.config().accel == Accel::Kvm
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        Vm::tracker(self).map_err(|error| MachineError::new("track writes to its RAM", error))
    }

    fn throttle(&self, percent: u8) {
        self.slow_down(|_| percent);
    }

    fn throttle_each(&self, percents: &[u8]) {
        self.slow_down(|vcpu| percents.get(vcpu).copied().unwrap_or(0));
    }

    fn device_cost(&self) -> Option<DeviceCost> {
        let config = self.config();
        Some(self.costs().expect(config.accel, config.cpus))
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        let start = Instant::now();
        let was_running = self
            .control()
            .hold()
            .map_err(|error| MachineError::new("come to rest", error))?;
        Ok(Box::new(Pause {
            vm: self,
            was_running,
            stopped_in: start.elapsed(),
            stay: None,
            is_over: false,
        }))
    }
}

impl Recipient for Vm {
    fn load(&self, devices: &[DeviceSection]) -> Result<(), MachineError> {
        let start = Instant::now();
        self.load_devices(devices)
            .map_err(|error| MachineError::new("load its devices", error))?;
        self.costs().loaded(start.elapsed());
        Ok(())
    }

    fn start(&self) -> Result<(), MachineError> {
        self.cont().map_err(|error| MachineError::new("run", error))
    }
}

/// A held pause.
struct Pause<'a> {
    vm: &'a Vm,
    was_running: bool,
    stopped_in: Duration,
    stay: Option<Stay>,
    is_over: bool,
}

impl Paused for Pause<'_> {
    fn was_running(&self) -> bool {
        self.was_running
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        // It may fail while it rests, for what somebody learns of its RAM.
        let start = Instant::now();
        let failed = self.vm.failure().map(StateError::Failed).map(VmError::from);
        let sections = failed
            .map_or_else(|| self.vm.save(), Err)
            .map_err(|error| MachineError::new("save its devices", error))?;
        let took = self.stopped_in + start.elapsed();
        self.vm.costs().saved(&sections, took);
        Ok(sections)
    }

    fn resume(mut self: Box<Self>) -> Result<(), MachineError> {
        self.is_over = true;
        let resumed = self.vm.control().release(None);
        resumed.map_err(|error| MachineError::new("run on", error))
    }

    fn stay(&mut self, why: Stay) {
        self.stay = Some(why);
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Err(error) = self.vm.control().release(self.stay) {
            tracing::warn!(%error, "a machine does not run on after a pause");
        }
    }
}
