//! The limits that the host sets, found without the engine: a machine in this process whose RAM is
//! protected and released by nothing but the bare calls.
//!
//! * A **bare fault round trip** is the stall of a guest that writes a protected page when a thread
//!   waits for the fault and releases this one page at once: nothing is claimed, copied or counted.
//! * **Protect once**: all of RAM is protected and all of it let go again, in the steps in which
//!   the engine does it, with nothing saved; a write meanwhile releases the 2 MiB around it.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use paguro_lab::ruler::{Ruler, Window};
use paguro_lab::{ProgressFile, now_ns};
use paguro_migration::Memory;
use paguro_ram::{GuestRam, PageKind, RamBlock};
use paguro_sys::{
    Event, FaultKind, HUGE_PAGE_BYTES, Host, RegisterMode, Uffd, UffdError, page_size,
};
use paguro_vmm::{Accel, Config, Vm};
use paguro_workload::Spec;
use paguro_workload::layout::AREA_START;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::run::MOST;

/// Between two steps, as the engine has it.
const BREATH: Duration = Duration::from_micros(30);

/// How often the thread that releases looks whether it is still needed.
const LOOK_UP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A machine in this process, its guest at full speed.
pub struct Rig {
    // In this order: the descriptor closes, which wakes who waits, then the machine ends.
    reader: Option<Reader>,
    uffd: Arc<Uffd>,
    vm: Arc<Vm>,
    ram: GuestRam,
    progress: Arc<ProgressFile>,
}

