//! A VMM with vCPUs, a device that has a thread of its own, and RAM with a hole: saved while it runs,
//! brought back into RAM that it made itself, running before its pages are there, and moved to another
//! machine while it runs.
//!
//! `cargo run -p paguro-migration --example vmm`. It needs neither KVM nor root, and checks each byte:
//! every page belongs to one of four writers, and write *n* of a writer fills the *n* x 7919th of its
//! pages with *n*. So the numbers of writes, which are the machine's state, say what all RAM must be.

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use paguro_migration::prelude::*;

const PAGE: usize = 4096;
/// Two regions, as around the hole for PCI below 4 GiB.
const REGIONS: [(&str, u64); 2] = [("low", 0), ("high", 4 << 30)];
const REGION_PAGES: usize = 2048;
const PAGES: usize = REGIONS.len() * REGION_PAGES;
/// Three vCPUs and a device.
const WRITERS: [&str; 4] = ["vCPU 0", "vCPU 1", "vCPU 2", "disk"];
const DEVICE: usize = 3;
/// The section of its state: a name of the VMM's own, and bytes that only it understands.
const SECTION: &str = "example/state";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// A life in three machines.
fn run() -> Result<(), Box<dyn Error>> {
    let host = Host::probe(&Fallbacks::default());
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("example.snap");
    let some_time = || std::thread::sleep(Duration::from_millis(100));

    let origin = Vmm::new(make_ram(host)?);
    origin.vm.go()?;
    some_time();
    let control = Control::default();
    let report = snapshot(&*origin.vm, &path, &SnapshotOptions::new(), &control)?;
    println!(
        "saved in {} us; it stood still for {} us",
        report.total_us, report.pause_us
    );
    some_time();
    println!("it ran on: {} writes, all right", origin.vm.check()?);
    drop(origin);

    let (back, filler) = bring_back(RestoreFile::open(&path)?, host)?;
    println!(
        "back, and running; {} pages are to come",
        filler.left_pages()
    );
    some_time();
    println!("brought back: {} writes, all right", back.vm.check()?);

    let there = Vmm::new(make_ram(host)?);
    let socket = Address::Unix(directory.path().join("socket"));
    let report = move_to(&back.vm, &there.vm, socket)?;
    println!("moved; it stood still for {} us", report.downtime_us);
    some_time();
    println!(
        "at the destination: {} writes, all right",
        there.vm.check()?
    );
    match back.vm.go() {
        Err(refused) => println!("and not here any more: {}", with_causes(&refused)),
        Ok(()) => return Err("it runs twice".into()),
    }
    Ok(())
}

/// Makes a machine out of a file, which runs before its RAM is there.
fn bring_back(file: RestoreFile, host: Host) -> Result<(Vmm, Arc<Filler>), Box<dyn Error>> {
    let file = Arc::new(file);
    let memory = make_ram(host)?;
    let options = RestoreOptions {
        faults_in_kernel: false,
        ..RestoreOptions::new(RestoreMode::Lazy)
    };
    // From here on whoever touches a page gets the file's.
    let filler = fill(&file, &memory, &options)?.ok_or("nothing fills it")?;
    let vmm = Vmm::new(memory);
    vmm.vm.load(file.devices())?;
    // The memory keeps this, and the machine keeps the memory.
    let vm = Arc::downgrade(&vmm.vm);
    filler.on_failure(Box::new(move |error| {
        eprintln!("it cannot go on: {}", with_causes(error));
        if let Some(vm) = vm.upgrade() {
            // Each ends with the write that it has in hand.
            vm.vcpus.set(Order::End);
            vm.device.set(Order::End);
        }
        Waiters::LetGo
    }));
    if filler.has_failed() {
        return Err("pages of it are lost".into());
    }
    vmm.vm.go()?;
    Ok((vmm, filler))
}

/// Moves a machine that runs to another one, which waits for it in this process, too.
fn move_to(here: &Vm, there: &Vm, at: Address) -> Result<MigrateReport, Box<dyn Error>> {
    let (stop, channel) = (Stop::new()?, channel::Options::new);
    let listener = Incoming::listen(&at, &channel(stop.clone()))?;
    let receiving = ReceiveOptions {
        linger: Duration::ZERO, // A source of this process has no doubts for which to wait.
        ..ReceiveOptions::new(true, false)
    };
    let arrival = Arrival::new(receiving, None);
    let options = MigrateOptions::new(at, channel(Stop::new()?));
    let migration = Migration::new(&options, None)?;
    std::thread::scope(|scope| {
        let received = scope.spawn(|| receive(there, listener, &arrival));
        let report = migrate(here, &options, &migration).inspect_err(|_| stop.stop())?;
        received.join().map_err(|_| "its thread panicked")??;
        Ok(report)
    })
}

