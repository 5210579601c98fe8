//! What exists in the file behind a mapping.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::{Mapping, page_size};

/// Pages asked about at once.
const WINDOW: usize = 512;

/// Calls `found` with the byte ranges (offsets in the mapping, ascending) of a shared mapping of
/// memory (memfd, tmpfs) that hold data, in memory or swapped out, whoever made them. The mapping
/// begins at byte `base` of the file. What is protected or mapped here makes no difference.
///
/// The file tells cheaply where the next data is (`SEEK_DATA` leaps over holes), but not where they
/// end: `SEEK_HOLE` walks over all of them, 3 ms for 256 MiB. So the end is asked of `mincore`, 2 MiB at
/// a time. It knows what is in memory and nothing of what was swapped out; there the file is
/// asked, page by page.
///
/// # Errors
///
/// The kernel's.
pub fn shared(
    mapping: &Mapping,
    file: BorrowedFd<'_>,
    base: u64,
    part: Range<usize>,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let page = page_size();
    let next = |at: usize, end: usize| -> io::Result<Option<usize>> {
        let data = next_data(file, base + at as u64, base + end as u64)?;
        Ok(data.map(|data| (data - base) as usize / page * page))
    };
    let mut states = [0u8; WINDOW];
    let mut at = part.start;
    while let Some(data) = next(at, part.end)? {
        let end = (data / page / WINDOW + 1) * WINDOW * page;
        let end = end.min(part.end.next_multiple_of(page));
        let states = &mut states[..(end - data) / page];
        mincore(&mapping.range(data, end - data), states)?;
        at = data;
        for run in states.chunk_by(|one, next| one & 1 == next & 1) {
            let run_end = at + run.len() * page;
            if run[0] & 1 != 0 {
                found(at..run_end);
            } else {
                while let Some(data) = next(at, run_end)? {
                    found(data..data + page);
                    at = data + page;
                }
            }
            at = run_end;
        }
    }
    Ok(())
}

/// Calls `found` with the byte ranges of a sparse file that hold data. For a file on a disk: memory
/// is walked through page by page to the end of its data, however long that is, at each call; see
/// [`shared`].
///
/// # Errors
///
/// The file's.
pub fn file_data(
    file: BorrowedFd<'_>,
    part: Range<u64>,
    mut found: impl FnMut(Range<u64>),
) -> io::Result<()> {
    let mut at = part.start;
    while let Some(data) = next_data(file, at, part.end)? {
        let hole = seek(file, SeekFrom::Hole(data))?.min(part.end);
        found(data..hole);
        at = hole;
    }
    Ok(())
}

/// Calls `found` with the byte ranges of a mapping of huge pages of the pool that have content. A shared
/// mapping is given with its file, and the byte of the file at which it begins.
///
/// Pages of such a file that are mapped elsewhere only (they were handed over by another process, which
/// wrote them) are not in the page tables here, and this kind of file does not tell where its
/// data are. But it can be read without making its holes pages, so that is what is done with pages that
/// are neither mapped here nor known to be there because all of the file is. A hole of 2 MiB takes
/// some 100 us, and a page with content is known by its first bytes.
///
/// # Errors
///
/// The kernel's.
pub fn hugetlb(
    mapping: &Mapping,
    file: Option<(BorrowedFd<'_>, u64)>,
    part: Range<usize>,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let huge = mapping.page_bytes();
    let filled = match file {
        Some((file, _)) => Filled::of(file)?,
        None => Filled::Nowhere,
    };
    let in_file = |start: usize| match (&filled, file) {
        (Filled::Everywhere, _) => Ok(true),
        (Filled::Partly, Some((file, base))) => has_content(file, base + start as u64, huge),
        _ => Ok(false),
    };
    // The caller may ask about a part of a page.
    for start in (part.start / huge * huge..part.end).step_by(huge) {
        let range = mapping.range(start, huge);
        let mut one = [0u8];
        mincore(&(range.start..range.start + page_size()), &mut one)?;
        if one[0] & 1 != 0 || in_file(start)? {
            found(start.max(part.start)..(start + huge).min(part.end));
        }
    }
    Ok(())
}

/// How much of a file has pages.
enum Filled {
    Nowhere,
    Partly,
    Everywhere,
}

impl Filled {
    fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let whole = rustix::fs::fstat(file)?.st_size as u64;
        Ok(match file_bytes(file)? {
            0 => Self::Nowhere,
            bytes if bytes >= whole => Self::Everywhere,
            _ => Self::Partly,
        })
    }
}

/// Bytes of a file that have pages.
///
/// # Errors
///
/// The file's.
pub fn file_bytes(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_blocks as u64 * 512)
}

/// Whether any byte of a range of a file is not zero.
fn has_content(file: BorrowedFd<'_>, from: u64, bytes: usize) -> io::Result<bool> {
    let mut part = vec![0u8; 64 << 10];
    let mut at = from;
    while at < from + bytes as u64 {
        let most = part.len().min((from + bytes as u64 - at) as usize);
        match rustix::io::pread(file, &mut part[..most], at) {
            Ok(0) => break,
            Ok(count) if part[..count].iter().any(|&byte| byte != 0) => return Ok(true),
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Where the next data of a file are, from byte `at` on and before `end`.
fn next_data(file: BorrowedFd<'_>, at: u64, end: u64) -> io::Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data).filter(|&data| data < end)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
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
