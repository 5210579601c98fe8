//! A thread that fills pages of guest RAM.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Marks;
use paguro_ram::{GuestRam, RamBlock};
use paguro_sys::RateLimit;
use paguro_workload::layout::{PAGE_BYTES, PARAMS_GPA};
use paguro_workload::params::PARAMS_BYTES;
use paguro_workload::{Params, Stream};
use rustix::io::Errno;

use crate::control::{Control, Hold};
use crate::gate::{Gate, Passage};
use crate::{VmError, caught};

/// One writer of the device.
pub(super) struct Filler {
    /// Its number in the workload.
    pub(super) number: u64,
    /// 0 for as fast as it goes.
    pub(super) rate_pages_per_s: u64,
    /// Writes complete: all below this number are in RAM, no other is.
    pub(super) done: AtomicU64,
    pub(super) gate: Gate,
    /// Whether RAM may have to be waited for, for as long as a file is away.
    pub(super) waits: bool,
    /// Who tracks writes learns of its own from here.
    pub(super) marks: Marks,
}

impl Hold for Filler {
    fn open(&self) {
        self.gate.open();
    }

    fn wake(&self) {
        self.gate.wake();
    }

    fn close(&self) {
        self.gate.close();
    }

    fn wait_at_rest(&self, deadline: Instant) -> bool {
        self.gate.wait_at_rest(deadline)
    }
}

/// A page, aligned as `O_DIRECT` wants it.
#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u8; PAGE_BYTES as usize]);

/// A page of guest RAM to be filled, and with what.
pub(super) struct Job {
    pub(super) block: Arc<RamBlock>,
    /// The block's number.
    pub(super) index: usize,
    pub(super) offset_bytes: usize,
    pub(super) content: Box<Page>,
    pub(super) marks: Marks,
}

impl Job {
    /// Has the page come, if it is still in a file: there is no way out of a write into one that does
    /// not come, and a pause would wait for it.
    fn touch(&self) {
        let mapping = self.block.mapping();
        mapping.touch(self.offset_bytes, PAGE_BYTES as usize);
    }
}

/// How pages are filled.
pub(super) trait Fill: Send {
    /// Pages that are filled at once, at most.
    fn batch(&self) -> usize;

    /// Fills pages, all of them different, and returns when all are filled.
    fn fill(&mut self, jobs: Vec<Job>) -> io::Result<()>;
}

/// Starts the writer's thread.
pub(super) fn spawn(
    filler: Arc<Filler>,
    mut how: Box<dyn Fill>,
    ram: GuestRam,
    control: Arc<Control>,
) -> io::Result<()> {
    let (its, name) = (filler.clone(), format!("x-dma{}", filler.number));
    let spawned = paguro_sys::NewThread::named(name).spawn(move || {
        let passage = its.gate.enter();
        paguro_sys::boost_timer();
        // It is at rest where it waits for a page.
        paguro_sys::wait_at_bus_errors(its.waits);
        caught::live(&passage, &control, "device x-dma", || {
            its.live(&passage, &mut *how, &ram)
        });
    });
    if spawned.is_err() {
        filler.gate.never_entered();
    }
    spawned.map(drop)
}

impl Filler {
    /// Works until it is to end.
    fn live(
        &self,
        passage: &Passage<'_>,
        how: &mut dyn Fill,
        ram: &GuestRam,
    ) -> Result<(), String> {
        if !passage.pass() {
            return Ok(());
        }
        let mut params = Err(String::new());
        if !passage.at_rest(|| params = self::params(ram)) {
            return Ok(());
        }
        let params = params?;
        let stream = Stream::device(&params, self.number)
            .ok_or("the workload in RAM has no pages for this device")?;
        let (rate, mut made) = (self.rate_pages_per_s, 0);
        let mut limit = RateLimit::new(made, rate).catches_up_within(MAX_BEHIND);
        while passage.pass() {
            if let Some(wait) = limit.due(made, rate) {
                passage.sleep(wait);
                continue;
            }
            let first = self.done.load(Ordering::Acquire);
            let jobs = batch(&params, &stream, first, how.batch(), ram, &self.marks)?;
            let count = jobs.len() as u64;
            if self.waits && !passage.at_rest(|| jobs.iter().for_each(Job::touch)) {
                return Ok(());
            }
            how.fill(jobs).map_err(|error| error.to_string())?;
            self.done.store(first + count, Ordering::Release);
            made += count;
        }
        Ok(())
    }
}

