//! Which pages of a mapping exist.
//!
//! A page that is absent is zero by definition and must not be read: reading makes it resident.
//! Each kind of memory is asked in its own way, and best *before* it is write-protected: a
//! protected absent page leaves a marker that looks like a swapped page.
//!
//! **So does a page that the kernel is just moving** to another place in memory (compaction, or
//! another node): it is there, and only its entry says otherwise for a while. `mincore` tells the two
//! apart: what is being moved is in memory, a marker is nothing. It is asked about pages that are
//! neither present nor nothing.
//!
//! The same walk also tells which pages were *written* since they were protected, where the
//! protection is of the kind that tells nobody ([`Pagemap::take_written`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

use crate::{Host, Mapping, page_size};

/// `_IOWR('f', 16, struct pm_scan_arg)`. Not in linux-raw-sys.
const PAGEMAP_SCAN: Opcode = 0xC060_6610;
const _: () = assert!(size_of::<raw::pm_scan_arg>() == 0x60);

/// Which pages count as existing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// In memory, or swapped out (or, after protecting, marked).
    PresentOrSwapped,
    /// In memory, also while the kernel moves it.
    Present,
    /// Mapped by a huge page.
    Huge,
}

/// A view of this process' page tables.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    scan: bool,
}

impl Pagemap {
    /// Opens it; by `PAGEMAP_SCAN` where the host has it, else entry by entry.
    ///
    /// # Errors
    ///
    /// The host's: `/proc` is not mounted.
    pub fn open(host: &Host) -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/pagemap")?,
            scan: host.pagemap_scan,
        })
    }

    /// Calls `found` with the byte ranges (offsets in the mapping, ascending) whose pages exist in
    /// this process' page tables. Right for anonymous memory; for shared memory a page may be in
    /// the file and not here. Huge pages are found by `PAGEMAP_SCAN` only.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn scan(
        &self,
        mapping: &Mapping,
        part: Range<usize>,
        which: Which,
        mut found: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        let range = mapping.range(part.start, part.len());
        let base = mapping.addr();
        let mut found = |start: usize, end: usize| found(start - base..end - base);
        if self.scan {
            scan(self.file.as_fd(), range, which, &mut found)
        } else {
            self.read_entries(range, which, &mut found)
        }
    }

    /// Calls `found` with the byte ranges of pages that were written since they were protected by
    /// a userfaultfd that tells nobody, and protects them again: in one step each, so that no write
    /// between is lost. Pages that were never protected count as written.
    ///
    /// # Errors
    ///
    /// The kernel's: EPERM if the range is not registered like that. Ranges that `found` was called
    /// with before are protected again.
    pub fn take_written(
        &self,
        mapping: &Mapping,
        part: Range<usize>,
        mut found: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        let base = mapping.addr();
        walk(
            self.file.as_fd(),
            mapping.range(part.start, part.len()),
            &Query {
                flags: raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC,
                all_of: raw::PAGE_IS_WRITTEN,
                any_of: 0,
                told: raw::PAGE_IS_WRITTEN,
            },
            &mut |regions| {
                for region in regions {
                    found(region.start as usize - base..region.end as usize - base);
                }
                Ok(())
            },
        )
    }

    fn read_entries(
        &self,
        range: Range<usize>,
        which: Which,
        found: &mut dyn FnMut(usize, usize),
    ) -> io::Result<()> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        // Whether it is one that is looked for, and whether that is sure.
        let look = |entry: u64| match (which, entry & PRESENT != 0, entry & SWAPPED != 0) {
            (Which::PresentOrSwapped, present, swapped) => (present || swapped).then_some(true),
            (Which::Present, true, _) => Some(true),
            (Which::Present, false, true) => Some(false),
            _ => None,
        };
        // Not told by the entries.
        if which == Which::Huge {
            return Ok(());
        }
        let page = page_size();
        let mut bytes = [0u8; 4096];
        let mut runs: Vec<Run> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at) / page).min(bytes.len() / 8);
            self.file
                .read_exact_at(&mut bytes[..pages * 8], (at / page * 8) as u64)?;
            runs.clear();
            for (index, entry) in bytes[..pages * 8].chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                let here = at + index * page..at + (index + 1) * page;
                match (look(entry), runs.last_mut()) {
                    (None, _) => {}
                    (Some(surely), Some(last))
                        if (last.pages.end, last.surely) == (here.start, surely) =>
                    {
                        last.pages.end = here.end;
                    }
                    (Some(surely), _) => runs.push(Run {
                        pages: here,
                        surely,
                    }),
                }
            }
            at += pages * page;
            tell(runs.drain(..), range.end, found)?;
        }
        Ok(())
    }
}

fn scan(
    pagemap: BorrowedFd<'_>,
    range: Range<usize>,
    which: Which,
    found: &mut dyn FnMut(usize, usize),
) -> io::Result<()> {
    const EITHER: u32 = raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED;
    // No more is asked for than is needed, so that neighbours join into one region.
    let (any_of, told) = match which {
        Which::PresentOrSwapped => (EITHER, 0),
        Which::Present => (EITHER, raw::PAGE_IS_PRESENT),
        Which::Huge => (raw::PAGE_IS_HUGE, 0),
    };
    let query = Query {
        flags: 0,
        all_of: 0,
        any_of,
        told,
    };
    walk(pagemap, range.clone(), &query, &mut |regions| {
        let runs = regions.iter().map(|region| Run {
            pages: region.start as usize..region.end as usize,
            surely: u64::from(told) & region.categories == u64::from(told),
        });
        tell(runs, range.end, found)
    })
}