/// RAM as this VMM makes it; the engine is only told of it.
fn make_ram(host: Host) -> Result<Arc<Memory>, RamError> {
    let blocks = REGIONS.map(|(name, guest_address)| {
        RamBlock::new(BlockConfig {
            id: name.to_owned(),
            guest_address,
            bytes: REGION_PAGES * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        })
    });
    let blocks: Result<_, _> = blocks.into_iter().collect();
    Ok(Memory::new(host, GuestRam::new(blocks?)))
}

/// The machine: what its threads share.
struct Vm {
    memory: Arc<Memory>,
    /// Where the device and the vCPUs note what they wrote. With KVM, its log knows of the vCPUs.
    marks: Marks,
    /// How often each writer wrote: all of its state that is not RAM.
    writes: [AtomicU64; WRITERS.len()],
    vcpus: Gate,
    device: Gate,
    run: Mutex<Run>,
}

/// Held for as long as a pause lasts.
#[derive(Default)]
struct Run {
    runs: bool,
    stays: Option<Stay>,
}

impl Vm {
    fn new(memory: Arc<Memory>) -> Self {
        Self {
            memory,
            marks: Marks::default(),
            writes: Default::default(),
            vcpus: Gate::new(DEVICE),
            device: Gate::new(WRITERS.len() - DEVICE),
            run: Mutex::default(),
        }
    }

    fn gate_of(&self, writer: usize) -> &Gate {
        if writer == DEVICE {
            &self.device
        } else {
            &self.vcpus
        }
    }

    /// A vCPU or the device: it looks for an order to rest between two writes.
    fn write(&self, writer: usize) {
        while self.gate_of(writer).pass() {
            let n = self.writes[writer].load(Ordering::Relaxed) + 1;
            let page = page_of(writer, n);
            let (block, at) = (page / REGION_PAGES, page % REGION_PAGES);
            self.mapping(block).copy_in(at * PAGE, &content(n));
            self.marks.mark(block, at..at + 1);
            self.writes[writer].store(n, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn mapping(&self, block: usize) -> &Mapping {
        self.memory.ram().blocks()[block].mapping()
    }

    /// Lets it run. Not if its guest may run elsewhere: a VMM for users would ask them.
    fn go(&self) -> Result<(), MachineError> {
        let mut run = lock(&self.run);
        if let Some(why) = run.stays {
            return Err(MachineError::new("run", format!("it stays: {why:?}")));
        }
        run.runs = true;
        self.open();
        Ok(())
    }

    fn open(&self) {
        self.device.set(Order::Go);
        self.vcpus.set(Order::Go);
    }

    /// Compares all RAM with what the writers must have left in it.
    fn check(&self) -> Result<u64, Box<dyn Error>> {
        let paused = self.pause()?;
        let writes = self.writes.each_ref().map(|it| it.load(Ordering::Relaxed));
        let mut expected = vec![0; PAGES];
        for (writer, &total) in writes.iter().enumerate() {
            let last_round = total.saturating_sub((PAGES / WRITERS.len()) as u64) + 1..=total;
            last_round.for_each(|n| expected[page_of(writer, n)] = n);
        }
        let is_wrong = |&page: &usize| {
            let (block, at) = (page / REGION_PAGES, page % REGION_PAGES);
            !self
                .mapping(block)
                .is_equal(at * PAGE, &content(expected[page]))
        };
        let wrong = (0..PAGES).filter(is_wrong).count();
        paused.resume()?;
        match wrong {
            0 => Ok(writes.iter().sum()),
            wrong => Err(format!("{wrong} of {PAGES} pages are wrong").into()),
        }
    }
}

/// The page that write `n` of a writer goes to: every fourth one is his.
fn page_of(writer: usize, n: u64) -> usize {
    let slots = PAGES / WRITERS.len();
    (n as usize * 7919 % slots) * WRITERS.len() + writer
}

fn content(n: u64) -> [u8; PAGE] {
    std::array::from_fn(|at| n.to_le_bytes()[at % 8])
}

impl Board for Vm {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "example-1"
    }
}

impl Machine for Vm {
    fn writers(&self) -> Vec<Writer> {
        // All write through the mapping, so a freeze sees them.
        let seen = |name: &str| Writer {
            name: name.to_owned(),
            class: WriterClass::Seen,
        };
        WRITERS.map(seen).to_vec()
    }

    fn faults_in_kernel(&self) -> bool {
        false // With KVM: true.
    }

    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        let ram = self.memory.ram().clone();
        Ok(Arc::new(MarkTracker::new(ram, self.marks.clone())))
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        let run = lock(&self.run);
        // vCPUs first: who is to give the device more to do must not run when that rests.
        self.vcpus.rest();
        self.device.rest();
        let stays = run.stays;
        let vm = self;
        Ok(Box::new(AtRest { vm, run, stays }))
    }
}

/// The machine at rest.
struct AtRest<'v> {
    vm: &'v Vm,
    run: MutexGuard<'v, Run>,
    stays: Option<Stay>,
}

