//! The pause: the moment of which the picture is.
//!
//! Whoever pauses holds a [`Paused`]. What fails in here lets the guest run on first; then the freeze and
//! the way out are dropped by whoever prepared them. A guest that is saved while it runs is let go as soon
//! as all is frozen. One that is stopped for its snapshot is kept by a [`Guest`], which is told in the end
//! whether it stays.
//!
//! **A guest that does not run on** although it should is the machine's failure, and no reason to throw
//! the picture away: it is right, and what is in it may be all that is left of the guest. So a snapshot
//! is completed as if the guest ran (what is frozen is written by nobody, and comes out sooner), and its
//! report says that the guest stands still. Where the snapshot fails, too, its error says both.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paguro_dirty::Freeze;
use paguro_sys::Raised;
use paguro_wire::device::DeviceSection;

use super::report::SnapshotReport;
use super::request::Request;
use crate::error::with_causes;
use crate::machine::{MachineError, Paused, Stay};
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
pub(super) struct Guest<'m> {
    /// Stopped for its snapshot.
    paused: Option<Box<dyn Paused + 'm>>,
    /// Whether it stays so.
    stays: bool,
    /// Why it does not run on although it should.
    stuck: Option<MachineError>,
}

impl<'m> Guest<'m> {
    /// One that stands still.
    fn standing(paused: Box<dyn Paused + 'm>) -> Self {
        Self {
            paused: Some(paused),
            stays: false,
            stuck: None,
        }
    }

    /// Whoever lets go of it, it stays stopped.
    pub(super) fn hold(&mut self, why: Stay) {
        if let Some(paused) = &mut self.paused {
            paused.stay(why);
            self.stays = true;
        }
    }

    /// It is to run on after all, when it is let go.
    pub(super) fn free(&mut self) {
        self.stays = false;
    }

    /// Of RAM that is not what it was nothing is to be loaded, and the guest is not to run in it.
    pub(super) fn check_ram(&mut self, memory: &Memory) -> Result<(), SnapshotError> {
        if memory.is_spoilt() {
            self.hold(Stay::Spoilt);
            return Err(SnapshotError::LostPages);
        }
        Ok(())
    }

    /// Whether it ran before.
    fn was_running(&self) -> bool {
        self.paused.as_ref().is_some_and(|it| it.was_running())
    }

    /// Lets it run on, unless it stays.
    pub(super) fn let_go(&mut self) {
        if let Some(paused) = self.paused.take_if(|_| !self.stays) {
            self.stuck = paused.resume().err();
        }
    }

    /// Why it stands still although it should run.
    pub(super) fn stuck(&self) -> Option<&MachineError> {
        self.stuck.as_ref()
    }

    /// Of a snapshot that failed: lets it run on, and says if that failed, too.
    pub(super) fn let_go_after(mut self, failed: SnapshotError) -> SnapshotError {
        self.let_go();
        match self.stuck {
            Some(source) => SnapshotError::NotResumed {
                failed: Box::new(failed),
                source,
            },
            None => failed,
        }
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
    let (mut guest, devices) = stand_still(request, freeze, report)?;
    let saving_us = report.pause_stop_us + report.pause_devices_us;
    memory.was_saved(&devices, Duration::from_micros(saving_us));
    let was_running = guest.was_running();
    let lengths = memory.ram().blocks().iter();
    let lengths = lengths.map(|block| block.used_bytes()).collect();
    if options.background {
        guest.let_go();
    }
    drop(raised);
    if let Some(error) = guest.stuck() {
        let why = with_causes(error);
        tracing::error!(why, "the guest does not run on; its snapshot is completed");
        report.not_resumed = Some(why);
    }
    let devices = match options.for_tests.sabotage {
        Sabotage::DevicesAfterFreeze => save_again(request)?,
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

/// The pause, steps 1 to 6; step 7 is letting go of the guest. If one fails it runs on.
fn stand_still<'m>(
    request: Request<'m>,
    freeze: &Freeze,
    report: &mut SnapshotReport,
) -> Result<(Guest<'m>, Vec<DeviceSection>), SnapshotError> {
    let start = Instant::now();
    if request.options.for_tests.sabotage == Sabotage::RearmBeforeBarrier {
        freeze.arm_rest().map_err(SnapshotError::Freeze)?;
    }
    // 1 and 2: vCPUs out of the guest, devices quiet.
    let mut paused = request.machine.pause()?;
    report.pause_stop_us = micros(start.elapsed());
    let taken = take_picture(request, &mut *paused, freeze, start, report);
    let guest = Guest::standing(paused);
    match taken {
        Ok(devices) => Ok((guest, devices)),
        Err(failed) => Err(guest.let_go_after(failed)),
    }
}

/// Steps 3 to 6, of a pause that began at `start`.
fn take_picture(
    request: Request<'_>,
    paused: &mut dyn Paused,
    freeze: &Freeze,
    start: Instant,
    report: &mut SnapshotReport,
) -> Result<Vec<DeviceSection>, SnapshotError> {
    // 3: device state, and what collecting it writes to RAM.
    let devices = paused.save_devices()?;
    report.pause_devices_us = micros(start.elapsed()) - report.pause_stop_us;
    // 4 to 6: readers stand still, the last look, the frozen epoch.
    let barrier = freeze.barrier();
    freeze.hold(barrier).map_err(SnapshotError::Freeze)?;
    let sleep_us = request.options.for_tests.pause_sleep_us;
    if sleep_us > 0 {
        std::thread::sleep(Duration::from_micros(sleep_us));
    }
    report.pause_us = micros(start.elapsed());
    report.pause_freeze_us = report.pause_us - report.pause_stop_us - report.pause_devices_us;
    Ok(devices)
}

/// Devices of another moment than RAM is of: broken on purpose.
fn save_again(request: Request<'_>) -> Result<Vec<DeviceSection>, SnapshotError> {
    let mut paused = request.machine.pause()?;
    let devices = paused.save_devices()?;
    paused.resume()?;
    Ok(devices)
}

fn note(control: &Control, freeze: &Freeze, report: &SnapshotReport) {
    let counters = &control.counters;
    counters
        .total_pages
        .store(freeze.total_pages() as u64, Ordering::Relaxed);
    counters.setup_us.store(report.setup_us, Ordering::Relaxed);
    counters.pause_us.store(report.pause_us, Ordering::Relaxed);
}