struct Reader {
    stop: Arc<AtomicBool>,
    release_bytes: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Rig {
    /// Starts one with `set_bytes` of workload and waits until all of it was written once.
    pub fn start(
        accel: Accel,
        pages: PageKind,
        spec: Spec,
        memory_bytes: u64,
        gap_threshold_us: u64,
        host: &Host,
    ) -> Result<Self> {
        let progress = Arc::new(ProgressFile::create(1)?);
        let config = Config {
            accel,
            pages,
            workload: spec,
            memory_bytes,
            gap_threshold_us,
            progress: Some(progress.path().to_owned()),
            ..Config::default()
        };
        let blocks = config.ram_layout()?.into_iter().map(RamBlock::new);
        let ram = GuestRam::new(blocks.collect::<Result<_, _>>()?);
        let vm = Vm::create(config, Memory::new(*host, ram.clone()))?;
        vm.boot()?;
        fill(&ram);
        vm.start()?;
        let uffd = Arc::new(host.open_uffd().context("no userfaultfd")?);
        let reader = Reader::start(uffd.clone())?;
        let rig = Self {
            reader: Some(reader),
            uffd,
            vm,
            ram,
            progress,
        };
        let set = spec.set_bytes.unwrap_or(memory_bytes) / page_size() as u64;
        rig.wait_for_writes(2 * set)?;
        Ok(rig)
    }

    fn wait_for_writes(&self, writes: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.vm.progress(0).is_none_or(|now| now.writes < writes) {
            if Instant::now() > deadline {
                bail!("the guest did not write its memory once within a minute");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Watches its guest from now on.
    pub fn ruler(&self) -> Result<Ruler> {
        Ok(Ruler::lay_on_list(self.progress.clone(), MOST)?)
    }

    /// Protects `pages` pages of the workload's area; the window in which the guest met them.
    pub fn fault_once(&self, pages: usize) -> Result<Window> {
        let reader = self.reader.as_ref().context("a rig without a reader")?;
        reader.release_bytes.store(page_size(), Ordering::Release);
        let start = self.ram.blocks()[0].mapping().addr() + AREA_START as usize;
        let range = start..start + pages * page_size();
        self.uffd
            .register(range.clone(), RegisterMode::WriteProtect)?;
        let before = reader.answered.load(Ordering::Acquire);
        retry(|| self.uffd.protect(range.clone()))?;
        let from = now_ns();
        let deadline = Instant::now() + Duration::from_secs(5);
        let met = || reader.answered.load(Ordering::Acquire) - before;
        while met() < pages && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let window = Window::new(from, now_ns());
        self.let_go(range)?;
        Ok(window)
    }

    /// Protects all and lets all go; the window from before to after.
    pub fn protect_once(&self) -> Result<Window> {
        let reader = self.reader.as_ref().context("a rig without a reader")?;
        reader
            .release_bytes
            .store(HUGE_PAGE_BYTES, Ordering::Release);
        paguro_sys::boost_timer();
        let from = now_ns();
        for range in self.ranges() {
            self.uffd
                .register(range.clone(), RegisterMode::WriteProtect)?;
            for part in steps(range) {
                retry(|| self.uffd.protect(part.clone()))?;
                std::thread::sleep(BREATH);
            }
        }
        for part in self.ranges().flat_map(steps) {
            self.let_go(part)?;
            std::thread::sleep(BREATH);
        }
        Ok(Window::new(from, now_ns()))
    }

    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.ram
            .blocks()
            .iter()
            .map(|block| block.addresses_of(&(0..block.pages())))
    }

    /// Protection goes with the registration; writers that wait are woken by hand.
    fn let_go(&self, range: Range<usize>) -> Result<()> {
        retry(|| self.uffd.unregister(range.clone()))?;
        retry(|| self.uffd.wake(range.clone()))?;
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for range in self.ranges().collect::<Vec<_>>() {
            if let Err(error) = self.let_go(range) {
                tracing::warn!(%error, "a range stays protected");
            }
        }
        if let Some(reader) = self.reader.take() {
            reader.stop.store(true, Ordering::Release);
            if reader.thread.join().is_err() {
                tracing::error!("the thread that releases pages panicked");
            }
        }
        self.vm.quit(paguro_vmm::ShutdownCause::HostQmpQuit);
    }
}

impl Reader {
    fn start(uffd: Arc<Uffd>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let release_bytes = Arc::new(AtomicUsize::new(page_size()));
        let answered = Arc::new(AtomicUsize::new(0));
        let (ended, bytes, count) = (stop.clone(), release_bytes.clone(), answered.clone());
        let answer = move || {
            paguro_sys::raise_priority();
            while !ended.load(Ordering::Acquire) {
                answer(&uffd, bytes.load(Ordering::Acquire), &count);
            }
        };
        let thread = std::thread::Builder::new()
            .name("release".to_owned())
            .spawn(answer)?;
        Ok(Self {
            stop,
            release_bytes,
            answered,
            thread,
        })
    }
}

fn answer(uffd: &Uffd, bytes: usize, answered: &AtomicUsize) {
    let mut fds = [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN)];
    if !poll(&mut fds, Some(&LOOK_UP)).is_ok_and(|ready| ready > 0) {
        return;
    }
    let mut events = [Event::Other(0); 16];
    let count = uffd.read(&mut events).unwrap_or(0);
    for event in &events[..count] {
        let Event::Fault(fault) = event else { continue };
        if fault.kind != FaultKind::WriteProtect {
            continue;
        }
        let start = fault.address / bytes * bytes;
        let range = start..start + bytes;
        // Let go meanwhile: who waits is woken by that.
        if retry(|| uffd.release(range.clone())).is_err() {
            let page = fault.address..fault.address + page_size();
            if let Err(error) = retry(|| uffd.wake(page.clone())) {
                tracing::debug!(%error, "nobody to wake");
            }
        }
        answered.fetch_add(1, Ordering::AcqRel);
    }
}

/// Everything but what the machine itself has put there.
fn fill(ram: &GuestRam) {
    let piece: Vec<u8> = (0..1usize << 20).map(|at| (at / 7) as u8 | 1).collect();
    for block in ram.blocks() {
        let mut at = AREA_START.saturating_sub(block.guest_address()) as usize;
        while at < block.used_bytes() {
            let length = piece.len().min(block.used_bytes() - at);
            block.mapping().copy_in(at, &piece[..length]);
            at += length;
        }
    }
}

fn steps(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(HUGE_PAGE_BYTES)
        .map(move |at| at..(at + HUGE_PAGE_BYTES).min(end))
}

fn retry(call: impl Fn() -> Result<(), UffdError>) -> Result<(), UffdError> {
    loop {
        match call() {
            Err(UffdError::Again) => std::thread::yield_now(),
            answer => return answer,
        }
    }
}
