//! The entries of page tables, as `/proc/self/pagemap` shows them: eight bytes a page.
//!
//! See the kernel's `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::uffd::{RegisterMode, Uffd};
use crate::{Mapping, held, page_size};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page frame of what is present, or the place on a swap device; zero without the right to see it.
const FRAME: u64 = (1 << 55) - 1;
/// Entries read at once.
const ENTRIES: usize = 512;

/// Calls `found` with the runs of pages that exist. What looks swapped exists unless it is a
/// `marker`.
pub(super) fn existing(
    file: &File,
    range: Range<usize>,
    marker: Option<u64>,
    found: &mut dyn FnMut(Range<usize>),
) -> io::Result<()> {
    let exists =
        |entry: u64| entry & PRESENT != 0 || entry & SWAPPED != 0 && marker != Some(entry & FRAME);
    let page = page_size();
    let mut run = range.start..range.start;
    let mut bytes = [0u8; ENTRIES * 8];
    while run.end < range.end {
        let first = run.end;
        let count = ((range.end - first) / page).min(ENTRIES);
        file.read_exact_at(&mut bytes[..count * 8], (first / page * 8) as u64)?;
        for entry in bytes[..count * 8].chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            if exists(entry) {
                run.end += page;
                continue;
            }
            if !run.is_empty() {
                found(run.clone());
            }
            run = run.end + page..run.end + page;
        }
    }
    if !run.is_empty() {
        found(run);
    }
    Ok(())
}

/// Whether this view of page tables has frames in it.
pub(super) fn shows_frames(file: &File) -> bool {
    let here = std::hint::black_box(0u8);
    entry(file, &raw const here as usize).is_some_and(|entry| entry & FRAME != 0)
}

/// The frame in the entry of an absent page that `uffd` protects, if this process is shown it. The
/// kernel makes all of these markers alike.
pub(crate) fn probe_marker(uffd: &Uffd) -> Option<u64> {
    let page = Mapping::anonymous(page_size(), false).ok()?;
    let range = page.range(0, page.len());
    uffd.register(range.clone(), RegisterMode::WriteProtect)
        .ok()?;
    uffd.protect(range.clone()).ok()?;
    let entry = entry(&held::file(held::PAGEMAP).ok()?, range.start)?;
    let marked = entry & (PRESENT | SWAPPED) == SWAPPED && entry & FRAME != 0;
    marked.then_some(entry & FRAME)
}

fn entry(file: &File, address: usize) -> Option<u64> {
    let mut entry = [0u8; 8];
    file.read_exact_at(&mut entry, (address / page_size() * 8) as u64)
        .ok()?;
    Some(u64::from_ne_bytes(entry))
}
