//! What is to be sent and what was, whatever connection it goes by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_ram::GuestRam;
use paguro_wire::device::DeviceSection;
use paguro_wire::stream::ram::BlockTable;

use super::forecast::{Labour, device_cost};
use super::hooks::Hooks;
use super::outstanding::Outstanding;
use super::tally::Tally;
use super::throttle::Brake;
use super::{MigrateError, MigrateOptions, Migration};
use crate::Memory;
use crate::machine::{DeviceCost, Machine};
use crate::stream::table_of;

/// A machine, and how it is to leave.
#[derive(Clone, Copy)]
pub(super) struct Job<'e> {
    pub(super) machine: &'e dyn Machine,
    pub(super) memory: &'e Arc<Memory>,
    pub(super) options: &'e MigrateOptions,
    pub(super) migration: &'e Migration,
    pub(super) hooks: Hooks,
    pub(super) began: Instant,
}

impl<'e> Job<'e> {
    pub(super) fn new(
        machine: &'e dyn Machine,
        options: &'e MigrateOptions,
        migration: &'e Migration,
    ) -> Self {
        Self {
            machine,
            memory: machine.memory(),
            options,
            migration,
            hooks: Hooks::new(options.sabotage),
            began: Instant::now(),
        }
    }

    /// How long the destination may be silent; none: for ever.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.options.channel.silence
    }
}

/// It belongs to the machine and its migration. The sender of a connection works with it for as long as
/// that lasts; the next one would go on where it ended. Dropping it ends tracking.
pub(super) struct Transfer {
    pub(super) ram: GuestRam,
    /// Its blocks as the other side is told of them.
    pub(super) table: Arc<BlockTable>,
    pub(super) pages: Outstanding,
    pub(super) tracker: Arc<dyn Tracker>,
    is_tracked: bool,
    /// What slows the guest down.
    pub(super) brake: Brake,
    /// What sending was, so far.
    pub(super) labour: Labour,
    pub(super) tally: Tally,
    /// What device state is expected to cost.
    pub(super) device_cost: DeviceCost,
    pub(super) devices: Vec<DeviceSection>,
    /// The guest was stopped, and what is left is sent.
    pub(super) is_stopped: bool,
}

impl Transfer {
    /// Everything is still to be sent.
    ///
    /// # Errors
    ///
    /// The machine's, if it has no tracker, or RAM that no stream can have; the host's.
    pub(super) fn new(job: Job<'_>) -> Result<Self, MigrateError> {
        let ram = job.memory.ram().clone();
        let table = table_of(&ram)?;
        let (whose, tracker) = job.options.mode.sends(job.machine)?;
        let pages = Outstanding::all(whose, job.memory.supply(), &job.memory.host());
        let pages = pages.map_err(MigrateError::Pages)?;
        Ok(Self {
            ram,
            table,
            pages,
            tracker,
            is_tracked: false,
            brake: Brake::new(&job.options.convergence),
            labour: Labour::default(),
            tally: Tally::default(),
            device_cost: device_cost(job.machine.device_cost(), job.memory.last_saving()),
            devices: Vec::new(),
            is_stopped: false,
        })
    }

    /// From here on every page that is written is reported, over whatever connection it is then sent.
    ///
    /// # Errors
    ///
    /// The tracker's.
    pub(super) fn track(&mut self) -> Result<(), MigrateError> {
        if !self.is_tracked {
            self.tracker.start().map_err(MigrateError::Tracker)?;
            self.is_tracked = true;
        }
        Ok(())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.is_tracked {
            self.tracker.stop();
        }
    }
}
