//! Machines of which saving and loading takes long, and what is expected of that. Nobody runs in them,
//! but something is always written.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use paguro_dirty::tracker::{MarkTracker, Marks, Tracker, TrackerError};
use paguro_migration::Memory;
use paguro_migration::channel::{self, Address, Incoming, Stop};
use paguro_migration::destination::{Arrival, ReceiveOptions, receive};
use paguro_migration::machine::{Board, DeviceCost, Machine, MachineError, Paused, Stay, Writer};
use paguro_migration::source::{MigrateError, MigrateOptions, MigrateReport, Migration, migrate};
use paguro_ram::{Backing, PageSet};
use paguro_testkit::{ends, run};
use paguro_wire::device::{DeviceSection, SectionWriter};

use crate::still::{Arriving, memory};

/// Saving and loading take as long.
const SAVING: Duration = Duration::from_millis(300);
/// More than both of them, and less.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(500);

const BYTES: usize = 4 << 20;

struct Slow {
    memory: Arc<Memory>,
    marks: Marks,
    says: Option<DeviceCost>,
    pauses: AtomicUsize,
}

impl Slow {
    fn new(says: Option<DeviceCost>) -> Arc<Self> {
        let memory = memory(BYTES, Backing::Anonymous);
        for page in 0..100 {
            let mapping = memory.ram().blocks()[0].mapping();
            mapping.copy_in(page * 4096, &[1; 4096]);
        }
        Arc::new(Self {
            memory,
            marks: Marks::default(),
            says,
            pauses: AtomicUsize::new(0),
        })
    }
}

impl Board for Slow {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "slow"
    }
}

impl Machine for Slow {
    fn writers(&self) -> Vec<Writer> {
        Vec::new()
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        Ok(Arc::new(Written {
            tracker: MarkTracker::new(self.memory.ram().clone(), self.marks.clone()),
            marks: self.marks.clone(),
        }))
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        self.pauses.fetch_add(1, SeqCst);
        Ok(Box::new(AtRest))
    }

    fn device_cost(&self) -> Option<DeviceCost> {
        self.says
    }
}

/// A page was always written since somebody last asked: where nothing is left, limits hold nobody.
struct Written {
    tracker: MarkTracker,
    marks: Marks,
}

impl Tracker for Written {
    fn start(&self) -> Result<(), TrackerError> {
        self.tracker.start()
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        self.marks.mark(0, 0..1);
        self.tracker.sync(dirty)
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        self.tracker.clear(block, pages)
    }

    fn stop(&self) {
        self.tracker.stop();
    }
}

struct AtRest;

impl Paused for AtRest {
    fn was_running(&self) -> bool {
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        // A machine that is slow to save is what is forecast.
        std::thread::sleep(SAVING);
        let section = SectionWriter::new("paguro/slow", 0, 1)
            .u64("answer", 42)
            .finish();
        Ok(vec![
            section.map_err(|error| MachineError::new("save", error))?,
        ])
    }

    fn resume(self: Box<Self>) -> Result<(), MachineError> {
        Ok(())
    }

    fn stay(&mut self, _: Stay) {}
}

/// Moves it under that limit; whether it did, and what it was expected to take in the end.
fn moves(machine: &Arc<Slow>, limit: Duration) -> (Result<MigrateReport, MigrateError>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("socket"));
    let options = || channel::Options::new(Stop::new().unwrap());
    let listener = Incoming::listen(&address, &options()).unwrap();
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.linger = Duration::ZERO;
    let mut sending = MigrateOptions::new(address, options());
    sending.downtime_limit = limit;
    sending.linger = Duration::ZERO;
    sending.convergence.timeout = Some(Duration::from_secs(1));
    let recipient = Arriving {
        memory: memory(BYTES, Backing::Anonymous),
        name: "slow",
        loading: SAVING,
        device: None,
    };
    let received = run(move || receive(&recipient, listener, &Arrival::new(receiving, None)));
    let machine = machine.clone();
    let sent = run(move || {
        let migration = Migration::new(&sending, None).unwrap();
        let sent = migrate(&*machine, &sending, &migration);
        let expected_us = &migration.progress().expected_downtime_us;
        (sent, expected_us.load(SeqCst))
    });
    let sent = ends(&sent);
    assert_eq!(ends(&received).is_ok(), sent.0.is_ok());
    sent
}

/// It stood still for as long as was expected, or at most twice that or half of it.
#[track_caller]
fn assert_as_expected(report: &MigrateReport) {
    let (expected, was) = (report.forecast_us, report.downtime_us);
    let is_near = was <= 2 * expected && expected <= 2 * was;
    assert!(is_near, "{expected} us were expected, and {was} came");
}

#[test]
fn a_machine_is_stopped_for_as_long_as_it_said_of_its_devices_or_not_at_all() {
    let machine = Slow::new(Some(DeviceCost {
        bytes: 1 << 10,
        time: 2 * SAVING,
    }));
    let (sent, expected_us) = moves(&machine, SHORT);
    sent.unwrap_err();
    assert_eq!(machine.pauses.load(SeqCst), 0, "it was stopped");
    assert!(expected_us >= SHORT.as_micros() as u64, "{expected_us}");
    let (sent, _) = moves(&machine, LONG);
    assert_as_expected(&sent.unwrap());
}

#[test]
fn a_machine_that_says_nothing_is_known_by_how_it_was_saved_before() {
    let machine = Slow::new(None);
    // Nothing is known of it yet.
    moves(&machine, SHORT).0.unwrap();
    assert_eq!(machine.pauses.load(SeqCst), 1);
    let (sent, _) = moves(&machine, SHORT);
    sent.unwrap_err();
    assert_eq!(machine.pauses.load(SeqCst), 1, "it was stopped");
    let (sent, _) = moves(&machine, LONG);
    assert_as_expected(&sent.unwrap());
}
