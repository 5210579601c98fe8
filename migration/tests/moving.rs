//! Machines that move to another one here, and what becomes of each page, whatever happened to it on
//! the way. Nobody runs: what a guest would write is written at just the moment at which it matters, by
//! the tracker that is asked and by the machine that is stopped.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paguro_dirty::tracker::{MarkTracker, Marks, Tracker, TrackerError};
use paguro_migration::Memory;
use paguro_migration::channel::{self, Address, Incoming, Stop};
use paguro_migration::destination::{Arrival, ReceiveMode, ReceiveOptions, receive};
use paguro_migration::machine::{Board, Machine, MachineError, Paused, Stay, Writer};
use paguro_migration::multifd::{Compression, Multifd};
use paguro_migration::source::{
    MigrateError, MigrateOptions, MigrateReport, Migration, Mode, Pages, migrate,
};
use paguro_ram::{Backing, GuestRam, PageSet, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Advice, Fallbacks, Host};
use paguro_testkit::{ends, run};
use paguro_wire::device::DeviceSection;

use crate::still::{Arriving, memory};

const PAGE: usize = 4096;
const PAGES: usize = 1024;
/// The section of its devices: a VMM's own name.
const DEVICE: &str = "firecracker/microvm";

/// When something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The chunk that has the first pages is about to be protected, for the first time.
    FirstClear,
    /// All was sent once, and is about to be asked for.
    SecondSync,
    /// It is about to stand still.
    Pause,
}

/// What is written meanwhile. The source runs and is asked in other threads than the one that tells.
type Act = Box<dyn Fn(&Guest, Moment) + Send + Sync>;

/// Writes to RAM, and says so.
struct Guest {
    memory: Arc<Memory>,
    marks: Marks,
}

impl Guest {
    fn put(&self, page: usize, value: u8) {
        self.put_unseen(page, value);
        self.marks.mark(0, page..page + 1);
    }

    /// Before the page is protected, which is when what was written so far is forgotten.
    fn put_unseen(&self, page: usize, value: u8) {
        let mapping = self.memory.ram().blocks()[0].mapping();
        mapping.copy_in(page * PAGE, &[value; PAGE]);
    }

    fn give_back(&self, pages: Range<usize>) {
        let mapping = self.memory.ram().blocks()[0].mapping();
        let (first, bytes) = (pages.start * PAGE, pages.len() * PAGE);
        mapping.advise(first, bytes, Advice::DontNeed).unwrap();
        self.marks.mark(0, pages);
    }
}

struct Source {
    guest: Guest,
    act: Act,
    tracker: MarkTracker,
    syncs: AtomicUsize,
    clears: AtomicUsize,
    /// Whether it can be resumed after a pause.
    resumes: bool,
    /// Why it was to stay at rest.
    stays: Mutex<Vec<Stay>>,
}

/// A tracker that belongs to it.
struct Tracks(Arc<Source>);

impl Tracker for Tracks {
    fn start(&self) -> Result<(), TrackerError> {
        self.0.tracker.start()
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        if self.0.syncs.fetch_add(1, SeqCst) == 1 {
            (self.0.act)(&self.0.guest, Moment::SecondSync);
        }
        self.0.tracker.sync(dirty)
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        if pages.start == 0 && self.0.clears.fetch_add(1, SeqCst) == 0 {
            (self.0.act)(&self.0.guest, Moment::FirstClear);
        }
        self.0.tracker.clear(block, pages)
    }

    fn stop(&self) {
        self.0.tracker.stop();
    }
}

/// The source as the engine sees it.
struct Moving(Arc<Source>);

impl Board for Moving {
    fn memory(&self) -> &Arc<Memory> {
        &self.0.guest.memory
    }

    fn machine_name(&self) -> &str {
        "moving"
    }
}

impl Machine for Moving {
    fn writers(&self) -> Vec<Writer> {
        Vec::new()
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        Ok(Arc::new(Tracks(self.0.clone())))
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        (self.0.act)(&self.0.guest, Moment::Pause);
        Ok(Box::new(AtRest(&self.0)))
    }
}

struct AtRest<'m>(&'m Source);

