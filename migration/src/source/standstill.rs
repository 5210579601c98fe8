//! A guest that stands still at the source, from the order to stop it.

use std::time::{Duration, Instant};

use paguro_wire::device::DeviceSection;
use paguro_wire::globalstate;

use super::MigrateError;
use super::transfer::Job;
use crate::machine::{MachineError, Paused, Stay};

/// Nothing before it is stopped.
#[derive(Default)]
pub(super) struct Standstill<'e> {
    paused: Option<Box<dyn Paused + 'e>>,
    since: Option<Instant>,
    /// How long it took to stop it.
    stopped_in: Duration,
}

impl<'e> Standstill<'e> {
    /// Stops it.
    ///
    /// # Errors
    ///
    /// The machine's; it runs on.
    pub(super) fn begin(&mut self, job: Job<'e>) -> Result<(), MigrateError> {
        let start = Instant::now();
        self.since = Some(start);
        self.paused = Some(job.machine.pause().map_err(MigrateError::Machine)?);
        self.stopped_in = start.elapsed();
        Ok(())
    }

    /// How long it has stood still, if it was ever stopped.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }

    /// The state of vCPUs and devices, and whether it ran; nothing if it does not stand still.
    ///
    /// # Errors
    ///
    /// The machine's.
    pub(super) fn collect(
        &mut self,
        job: Job<'_>,
    ) -> Result<Option<Vec<DeviceSection>>, MigrateError> {
        let Some(paused) = &mut self.paused else {
            return Ok(None);
        };
        let start = Instant::now();
        let sections = sections(&mut **paused).map_err(MigrateError::Machine)?;
        let took = self.stopped_in + start.elapsed();
        job.memory.was_saved(&sections, took);
        Ok(Some(sections))
    }

    /// It stays so, whoever lets go of it, for this reason.
    pub(super) fn hold(&mut self, why: Stay) {
        if let Some(paused) = &mut self.paused {
            paused.stay(why);
        }
    }

    /// It is let go of, and stays so for this reason.
    pub(super) fn leave(&mut self, why: Stay) {
        self.hold(why);
        self.paused = None;
    }

    /// It runs on, if it stands still.
    ///
    /// # Errors
    ///
    /// The machine's; it stays where it is.
    pub(super) fn end(&mut self) -> Result<(), MachineError> {
        match self.paused.take() {
            Some(paused) => paused.resume(),
            None => Ok(()),
        }
    }
}

fn sections(paused: &mut dyn Paused) -> Result<Vec<DeviceSection>, MachineError> {
    let state = if paused.was_running() {
        globalstate::RUNNING
    } else {
        globalstate::PAUSED
    };
    let first = globalstate::section(state)
        .map_err(|error| MachineError::new("say whether it runs", error))?;
    let mut sections = vec![first];
    sections.extend(paused.save_devices()?);
    Ok(sections)
}
