//! Every thread of the engine under a filter of just the system calls that the table in `src/threads.rs`
//! grants its role, which kills: so the table is true. A process has one hook for its threads, hence a process
//! for this test. Killed by SIGSYS? The kernel's log (`dmesg`) has the number of the call, and as `comm` the
//! thread.

mod machine;
mod still;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paguro_dirty::tracker::{MarkTracker, Marks, Tracker};
use paguro_migration::channel::{self, Address, Incoming, Stop};
use paguro_migration::destination::{Arrival, ReceiveMode, ReceiveOptions, receive};
use paguro_migration::machine::{Board, Machine, MachineError, Paused, Stay, Writer};
use paguro_migration::multifd::{Compression, Multifd};
use paguro_migration::restore::{RestoreFile, RestoreMode, RestoreOptions, restore_ram};
use paguro_migration::source::{MigrateOptions, Migration, Mode, Pages, migrate};
use paguro_migration::threads::on_thread_start;
use paguro_migration::{Control, Memory, SnapshotOptions, snapshot};
use paguro_ram::{Backing, BlockConfig, PageKind};
use paguro_sys::{Fallbacks, Host, NewThread};
use paguro_testkit::{must_end, skipped};
use paguro_wire::device::DeviceSection;
use seccompiler::{BpfMap, TargetArch, apply_filter, compile_from_json};
use serde_json::json;

use machine::ThreadMachine;
use still::{Arriving, memory};

const PAGE: usize = 4096;
const PAGES: usize = 2048;

#[test]
fn every_thread_keeps_to_the_calls_of_its_role() {
    let _ends = must_end();
    let host = Host::probe(&Fallbacks::default());
    if !host.can_freeze() {
        return skipped("userfaultfd with write-protection is not available to this process");
    }
    let filters = filters();
    on_thread_start(move |role| {
        let filter = filters.get(role);
        let filter =
            filter.ok_or_else(|| io::Error::other(format!("{role} is not in the table")))?;
        apply_filter(filter).map_err(io::Error::other)
    })
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("picture");
    for backing in [Backing::Anonymous, Backing::Memfd] {
        saves(&path, backing);
        for mode in [RestoreMode::Lazy, RestoreMode::Eager, RestoreMode::Map] {
            // Another one is no kind of memory for a mapped file.
            if mode != RestoreMode::Map || backing == Backing::Anonymous {
                restores(host, &path, mode, backing);
            }
        }
        for way in Way::ALL {
            migrates(way, dir.path(), backing);
        }
    }
}

/// The table: of each role those that it starts, and its calls.
type Table = HashMap<&'static str, (Vec<&'static str>, Vec<&'static str>)>;

fn table() -> Table {
    let lines = include_str!("../src/threads.rs").lines();
    let rows = lines.filter_map(|line| line.strip_prefix("//! | `"));
    let names = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect();
    let row = |row: &'static str| {
        let (role, rest) = row.split_once("` |").unwrap();
        let cells: Vec<_> = rest.strip_suffix(" |").unwrap().rsplitn(3, " |").collect();
        (role, (names(cells[1]), names(cells[0])))
    };
    rows.map(row).collect()
}

/// What a role is permitted: its row and that of each; and of those that it starts, which inherit it.
fn permitted(table: &Table, role: &str) -> BTreeSet<&'static str> {
    let (starts, calls) = &table[role];
    let mut permitted: BTreeSet<_> = table["each"].1.iter().chain(calls).copied().collect();
    for started in starts {
        permitted.extend(&table["start"].1);
        permitted.append(&mut self::permitted(table, started));
    }
    permitted
}

/// A filter for each role.
fn filters() -> BpfMap {
    let table = table();
    assert!(table.len() > 20, "{table:?}");
    let filter = |role: &&str| {
        let calls = permitted(&table, role);
        let calls: Vec<_> = calls
            .iter()
            .map(|call| json!({ "syscall": call }))
            .collect();
        let filter = json!({
            "mismatch_action": "kill_process", "match_action": "allow", "filter": calls,
        });
        ((*role).to_owned(), filter)
    };
    let filters: serde_json::Map<_, _> = table.keys().map(filter).collect();
    let json = serde_json::to_vec(&filters).unwrap();
    compile_from_json(&*json, TargetArch::x86_64).unwrap()
}