impl Paused for AtRest<'_> {
    fn was_running(&self) -> bool {
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        // By a name of the VMM's own; what arrives looks whether it does.
        let section = DeviceSection::opaque(DEVICE, 1, DEVICE.as_bytes().to_vec());
        section
            .map(|section| vec![section])
            .map_err(|error| MachineError::new("save", error))
    }

    fn resume(self: Box<Self>) -> Result<(), MachineError> {
        if self.0.resumes {
            Ok(())
        } else {
            Err(MachineError::new("go on", "it was told not to"))
        }
    }

    fn stay(&mut self, why: Stay) {
        self.0.stays.lock().unwrap().push(why);
    }
}

type Sent = Result<MigrateReport, MigrateError>;

/// How pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Xbzrle,
    Multifd,
    MultifdZstd,
}

const WAYS: [Way; 4] = [Way::Plain, Way::Xbzrle, Way::Multifd, Way::MultifdZstd];

impl Way {
    fn pages(self) -> Pages {
        let multifd = |compression| {
            Pages::Multifd(Multifd {
                channels: 2,
                compression,
            })
        };
        match self {
            Self::Plain => Pages::Plain,
            Self::Xbzrle => Pages::Xbzrle {
                cache_bytes: 1 << 20,
            },
            Self::Multifd => multifd(Compression::None),
            Self::MultifdZstd => multifd(Compression::Zstd { level: 1 }),
        }
    }
}

/// Moves RAM; what it was in the end, here and there.
fn moved(way: Way, before: impl FnOnce(&Guest), act: Act) -> (GuestRam, GuestRam) {
    let (here, there, sent) = tried(way, before, act);
    sent.unwrap();
    (here, there)
}

/// Tries to move RAM; what it was in the end, here and there, and what the source says. The
/// destination says the same.
fn tried(way: Way, before: impl FnOnce(&Guest), act: Act) -> (GuestRam, GuestRam, Sent) {
    let (here, there, sent, stays) = tried_of(true, way, before, act);
    let at_rest = [Stay::InDoubt, Stay::MigratedAway];
    assert_eq!(stays, at_rest[..if sent.is_ok() { 2 } else { 0 }]);
    (here, there, sent)
}

/// The same of a machine that `resumes` after a pause or does not, and why it was to stay at rest.
fn tried_of(
    resumes: bool,
    way: Way,
    before: impl FnOnce(&Guest),
    act: Act,
) -> (GuestRam, GuestRam, Sent, Vec<Stay>) {
    let (memory, other) = (
        memory(PAGES * PAGE, Backing::Anonymous),
        memory(PAGES * PAGE, Backing::Anonymous),
    );
    let (here, there) = (memory.ram().clone(), other.ram().clone());
    let marks = Marks::default();
    let source = Arc::new(Source {
        tracker: MarkTracker::new(here.clone(), marks.clone()),
        guest: Guest { memory, marks },
        act,
        syncs: AtomicUsize::new(0),
        clears: AtomicUsize::new(0),
        resumes,
        stays: Mutex::default(),
    });
    before(&source.guest);

    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("socket"));
    let channel = channel::Options::new(Stop::new().unwrap());
    let listener = Incoming::listen(&address, &channel).unwrap();
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.linger = Duration::ZERO;
    let mut options = MigrateOptions::new(address, channel::Options::new(Stop::new().unwrap()));
    options.mode = Mode::Precopy(way.pages());
    receiving.mode = ReceiveMode::Precopy {
        multifd: options.mode.multifd(),
    };
    let recipient = Arriving {
        memory: other,
        name: "moving",
        loading: Duration::ZERO,
        device: Some(DEVICE),
    };
    let received = run(move || receive(&recipient, listener, &Arrival::new(receiving, None)));
    let its = source.clone();
    let sent = run(move || {
        let migration = Migration::new(&options, None).unwrap();
        migrate(&Moving(its), &options, &migration)
    });
    let sent = ends(&sent);
    assert_eq!(ends(&received).is_ok(), sent.is_ok());
    let stays = source.stays.lock().unwrap().clone();
    (here, there, sent, stays)
}

/// Every page is there what it is here.
#[track_caller]
fn assert_same(here: &GuestRam, there: &GuestRam, way: Way) {
    let mut page_bytes = [0; PAGE];
    let [here, there] = [here, there].map(|ram| ram.blocks()[0].mapping());
    let is_wrong = |&page: &usize| {
        here.copy_out(page * PAGE, &mut page_bytes);
        !there.is_equal(page * PAGE, &page_bytes)
    };
    let wrong: Vec<usize> = (0..PAGES).filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{way:?}: pages {wrong:?}");
}

