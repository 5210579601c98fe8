//! The pause: the moment of which the picture is.
//!
//! Whoever pauses holds a [`Paused`] whose destructor lets the guest run on, so that a failure in here
//! frees it first, and the freeze and the way out are dropped by whoever prepared them. A guest that is
//! saved while it runs is let go as soon as all is frozen. One that is stopped for its snapshot is kept
//! by a [`Guest`]: it runs on when that is dropped, unless it was told to stay.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paguro_dirty::Freeze;
use paguro_sys::Raised;
use paguro_wire::device::DeviceSection;

use super::report::SnapshotReport;
use super::request::Request;
use crate::machine::Paused;
use crate::time::micros;
use crate::{Control, Memory, Sabotage, SnapshotError, Status};

/// What the pause brought.
pub(super) struct Moment<'m> {
    /// Standing still, if it is not saved in the background.
    pub(super) guest: Guest<'m>,
    /// Whether it ran before.
    pub(super) was_running: bool,
    /// Of each block, in bytes.
    pub(super) lengths: Vec<usize>,
    /// The state of vCPUs and devices.
    pub(super) devices: Vec<DeviceSection>,
}

/// A guest after the pause.
pub(super) struct Guest<'m>(Option<Box<dyn Paused + 'm>>);

impl Guest<'_> {
    /// Whether a guest that was stopped stays so.
    pub(super) fn hold(&mut self, stay: bool) {
        if let Some(paused) = &mut self.0 {
            paused.stay(stay);
        }
    }

    /// Of RAM that is not what it was nothing is to be loaded, and the guest is not to run in it.
    pub(super) fn check_ram(&mut self, memory: &Memory) -> Result<(), SnapshotError> {
        if memory.is_spoilt() {
            self.hold(true);
            return Err(SnapshotError::LostPages);
        }
        Ok(())
    }
}

/// Stops the guest, freezes RAM, and lets the guest go if it is saved in the background.
pub(super) fn pause<'m>(
    request: Request<'m>,
    freeze: &Freeze,
    report: &mut SnapshotReport,
) -> Result<Moment<'m>, SnapshotError> {
    let Request {
        machine,
        options,
        control,
    } = request;
    let memory = machine.memory();
    // All vCPUs wait for this thread now.
    let raised = Raised::begin();
    let (paused, devices) = stand_still(request, freeze, report)?;
    let saving_us = report.pause_stop_us + report.pause_devices_us;
    memory.was_saved(&devices, Duration::from_micros(saving_us));
    let was_running = paused.was_running();
    let lengths = memory.ram().blocks().iter();
    let lengths = lengths.map(|block| block.used_bytes()).collect();
    let guest = if options.background {
        drop(paused);
        Guest(None)
    } else {
        Guest(Some(paused))
    };
    drop(raised);
    let devices = match options.for_tests.sabotage {
        Sabotage::DevicesAfterFreeze => machine.pause()?.save_devices()?,
        _ => devices,
    };
    note(control, freeze, report);
    control.advance(Status::Active);
    Ok(Moment {
        guest,
        was_running,
        lengths,
        devices,
    })
}

/// The pause, steps 1 to 6; dropping what it returns is step 7.
fn stand_still<'m>(
    request: Request<'m>,
    freeze: &Freeze,
    report: &mut SnapshotReport,
) -> Result<(Box<dyn Paused + 'm>, Vec<DeviceSection>), SnapshotError> {
    let options = request.options;
    let start = Instant::now();
    if options.for_tests.sabotage == Sabotage::RearmBeforeBarrier {
        freeze.arm_rest().map_err(SnapshotError::Freeze)?;
    }
    // 1 and 2: vCPUs out of the guest, devices quiet.
    let mut paused = request.machine.pause()?;
    report.pause_stop_us = micros(start.elapsed());
    // 3: device state, and what collecting it writes to RAM.
    let devices = paused.save_devices()?;
    report.pause_devices_us = micros(start.elapsed()) - report.pause_stop_us;
    // 4 to 6: readers stand still, the last look, the frozen epoch.
    let barrier = freeze.barrier();
    freeze.hold(barrier).map_err(SnapshotError::Freeze)?;
    let sleep_us = options.for_tests.pause_sleep_us;
    if sleep_us > 0 {
        std::thread::sleep(Duration::from_micros(sleep_us));
    }
    report.pause_us = micros(start.elapsed());
    report.pause_freeze_us = report.pause_us - report.pause_stop_us - report.pause_devices_us;
    Ok((paused, devices))
}

fn note(control: &Control, freeze: &Freeze, report: &SnapshotReport) {
    let counters = &control.counters;
    counters
        .total_pages
        .store(freeze.total_pages() as u64, Ordering::Relaxed);
    counters.setup_us.store(report.setup_us, Ordering::Relaxed);
    counters.pause_us.store(report.pause_us, Ordering::Relaxed);
}
