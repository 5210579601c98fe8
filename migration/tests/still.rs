//! What machines that only stand for one have in common.

use std::sync::Arc;
use std::time::Duration;

use paguro_migration::Memory;
use paguro_migration::machine::{Board, MachineError, Recipient};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_wire::device::DeviceSection;

/// One block of so many bytes.
pub fn memory(bytes: usize, backing: Backing) -> Arc<Memory> {
    let block = RamBlock::new(BlockConfig {
        id: "ram".into(),
        guest_address: 0,
        bytes,
        backing,
        pages: PageKind::Small,
    });
    let host = Host::probe(&Fallbacks::default());
    Memory::new(host, GuestRam::new(vec![block.unwrap()]))
}

/// A machine that comes in, and whose devices take so long to load.
pub struct Arriving {
    pub memory: Arc<Memory>,
    pub name: &'static str,
    pub loading: Duration,
    /// A section that must be among its devices, full of its own name.
    pub device: Option<&'static str>,
}

impl Board for Arriving {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        self.name
    }
}

impl Recipient for Arriving {
    fn load(&self, devices: &[DeviceSection]) -> Result<(), MachineError> {
        // A machine that is slow to load is what is tested.
        std::thread::sleep(self.loading);
        let Some(name) = self.device else {
            return Ok(());
        };
        match devices.iter().find(|device| device.name == name) {
            Some(device) if device.body == name.as_bytes() => Ok(()),
            _ => Err(MachineError::new("load its devices", "they are others")),
        }
    }

    fn start(&self) -> Result<(), MachineError> {
        Ok(())
    }
}