/// Pages that exist.
fn present(ram: &GuestRam) -> Vec<usize> {
    let pagemap = Pagemap::open(&Host::probe(&Fallbacks::default())).unwrap();
    let mut found = Vec::new();
    let add = |run: Range<usize>| found.extend(run);
    presence::present(&ram.blocks()[0], 0..PAGES, &pagemap, add).unwrap();
    found
}

/// One at a time, and many in a row: the latter are made present before they come.
#[test]
fn what_becomes_zero_on_the_way_is_zero_there() {
    for way in WAYS {
        let fill = |guest: &Guest| {
            for page in [10, 20, 30, 40].into_iter().chain(100..200) {
                guest.put(page, 1);
            }
        };
        let (here, there) = moved(
            way,
            fill,
            Box::new(|guest, moment| {
                if moment == Moment::SecondSync {
                    [20].into_iter()
                        .chain(120..140)
                        .for_each(|page| guest.put(page, 0));
                    guest.give_back(30..31);
                    guest.give_back(150..170);
                }
                if moment == Moment::Pause {
                    guest.put(40, 0);
                    guest.give_back(180..190);
                }
            }),
        );
        // Before it is compared, which makes all of it present.
        let made = present(&there);
        assert_same(&here, &there, way);
        // Zeros are written where something was, and nowhere else.
        let sent: Vec<usize> = [10, 20, 30, 40].into_iter().chain(100..200).collect();
        assert_eq!(made, sent, "{way:?}");
    }
}

#[test]
fn what_is_written_before_the_guest_stands_still_arrives() {
    for way in WAYS {
        let (here, there) = moved(
            way,
            |guest| (0..100).for_each(|page| guest.put(page, 1)),
            Box::new(|guest, moment| {
                if moment == Moment::Pause {
                    [5, 500].into_iter().for_each(|page| guest.put(page, 2));
                }
            }),
        );
        assert_same(&here, &there, way);
    }
}

/// It is reported by nobody: it was written before its chunk was protected.
#[test]
fn what_is_touched_first_when_its_chunk_is_protected_arrives() {
    for way in WAYS {
        let (here, there) = moved(
            way,
            |guest| guest.put(10, 1),
            Box::new(|guest, moment| {
                if moment == Moment::FirstClear {
                    [10, 20]
                        .into_iter()
                        .for_each(|page| guest.put_unseen(page, 2));
                }
            }),
        );
        assert_same(&here, &there, way);
    }
}

/// The other side was told how long it is.
#[test]
fn a_block_that_changes_its_length_on_the_way_is_refused() {
    for way in WAYS {
        let shrink = |guest: &Guest, moment| {
            if moment == Moment::SecondSync {
                guest.memory.ram().blocks()[0]
                    .resize(PAGES / 2 * PAGE)
                    .unwrap();
            }
        };
        let (_, _, sent) = tried(way, |guest| guest.put(10, 1), Box::new(shrink));
        let error = sent.unwrap_err();
        assert!(
            error.to_string().contains("blocks changed"),
            "{way:?}: {error}"
        );
    }
}

#[test]
fn a_guest_that_does_not_run_on_is_told_with_the_migration_that_failed() {
    let shrink = |guest: &Guest, moment| {
        if moment == Moment::Pause {
            guest.memory.ram().blocks()[0]
                .resize(PAGES / 2 * PAGE)
                .unwrap();
        }
    };
    let (_, _, sent, stays) = tried_of(false, Way::Plain, |_| (), Box::new(shrink));
    assert_eq!(stays, []);
    let error = sent.unwrap_err();
    let MigrateError::Ended(ended) = &error else {
        panic!("{error:?}");
    };
    let cause = ended.cause.as_deref();
    let Some(MigrateError::NotResumed { failed, source }) = cause else {
        panic!("{error:?}");
    };
    assert!(matches!(
        failed.as_deref(),
        Some(MigrateError::BlocksChanged)
    ));
    assert_eq!(source.doing, "go on");
    let said = error.to_string();
    assert!(
        said.contains("blocks changed") && said.ends_with("could not be resumed"),
        "{said}"
    );
}