impl Paused for AtRest<'_> {
    fn was_running(&self) -> bool {
        self.run.runs
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        let numbers = self.vm.writes.iter().map(|it| it.load(Ordering::Relaxed));
        let bytes = numbers.flat_map(u64::to_le_bytes).collect();
        let section = DeviceSection::opaque(SECTION, 1, bytes)
            .map_err(|error| MachineError::new("save its state", error))?;
        Ok(vec![section])
    }

    fn resume(mut self: Box<Self>) -> Result<(), MachineError> {
        // As it was before this pause: who stays for another reason stays.
        self.stays = self.run.stays;
        Ok(()) // Dropping it opens the gates. What can fail in that is to be told here.
    }

    fn stay(&mut self, why: Stay) {
        self.stays = Some(why);
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.run.stays = self.stays;
        self.run.runs &= self.stays.is_none();
        if self.run.runs {
            self.vm.open();
        }
    }
}

impl Recipient for Vm {
    fn load(&self, devices: &[DeviceSection]) -> Result<(), MachineError> {
        let ours = |section: &&DeviceSection| (&*section.name, section.version) == (SECTION, 1);
        let state = devices.iter().find(ours).map(|section| &section.body);
        let state = state.filter(|bytes| bytes.len() == 8 * WRITERS.len());
        let state = state.ok_or_else(|| MachineError::new("load its state", "there is none"))?;
        for (number, bytes) in self.writes.iter().zip(state.chunks_exact(8)) {
            let bytes = bytes.try_into().unwrap_or_default();
            number.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn start(&self) -> Result<(), MachineError> {
        self.go()
    }
}

/// Where threads look whether they are to rest, and somebody waits until they do.
struct Gate {
    threads: usize,
    /// Whether there is anything to look at: asked before each piece of work, so without a lock.
    is_shut: AtomicBool,
    state: Mutex<(Order, usize)>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Rest,
    Go,
    End,
}

impl Gate {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            is_shut: AtomicBool::new(true),
            state: Mutex::new((Order::Rest, 0)),
            changed: Condvar::new(),
        }
    }

    /// Between two pieces of work; whether there is to be another one.
    fn pass(&self) -> bool {
        if !self.is_shut.load(Ordering::Acquire) {
            return true;
        }
        let mut state = lock(&self.state);
        state.1 += 1;
        self.changed.notify_all();
        let rests = |state: &mut (Order, usize)| state.0 == Order::Rest;
        let waited = self.changed.wait_while(state, rests);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        state.1 -= 1;
        state.0 == Order::Go
    }

    fn set(&self, order: Order) {
        lock(&self.state).0 = order;
        self.is_shut.store(order != Order::Go, Ordering::Release);
        self.changed.notify_all();
    }

    /// All are told to rest, and do when this returns.
    fn rest(&self) {
        self.set(Order::Rest);
        let work = |state: &mut (Order, usize)| state.1 < self.threads;
        drop(self.changed.wait_while(lock(&self.state), work));
    }
}

/// A machine with its threads, which end with it.
struct Vmm {
    vm: Arc<Vm>,
    threads: Vec<JoinHandle<()>>,
}

impl Vmm {
    fn new(memory: Arc<Memory>) -> Self {
        let vm = Arc::new(Vm::new(memory));
        let start = |writer| {
            let vm = vm.clone();
            std::thread::spawn(move || vm.write(writer))
        };
        let threads = (0..WRITERS.len()).map(start).collect();
        Self { vm, threads }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.vm.vcpus.set(Order::End);
        self.vm.device.set(Order::End);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
