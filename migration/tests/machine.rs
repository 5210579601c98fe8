//! A machine whose vCPUs are threads that stop when told to, between two writes, and whose RAM is
//! therefore known exactly at each pause: the threads keep a shadow of what they wrote.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use paguro_migration::Memory;
use paguro_migration::machine::{Board, Machine, MachineError, Paused, Stay, Writer, WriterClass};
use paguro_testkit::{IN_VAIN, wait_until};
use paguro_wire::device::{DeviceSection, SectionWriter};

/// State that the vCPUs and the control side share.
struct Shared {
    memory: Arc<Memory>,
    /// The value of each page, by block.
    shadow: Vec<Box<[AtomicU64]>>,
    pause: AtomicUsize,
    parked: Mutex<usize>,
    changed: Condvar,
    quit: AtomicBool,
    writes: AtomicU64,
}

/// The machine.
pub struct ThreadMachine {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// What RAM was at the last pause in which devices were saved.
    pub picture: Mutex<Vec<Vec<u64>>>,
    pub writers: Vec<Writer>,
    /// Whether it says that KVM takes its faults.
    pub faults_in_kernel: bool,
    /// Why it stays at rest, if it does.
    pub stays: Mutex<Option<Stay>>,
    /// Whether it can be resumed after a pause.
    pub resumes: AtomicBool,
}

impl ThreadMachine {
    /// Starts `vcpus` threads that write random pages among the first `span` of each block.
    pub fn start(memory: Arc<Memory>, vcpus: usize, span: usize) -> Self {
        let shadow = memory
            .ram()
            .blocks()
            .iter()
            .map(|b| (0..b.pages()).map(|_| AtomicU64::new(0)).collect());
        let shared = Arc::new(Shared {
            shadow: shadow.collect(),
            memory,
            pause: AtomicUsize::new(0),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            quit: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        });
        let threads = (0..vcpus)
            .map(|index| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.vcpu(index, vcpus, span))
            })
            .collect();
        let writers = vec![Writer {
            name: "vcpus".into(),
            class: WriterClass::Seen,
        }];
        Self {
            shared,
            threads,
            picture: Mutex::default(),
            writers,
            faults_in_kernel: false,
            stays: Mutex::default(),
            resumes: AtomicBool::new(true),
        }
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// Waits until the guest has written `count` more pages: it is alive and not held up.
    pub fn run_on(&self, count: u64) {
        let until = self.writes() + count;
        wait_until("the guest to write", || {
            self.writes() >= until || self.threads.is_empty()
        });
    }
}

impl Drop for ThreadMachine {
    fn drop(&mut self) {
        {
            // Or somebody who has just looked, and does not wait yet, would not hear of it.
            let parked = self.shared.parked.lock();
            let _parked = parked.unwrap_or_else(PoisonError::into_inner);
            self.shared.quit.store(true, Ordering::Release);
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn vcpu(&self, index: usize, vcpus: usize, span: usize) {
        let mut state = index as u64 + 1;
        while !self.quit.load(Ordering::Acquire) {
            if self.pause.load(Ordering::Acquire) > 0 {
                self.park();
                continue;
            }
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            for (number, block) in self.memory.ram().blocks().iter().enumerate() {
                let mine = span.min(block.pages()).div_ceil(vcpus);
                let page = (state >> 33) as usize % mine * vcpus + index;
                if page >= block.pages() || block.is_read_only() {
                    continue;
                }
                self.shadow[number][page].store(state, Ordering::Relaxed);
                block.mapping().copy_in(page * 4096, &state.to_le_bytes());
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn park(&self) {
        let mut parked = self.parked.lock().unwrap();
        *parked += 1;
        self.changed.notify_all();
        while self.pause.load(Ordering::Acquire) > 0 && !self.quit.load(Ordering::Acquire) {
            parked = self.changed.wait(parked).unwrap();
        }
        *parked -= 1;
    }
}

struct Rest<'a> {
    machine: &'a ThreadMachine,
    stays: Option<Stay>,
}

impl Rest<'_> {
    fn go_on(&self) -> Result<(), MachineError> {
        if !self.machine.resumes.load(Ordering::Acquire) {
            return Err(MachineError::new("go on", "it was told not to"));
        }
        let _parked = self.machine.shared.parked.lock().unwrap();
        self.machine.shared.pause.fetch_sub(1, Ordering::AcqRel);
        self.machine.shared.changed.notify_all();
        Ok(())
    }
}

impl Board for ThreadMachine {
    fn memory(&self) -> &Arc<Memory> {
        &self.shared.memory
    }

    fn machine_name(&self) -> &str {
        "paguro-1"
    }
}

impl Machine for ThreadMachine {
    fn writers(&self) -> Vec<Writer> {
        self.writers.clone()
    }

    fn faults_in_kernel(&self) -> bool {
        self.faults_in_kernel
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        self.shared.pause.fetch_add(1, Ordering::AcqRel);
        let mut parked = self.shared.parked.lock().unwrap();
        let runs = |parked: &mut usize| *parked < self.threads.len();
        let changed = &self.shared.changed;
        parked = changed.wait_timeout_while(parked, IN_VAIN, runs).unwrap().0;
        assert_eq!(*parked, self.threads.len(), "a vCPU does not stop");
        drop(parked);
        Ok(Box::new(Rest {
            machine: self,
            stays: None,
        }))
    }
}

impl Paused for Rest<'_> {
    fn was_running(&self) -> bool {
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        let shadow = &self.machine.shared.shadow;
        let picture = shadow.iter().map(|block| {
            block
                .iter()
                .map(|value| value.load(Ordering::Relaxed))
                .collect()
        });
        *self.machine.picture.lock().unwrap() = picture.collect();
        let section = SectionWriter::new("paguro/test", 0, 1)
            .u64("answer", 42)
            .finish();
        Ok(vec![
            section.map_err(|error| MachineError::new("save", error))?,
        ])
    }

    fn resume(mut self: Box<Self>) -> Result<(), MachineError> {
        // What is left to do when it is dropped: nothing.
        self.stays = Some(Stay::Stopped);
        self.go_on()
    }

    fn stay(&mut self, why: Stay) {
        self.stays = Some(why);
        *self.machine.stays.lock().unwrap() = Some(why);
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if self.stays.is_none() {
            let _ = self.go_on();
        }
    }
}