/// The writes from `first` on, up to the first that goes to a page of one before.
fn batch(
    params: &Params,
    stream: &Stream,
    first: u64,
    most: usize,
    ram: &GuestRam,
    marks: &Marks,
) -> Result<Vec<Job>, String> {
    let mut pages = Vec::with_capacity(most);
    let mut jobs = Vec::with_capacity(most);
    for n in first..first + most as u64 {
        let page = stream.page(n);
        if pages.contains(&page) {
            break;
        }
        pages.push(page);
        let gpa = params.area.gpa(page);
        let (index, block, offset_bytes) =
            locate(ram, gpa).ok_or_else(|| format!("page {page} at {gpa:#x} is not in RAM"))?;
        let mut content = Box::new(Page([0; PAGE_BYTES as usize]));
        stream.content(page, n).fill(stream.words(), &mut content.0);
        jobs.push(Job {
            block,
            index,
            offset_bytes,
            content,
            marks: marks.clone(),
        });
    }
    Ok(jobs)
}

fn locate(ram: &GuestRam, gpa: u64) -> Option<(usize, Arc<RamBlock>, usize)> {
    ram.blocks().iter().enumerate().find_map(|(index, block)| {
        let offset = gpa.checked_sub(block.guest_address())?;
        let end = offset.checked_add(PAGE_BYTES)?;
        (end <= block.used_bytes() as u64).then(|| (index, block.clone(), offset as usize))
    })
}

/// The workload that RAM says there is.
fn params(ram: &GuestRam) -> Result<Params, String> {
    let block = ram.blocks().first().ok_or("there is no RAM")?;
    let mut bytes = [0; PARAMS_BYTES];
    block.mapping().copy_out(PARAMS_GPA as usize, &mut bytes);
    Params::from_bytes(&bytes).map_err(|error| error.to_string())
}

/// Reads one page of `file` into guest RAM, and marks it: afterwards, and whatever came of it.
pub(super) fn read_into(file: BorrowedFd<'_>, from: u64, job: &mut Job) -> io::Result<()> {
    let read = read_page(file, from, job);
    let page = job.offset_bytes / PAGE_BYTES as usize;
    job.marks.mark(job.index, page..page + 1);
    read
}

/// Where the kernel must not take page faults for this process (a userfaultfd for user mode
/// only), it cannot read into a page that faults; the page is then read here and copied.
fn read_page(file: BorrowedFd<'_>, from: u64, job: &mut Job) -> io::Result<()> {
    let mapping = job.block.mapping();
    let bytes = PAGE_BYTES as usize;
    match mapping.read_file_at(file, from, job.offset_bytes, bytes) {
        Err(error) if error.raw_os_error() == Some(Errno::FAULT.raw_os_error()) => {
            let read = rustix::io::retry_on_intr(|| {
                rustix::io::pread(file, job.content.0.as_mut_slice(), from)
            })?;
            if read != bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            mapping.copy_in(job.offset_bytes, &job.content.0);
            Ok(())
        }
        done => done,
    }
}

/// Writes one page to `file`.
pub(super) fn write_page(file: BorrowedFd<'_>, at: u64, page: &Page) -> io::Result<()> {
    let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &page.0, at))?;
    if written != page.0.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Fills a page at a time, by `read(2)` from a file in memory.
pub(super) struct ByRead {
    file: OwnedFd,
}

impl ByRead {
    pub(super) fn new() -> Result<Self, VmError> {
        let file = rustix::fs::memfd_create("x-dma", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| VmError::host("make a memfd for the device x-dma")(error.into()))?;
        Ok(Self { file })
    }
}

impl Fill for ByRead {
    fn batch(&self) -> usize {
        1
    }

    fn fill(&mut self, jobs: Vec<Job>) -> io::Result<()> {
        for mut job in jobs {
            write_page(self.file.as_fd(), 0, &job.content)?;
            read_into(self.file.as_fd(), 0, &mut job)?;
        }
        Ok(())
    }
}

/// Behind by more than this (a pause), the rate begins anew.
const MAX_BEHIND: Duration = Duration::from_millis(10);