/// Pages that are looked for, or may be.
struct Run {
    pages: Range<usize>,
    surely: bool,
}

/// Calls `found` with what is surely there, and with what of the rest is in memory. The runs end
/// before `limit`, and all up to there is of one mapping of anonymous memory.
fn tell(
    runs: impl Iterator<Item = Run>,
    limit: usize,
    found: &mut dyn FnMut(usize, usize),
) -> io::Result<()> {
    // Of this batch only: what was asked before the entries were read says nothing about them.
    let mut in_core = InCore::new();
    for Run { pages, surely } in runs {
        match surely {
            true => found(pages.start, pages.end),
            false => in_core.find(pages, limit, found)?,
        }
    }
    Ok(())
}

/// What `mincore` said of some pages.
struct InCore {
    pages: Range<usize>,
    states: [u8; InCore::PAGES],
}

impl InCore {
    /// Asked about at once.
    const PAGES: usize = 512;

    fn new() -> Self {
        Self {
            pages: 0..0,
            states: [0; Self::PAGES],
        }
    }

    fn find(
        &mut self,
        pages: Range<usize>,
        limit: usize,
        found: &mut dyn FnMut(usize, usize),
    ) -> io::Result<()> {
        let page = page_size();
        let mut at = pages.start;
        while at < pages.end {
            if !self.pages.contains(&at) {
                self.ask(at..limit.min(at + Self::PAGES * page))?;
            }
            let end = pages.end.min(self.pages.end);
            let index = |at: usize| (at - self.pages.start) / page;
            for run in self.states[index(at)..index(end)].chunk_by(|one, next| one == next) {
                let next = at + run.len() * page;
                if run[0] & 1 != 0 {
                    found(at, next);
                }
                at = next;
            }
        }
        Ok(())
    }

    fn ask(&mut self, pages: Range<usize>) -> io::Result<()> {
        mincore(&pages, &mut self.states)?;
        self.pages = pages;
        Ok(())
    }
}

/// A byte for each page of a range: odd if it is in memory.
fn mincore(range: &Range<usize>, states: &mut [u8]) -> io::Result<()> {
    assert!(range.len().div_ceil(page_size()) <= states.len());
    // SAFETY: it reads nothing of the range, and writes a byte for each page, for which there is room.
    let done = unsafe { libc::mincore(range.start as *mut _, range.len(), states.as_mut_ptr()) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `PAGEMAP_SCAN` is asked.
struct Query {
    flags: u32,
    all_of: u32,
    any_of: u32,
    told: u32,
}

fn walk(
    pagemap: BorrowedFd<'_>,
    range: Range<usize>,
    query: &Query,
    told: &mut dyn FnMut(&[raw::page_region]) -> io::Result<()>,
) -> io::Result<()> {
    const REGIONS: usize = 256;
    let mut regions = [raw::page_region {
        start: 0,
        end: 0,
        categories: 0,
    }; REGIONS];
    let mut start = range.start as u64;
    while start < range.end as u64 {
        let mut arg = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: u64::from(query.flags),
            start,
            end: range.end as u64,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(query.all_of),
            category_anyof_mask: u64::from(query.any_of),
            return_mask: u64::from(query.told),
        };
        // SAFETY: the kernel reads and writes one `pm_scan_arg` and at most `vec_len` regions at
        // `vec`, which outlive the call. The range is guest RAM, which may be protected at any time.
        let filled = unsafe { ioctl(pagemap, CountingScan(Updater::new(&mut arg)))? };
        told(&regions[..filled])?;
        if arg.walk_end <= start {
            return Err(Errno::IO.into());
        }
        start = arg.walk_end;
    }
    Ok(())
}

/// `Updater` drops the number that the ioctl returns; this keeps it.
struct CountingScan<'a>(Updater<'a, PAGEMAP_SCAN, raw::pm_scan_arg>);

// SAFETY: all is delegated to `Updater`, which passes a pointer to a live `pm_scan_arg`; only the
// return value, a count of regions bounded by `vec_len`, is read in addition.
unsafe impl rustix::ioctl::Ioctl for CountingScan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<usize> {
        Ok(out as usize)
    }
}

pub(crate) fn has_pagemap_scan(page: &Mapping) -> bool {
    File::open("/proc/self/pagemap").is_ok_and(|file| {
        let range = page.range(0, page.len());
        scan(file.as_fd(), range, Which::Present, &mut |_, _| {}).is_ok()
    })
}

/// Calls `found` with the byte ranges of a file (memfd, tmpfs, a sparse file) that hold data.
///
/// # Errors
///
/// The file's.
pub fn file_data(
    file: BorrowedFd<'_>,
    part: Range<u64>,
    mut found: impl FnMut(Range<u64>),
) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let mut at = part.start;
    while at < part.end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data behind `at`.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if data >= part.end {
            break;
        }
        let hole = seek(file, SeekFrom::Hole(data))?.min(part.end);
        found(data..hole);
        at = hole;
    }
    Ok(())
}

/// Calls `found` with the byte ranges of a hugetlbfs mapping that are present here.
///
/// # Errors
///
/// The kernel's.
pub fn hugetlb(
    mapping: &Mapping,
    part: Range<usize>,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let huge = mapping.page_bytes();
    // The caller may ask about a part of a page.
    for start in (part.start / huge * huge..part.end).step_by(huge) {
        let range = mapping.range(start, huge);
        let mut one = [0u8];
        mincore(&(range.start..range.start + page_size()), &mut one)?;
        if one[0] & 1 != 0 {
            found(start.max(part.start)..(start + huge).min(part.end));
        }
    }
    Ok(())
}
