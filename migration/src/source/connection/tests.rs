use std::io::Read;
use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use paguro_dirty::tracker::{MarkTracker, Marks, Tracker, TrackerError};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::wait_until;

use super::*;
use crate::Memory;
use crate::channel::{Address, Stop};
use crate::machine::{Board, Machine, MachineError, Paused, Writer};
use crate::source::{AtTimeout, MigrateOptions, Migration};
use crate::switchover::SourceAction;

const PAGE: usize = 4096;
/// One chunk, which goes whole or not at all.
const PAGES: usize = 512;

/// A tracker that counts how often it is started and stopped.
struct Counting {
    tracker: MarkTracker,
    starts: AtomicUsize,
    stops: AtomicUsize,
}

impl Tracker for Counting {
    fn start(&self) -> Result<(), TrackerError> {
        self.starts.fetch_add(1, SeqCst);
        self.tracker.start()
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        self.tracker.sync(dirty)
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        self.tracker.clear(block, pages)
    }

    fn stop(&self) {
        self.stops.fetch_add(1, SeqCst);
        self.tracker.stop();
    }
}

/// A machine that is written to by the test, and never stopped.
struct Written {
    memory: Arc<Memory>,
    marks: Marks,
    tracker: Arc<Counting>,
}

impl Written {
    fn new() -> Self {
        let block = RamBlock::new(BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: PAGES * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        let marks = Marks::default();
        let tracker = Arc::new(Counting {
            tracker: MarkTracker::new(ram.clone(), marks.clone()),
            starts: AtomicUsize::new(0),
            stops: AtomicUsize::new(0),
        });
        Self {
            memory: Memory::new(Host::probe(&Fallbacks::default()), ram),
            marks,
            tracker,
        }
    }

    fn put(&self, page: usize, value: u8) {
        let mapping = self.memory.ram().blocks()[0].mapping();
        mapping.copy_in(page * PAGE, &[value; PAGE]);
        self.marks.mark(0, page..page + 1);
    }

    /// How often tracking began and ended.
    fn tracked(&self) -> (usize, usize) {
        let Counting { starts, stops, .. } = &*self.tracker;
        (starts.load(SeqCst), stops.load(SeqCst))
    }
}

impl Board for Written {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "written"
    }
}

impl Machine for Written {
    fn writers(&self) -> Vec<Writer> {
        Vec::new()
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        Ok(self.tracker.clone())
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        Err(MachineError::new("stop", "nobody asked for it"))
    }
}

/// Takes all that comes over so many channels, until they end.
fn swallow<'s, 'e>(
    scope: &'s Scope<'s, 'e>,
    listener: &'e UnixListener,
    channels: u8,
) -> ScopedJoinHandle<'s, Vec<u8>> {
    scope.spawn(move || {
        let accept = |_| listener.accept().unwrap().0;
        let sockets: Vec<_> = (0..channels).map(accept).collect();
        let readers = sockets.into_iter().map(|mut socket| {
            scope.spawn(move || {
                let mut bytes = Vec::new();
                socket.read_to_end(&mut bytes).unwrap();
                bytes
            })
        });
        let readers: Vec<_> = readers.collect();
        let read = readers.into_iter().flat_map(|it| it.join().unwrap());
        read.collect()
    })
}

/// What came to the moment at which the guest is to be stopped, when the connection is closed instead.
fn cut_short(
    machine: &Written,
    options: &MigrateOptions,
    listener: &UnixListener,
    transfer: &Arc<Mutex<Transfer>>,
) -> Vec<u8> {
    let migration = Migration::new(options, None).unwrap();
    std::thread::scope(|scope| {
        let channels = 1 + options.mode.multifd().map_or(0, |multifd| multifd.channels);
        let came = swallow(scope, listener, channels);
        let job = Job::new(machine, options, &migration);
        let Ok(mut connection) = connect(job, scope, &options.channel, transfer) else {
            panic!("there is who listens");
        };
        wait_until("all of it is sent", || {
            migration.lock().actions.contains(&SourceAction::PauseVm)
        });
        connection.close(Close::Broken);
        drop(connection);
        came.join().unwrap()
    })
}

fn has(came: &[u8], value: u8) -> bool {
    came.windows(PAGE).any(|window| window == [value; PAGE])
}

#[test]
fn another_connection_goes_on_where_one_ended() {
    let cache_bytes = 1 << 20;
    for pages in [
        Pages::Plain,
        Pages::Xbzrle { cache_bytes },
        Pages::Multifd(multifd::Multifd::new(2)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let channel = channel::Options::new(Stop::new().unwrap());
        let mut options = MigrateOptions::new(Address::Unix(path), channel);
        options.mode = Mode::Precopy(pages);
        // Nobody answers, and nobody is waited for.
        options.convergence.timeout = Some(Duration::ZERO);
        options.convergence.at_timeout = AtTimeout::Switchover;

        let machine = Written::new();
        (0..20).for_each(|page| machine.put(page, 1 + page as u8));
        let unused = Migration::new(&options, None).unwrap();
        let transfer = Transfer::new(Job::new(&machine, &options, &unused)).unwrap();
        let transfer = Arc::new(Mutex::new(transfer));

        let first = cut_short(&machine, &options, &listener, &transfer);
        assert!((1..=20).all(|value| has(&first, value)), "{pages:?}");
        assert_eq!(lock(&transfer).tally.normal_pages, 20, "{pages:?}");
        // What is written between two connections is not lost.
        machine.put(7, 201);
        machine.put(300, 202);
        let second = cut_short(&machine, &options, &listener, &transfer);
        assert!(has(&second, 201) && has(&second, 202), "{pages:?}");
        // And nothing else is sent twice.
        assert!(second.len() < 10 * PAGE, "{pages:?}: {}", second.len());
        assert_eq!(lock(&transfer).tally.normal_pages, 22, "{pages:?}");

        assert_eq!(machine.tracked(), (1, 0), "{pages:?}");
        drop(transfer);
        assert_eq!(machine.tracked(), (1, 1), "{pages:?}");
    }
}

#[test]
fn what_is_to_be_sent_is_still_there_when_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let channel = channel::Options::new(Stop::new().unwrap());
    let options = MigrateOptions::new(Address::Unix(dir.path().join("socket")), channel);
    let machine = Written::new();
    let migration = Migration::new(&options, None).unwrap();
    let job = Job::new(&machine, &options, &migration);
    let transfer = Arc::new(Mutex::new(Transfer::new(job).unwrap()));
    std::thread::scope(|scope| {
        let Err(unmade) = connect(job, scope, &options.channel, &transfer) else {
            panic!("nobody listens");
        };
        let mut told = None;
        unmade.end(|error| told = Some(error));
        assert!(matches!(told, Some(MigrateError::Channel(_))), "{told:?}");
    });
    assert_eq!(machine.tracked(), (0, 0));
    assert_eq!(lock(&transfer).pages.pages(), PAGES);
}
