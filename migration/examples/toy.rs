//! A VMM of one thread: saved while it runs, and brought back page by page.
//!
//! `cargo run -p paguro-migration --example toy`. It needs neither KVM nor root.
//!
//! Its vCPU is a thread that numbers its writes: write *n* stores *n* in page *n* x 7919. So the
//! number of writes, which is the toy's device state, says what every page must hold.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use paguro_migration::machine::{Board, Machine, MachineError, Paused, Stay, Writer, WriterClass};
use paguro_migration::restore::{RestoreFile, RestoreMode, RestoreOptions, Waiters, restore_ram};
use paguro_migration::{Control, Memory, SnapshotOptions, snapshot};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host, Mapping};
use paguro_wire::device::{DeviceSection, SectionReader, SectionWriter};

const PAGES: u64 = 16384;

/// The machine.
struct Toy {
    /// RAM and the engine's side of it, which serves the pages that are still in the file.
    memory: Arc<Memory>,
    cpu: Mutex<Cpu>,
    pausing: AtomicBool,
    end: AtomicBool,
}

/// All that is not RAM.
struct Cpu {
    writes: u64,
    stopped: bool,
}

impl Toy {
    fn new(memory: Arc<Memory>, writes: u64) -> Self {
        Self {
            memory,
            cpu: Mutex::new(Cpu {
                writes,
                stopped: false,
            }),
            pausing: AtomicBool::new(false),
            end: AtomicBool::new(false),
        }
    }

    fn mapping(&self) -> &Mapping {
        self.memory.ram().blocks()[0].mapping()
    }

    /// The vCPU. Whoever wants it to pause is let in between two writes, by `pausing`: the lock
    /// alone would mostly be taken again before anybody else wakes up.
    fn run(&self) {
        while !self.end.load(Ordering::Acquire) {
            if self.pausing.load(Ordering::Acquire) {
                std::thread::yield_now();
                continue;
            }
            let mut cpu = self.cpu.lock().unwrap();
            if cpu.stopped {
                continue;
            }
            cpu.writes += 1;
            let value = cpu.writes.to_le_bytes();
            let page = cpu.writes * 7919 % PAGES;
            self.mapping().copy_in(page as usize * 4096, &value);
        }
    }

    /// Pages that do not hold what `writes` writes have left in them.
    fn wrong_pages(&self, writes: u64) -> usize {
        let first = writes.saturating_sub(PAGES) + 1;
        let wrong = (first..=writes).filter(|&n| {
            let mut value = [0; 8];
            let page = (n * 7919 % PAGES) as usize;
            self.mapping().copy_out(page * 4096, &mut value);
            u64::from_le_bytes(value) != n
        });
        wrong.count()
    }
}

impl Board for Toy {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "toy-1"
    }
}

impl Machine for Toy {
    fn writers(&self) -> Vec<Writer> {
        vec![Writer {
            name: "vCPU 0".into(),
            class: WriterClass::Seen,
        }]
    }

    fn faults_in_kernel(&self) -> bool {
        false // A thread writes; with KVM the kernel does, on behalf of the guest.
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        self.pausing.store(true, Ordering::Release);
        let cpu = self.cpu.lock().unwrap();
        let stopped = cpu.stopped;
        let toy = self;
        Ok(Box::new(AtRest { toy, cpu, stopped }))
    }
}

/// A pause: as long as the lock is held.
struct AtRest<'t> {
    toy: &'t Toy,
    cpu: MutexGuard<'t, Cpu>,
    /// It was before.
    stopped: bool,
}

impl Paused for AtRest<'_> {
    fn was_running(&self) -> bool {
        !self.cpu.stopped
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        let section = SectionWriter::new("toy/cpu", 0, 1)
            .u64("writes", self.cpu.writes)
            .finish()
            .map_err(|error| MachineError::new("save its vCPU", error))?;
        Ok(vec![section])
    }

    fn resume(mut self: Box<Self>) -> Result<(), MachineError> {
        self.cpu.stopped = self.stopped;
        Ok(())
    }

    fn stay(&mut self, _: Stay) {
        self.cpu.stopped = true;
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.toy.pausing.store(false, Ordering::Release);
    }
}

fn layout() -> Vec<BlockConfig> {
    vec![BlockConfig {
        id: "toy.ram".into(),
        guest_address: 0,
        bytes: PAGES as usize * 4096,
        backing: Backing::Anonymous,
        pages: PageKind::Small,
    }]
}

/// Saves a machine that runs, and lets it run on.
fn save(toy: &Toy, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let report = snapshot(toy, path, &SnapshotOptions::new(), &Control::default())?;
    println!(
        "saved {} pages in {} us, of which the toy stood still for {} us",
        report.normal_pages, report.total_us, report.pause_us
    );
    Ok(())
}

/// Makes a machine out of a file, which may run before its RAM is there.
fn bring_back(path: &Path) -> Result<(Toy, u64), Box<dyn std::error::Error>> {
    let file = Arc::new(RestoreFile::open(path)?);
    let options = RestoreOptions {
        faults_in_kernel: false,
        ..RestoreOptions::new(RestoreMode::Lazy)
    };
    let host = Host::probe(&Fallbacks::default());
    let restored = restore_ram(&file, layout(), host, &options)?;
    restored.on_failure(Box::new(|error| {
        eprintln!("stop the machine: {error}");
        Waiters::LetGo
    }));
    let section = file
        .devices()
        .iter()
        .find(|section| section.name == "toy/cpu");
    let mut cpu = SectionReader::open(section.ok_or("no vCPU in it")?, "toy/cpu", 1..=1)?;
    let writes = cpu.u64("writes")?;
    cpu.finish()?;
    Ok((Toy::new(restored.memory, writes), writes))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("toy.snap");
    let blocks: Result<Vec<_>, _> = layout().into_iter().map(RamBlock::new).collect();
    let host = Host::probe(&Fallbacks::default());
    let toy = Toy::new(Memory::new(host, GuestRam::new(blocks?)), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| toy.run());
        std::thread::sleep(Duration::from_millis(100));
        let saved = save(&toy, &path);
        toy.end.store(true, Ordering::Release);
        saved
    })?;
    let (copy, writes) = bring_back(&path)?;
    match copy.wrong_pages(writes) {
        0 => println!("brought back after {writes} writes, 0 pages wrong"),
        wrong => return Err(format!("{wrong} pages are wrong").into()),
    }
    Ok(())
}
