//! The thread that sends: RAM while the guest runs, then what is left of it, devices, EOF.

mod backlog;
mod end;
mod outlook;
mod pages;
mod passes;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Tracker;
use paguro_ram::GuestRam;
use paguro_wire::device::DeviceSection;

use super::delta::Deltas;
use super::forecast::Labour;
use super::lanes::{Batch, Lanes};
use super::options::MigrateOptions;
use super::outstanding::Outstanding;
use super::tally::Tally;
use super::throttle::Brake;
use super::{MigrateError, Migration};
use crate::Memory;
use crate::machine::{DeviceCost, Machine};
use crate::progress::Progress;
use crate::stream::{Packing, Stream};
use crate::switchover::outcome::PING_OPEN;
use crate::switchover::{SourceEvent, Unexpected};
use crate::time::micros;

pub(super) use pages::Measured;

/// Waits are looked into that often.
const LOOK: Duration = Duration::from_millis(20);

/// What the control side has it do.
pub(super) enum Command {
    /// The guest is stopped: send what is left, and these.
    Rest(Vec<DeviceSection>),
    /// Send PING with this value.
    Ping(u32),
    /// Send the permission to run.
    Eof,
    /// Tell the destination to forget it.
    Forget,
    /// End the channel as a whole one.
    Finish,
}

/// Why the thread ends before it is told to.
pub(super) enum Stopped {
    /// It was told to, or the channel is being closed.
    Told,
    /// It failed.
    Failed(MigrateError),
}

impl From<MigrateError> for Stopped {
    fn from(error: MigrateError) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Sender<'a> {
    pub(super) machine: &'a dyn Machine,
    pub(super) memory: &'a Memory,
    pub(super) migration: &'a Migration,
    pub(super) options: &'a MigrateOptions,
    pub(super) ram: GuestRam,
    pub(super) stream: Stream,
    pub(super) pages: Outstanding,
    pub(super) tracker: Arc<dyn Tracker>,
    pub(super) commands: Receiver<Command>,
    /// Whether there is a return path.
    pub(super) returns: bool,
    pub(super) began: Instant,
    pub(super) devices: Vec<DeviceSection>,
    /// The guest was stopped, and what is left is sent.
    pub(super) is_stopped: bool,
    /// What slows the guest down.
    pub(super) brake: Brake,
    /// The cache of XBZRLE.
    pub(super) deltas: Option<Deltas>,
    /// The multifd channels, and what goes to them next.
    pub(super) lanes: Option<Lanes>,
    pub(super) batch: Box<Batch>,
    /// What sending was, so far.
    pub(super) labour: Labour,
    pub(super) tally: Tally,
    /// What the lanes had done when they were looked at last, and what compression saves there.
    pub(super) measured: Measured,
    pub(super) packing: Packing,
    /// What device state is expected to cost.
    pub(super) device_cost: DeviceCost,
    /// Bytes before the last PING, and the time that was spent in writing up to then, or up to the last
    /// sync of a file.
    pub(super) asked_to: u64,
    pub(super) asked_spent: Duration,
    /// Every channel writes SYNC, and the mark on the main channel is due.
    pub(super) multifd_sync: bool,
}

/// Slows the vCPUs down, and lets them go on every path.
struct Slowed<'a>(&'a dyn Machine);

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        self.0.throttle(0);
    }
}

/// Tracking ends on every path.
struct Tracked(Arc<dyn Tracker>);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Sender<'_> {
    /// All of it, up to the command to finish.
    pub(super) fn run(mut self) -> Result<(), Stopped> {
        let pings = match self.returns {
            true => [&[PING_OPEN], &self.migration.id().pings()[..]].concat(),
            false => Vec::new(),
        };
        self.ask_multifd_sync(false);
        if self.returns {
            let digestion = &mut self.migration.lock().digestion;
            digestion.ask(0, Instant::now(), Duration::ZERO);
        }
        self.stream
            .begin(&pings, std::mem::take(&mut self.multifd_sync))?;
        let start = Instant::now();
        let _tracked = Tracked(self.tracker.clone());
        self.tracker.start().map_err(MigrateError::Tracker)?;
        // What was written before is sent with all the rest.
        self.sync()?;
        let progress = self.migration.progress();
        Progress::set(&progress.track_us, micros(start.elapsed()));
        Progress::set(&progress.setup_us, micros(self.began.elapsed()));
        self.hand_over(SourceEvent::Ready)?;
        let slowed = Slowed(self.machine);
        self.precopy()?;
        self.hand_over(SourceEvent::Converged)?;
        self.obey(slowed)
    }

    /// An event that is too late means that the channel is about to be closed.
    fn hand_over(&self, event: SourceEvent) -> Result<(), Stopped> {
        match self.migration.on(event) {
            Ok(()) => Ok(()),
            Err(Unexpected::Late(_) | Unexpected::NotNow(_)) => Err(Stopped::Told),
        }
    }

    /// Whoever reads a page that cannot be had may have been given zeros for it, and they were sent. From
    /// the last page on nothing goes out before this is known: what is there may be run.
    fn check_ram(&self) -> Result<(), MigrateError> {
        match self.memory.is_spoilt() {
            true => Err(MigrateError::LostPages),
            false => Ok(()),
        }
    }

    fn is_told_to_stop(&self) -> bool {
        is_told_to_stop(&self.commands)
    }

    /// A pass is over: what was written meanwhile, in pages.
    fn sync(&mut self) -> Result<usize, MigrateError> {
        self.tally.syncs += 1;
        Progress::set(&self.migration.progress().dirty_syncs, self.tally.syncs);
        self.migration.begin_pass(self.tally.syncs);
        self.collect()
    }

    /// The same once more, before another pass.
    fn collect(&mut self) -> Result<usize, MigrateError> {
        let start = Instant::now();
        let new = self
            .pages
            .sync(&*self.tracker)
            .map_err(MigrateError::Tracker)?;
        self.tally.sync = start.elapsed();
        self.publish();
        Ok(new)
    }

    /// Bytes written to all channels.
    fn written_bytes(&self) -> u64 {
        let lanes = self.lanes.as_ref().map_or(0, |it| it.counts().bytes());
        self.stream.written_bytes() + lanes
    }

    fn publish(&self) {
        let progress = self.migration.progress();
        let written = self.written_bytes();
        Progress::set(&progress.remaining_bytes, self.pages.bytes());
        Progress::set(&progress.transferred_bytes, written);
        if !self.is_stopped {
            Progress::set(&progress.precopy_bytes, written);
        }
        let lanes = self.lanes.as_ref().map(Lanes::counts);
        self.tally.mirror(lanes, progress);
    }
}

fn is_told_to_stop(commands: &Receiver<Command>) -> bool {
    // Nothing is commanded before the guest is stopped.
    matches!(commands.try_recv(), Err(TryRecvError::Disconnected))
}

/// A tracker that hears nothing: where there is nothing to hear, or something is broken on purpose.
pub(super) struct Nothing;

impl Tracker for Nothing {
    fn start(&self) -> Result<(), paguro_dirty::tracker::TrackerError> {
        Ok(())
    }

    fn sync(
        &self,
        _: &[paguro_ram::PageSet],
    ) -> Result<usize, paguro_dirty::tracker::TrackerError> {
        Ok(0)
    }

    fn clear(
        &self,
        _: usize,
        _: std::ops::Range<usize>,
    ) -> Result<(), paguro_dirty::tracker::TrackerError> {
        Ok(())
    }

    fn stop(&self) {}
}