/// The VMM's own thread. What goes wrong there is said outside: saying it takes calls of its own.
fn calls<T: Send>(role: &str, body: impl FnOnce() -> Result<T, Failed> + Send) -> T {
    let done = std::thread::scope(|scope| {
        let thread = NewThread::named(format!("call/{role}")).spawn_scoped(scope, body);
        thread.unwrap().join().unwrap()
    });
    done.unwrap_or_else(|error| panic!("{role}: {error:?}"))
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn layout(backing: Backing) -> Vec<BlockConfig> {
    vec![BlockConfig {
        id: "ram".into(),
        guest_address: 0,
        bytes: PAGES * PAGE,
        backing,
        pages: PageKind::Small,
    }]
}

/// A machine that runs, in the background.
fn saves(path: &Path, backing: Backing) {
    let memory = memory(PAGES * PAGE, backing);
    let machine = ThreadMachine::start(memory, 2, PAGES);
    machine.run_on(10_000);
    let control = Control::default();
    let report = calls("snapshot", || {
        Ok(snapshot(&machine, path, &SnapshotOptions::new(), &control)?)
    });
    assert!(report.normal_pages > 0);
    machine.run_on(1000);
}

fn restores(host: Host, path: &Path, mode: RestoreMode, backing: Backing) {
    let options = RestoreOptions {
        faults_in_kernel: false,
        ..RestoreOptions::new(mode)
    };
    let restored = calls("restore", || {
        let file = Arc::new(RestoreFile::open(path)?);
        let restored = restore_ram(&file, layout(backing), host, &options)?;
        restored.on_failure(Box::new(|error| panic!("{error}")));
        Ok(restored)
    });
    let mapping = restored.memory.ram().blocks()[0].mapping();
    let mut read = [0; 8];
    for page in 0..PAGES {
        mapping.copy_out(page * PAGE, &mut read);
    }
    if let Some(filler) = &restored.filler {
        assert!(filler.wait_done(Duration::from_secs(60)));
    }
}

/// How a machine goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    Xbzrle,
    Multifd,
    Zstd,
}

impl Way {
    const ALL: [Self; 4] = [Self::Tcp, Self::Xbzrle, Self::Multifd, Self::Zstd];

    fn mode(self) -> Mode {
        let multifd = |compression| {
            Pages::Multifd(Multifd {
                channels: 2,
                compression,
            })
        };
        Mode::Precopy(match self {
            Self::Tcp => Pages::Plain,
            Self::Xbzrle => Pages::Xbzrle {
                cache_bytes: 1 << 20,
            },
            Self::Multifd => multifd(Compression::None),
            Self::Zstd => multifd(Compression::Zstd { level: 1 }),
        })
    }
}

fn migrates(way: Way, dir: &Path, backing: Backing) {
    let channel = || channel::Options::new(Stop::new().unwrap());
    let at = match way {
        Way::Tcp => "tcp:127.0.0.1:0".parse().unwrap(),
        _ => Address::Unix(dir.join("socket")),
    };
    let (tell, told) = std::sync::mpsc::channel();
    let memory_there = memory(PAGES * PAGE, backing);
    let recipient = Arriving {
        memory: memory_there.clone(),
        name: "leaving",
        loading: Duration::ZERO,
        device: None,
    };
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.linger = Duration::ZERO;
    receiving.mode = ReceiveMode::Precopy {
        multifd: way.mode().multifd(),
    };
    let (source, marks) = (memory(PAGES * PAGE, backing), Marks::default());
    let mapping = source.ram().blocks()[0].mapping();
    mapping.copy_in(0, &vec![7; PAGES * PAGE / 2]);
    let leaving = Leaving {
        memory: source.clone(),
        marks,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            calls("receive", || {
                let listener = Incoming::listen(&at, &channel())?;
                tell.send(listener.local_address().clone())?;
                Ok(receive(
                    &recipient,
                    listener,
                    &Arrival::new(receiving, None),
                )?)
            });
        });
        let to = match told.recv().unwrap() {
            // So that the name must be looked up.
            Address::Tcp { port, .. } => format!("tcp:localhost:{port}").parse().unwrap(),
            there => there,
        };
        let mut options = MigrateOptions::new(to, channel());
        options.mode = way.mode();
        calls("migrate", || {
            let migration = Migration::new(&options, None)?;
            Ok(migrate(&leaving, &options, &migration)?)
        });
    });
    let there = memory_there.ram().blocks()[0].mapping();
    assert!(there.is_equal(0, &vec![7; PAGES * PAGE / 2]), "{way:?}");
}

/// A machine that stands still, and moves.
struct Leaving {
    memory: Arc<Memory>,
    marks: Marks,
}

impl Board for Leaving {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "leaving"
    }
}

impl Machine for Leaving {
    fn writers(&self) -> Vec<Writer> {
        Vec::new()
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        let tracker = MarkTracker::new(self.memory.ram().clone(), self.marks.clone());
        Ok(Arc::new(tracker))
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        Ok(Box::new(AtRest))
    }
}

struct AtRest;

impl Paused for AtRest {
    fn was_running(&self) -> bool {
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        Ok(Vec::new())
    }

    fn resume(self: Box<Self>) -> Result<(), MachineError> {
        Ok(())
    }

    fn stay(&mut self, _: Stay) {}
}
