//! `PAGEMAP_SCAN` (Linux 6.7): the kernel walks page tables and tells runs of pages.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

use crate::{Mapping, held};

/// `_IOWR('f', 16, struct pm_scan_arg)`. Not in linux-raw-sys.
const PAGEMAP_SCAN: Opcode = 0xC060_6610;
const _: () = assert!(size_of::<raw::pm_scan_arg>() == 0x60);

/// What `PAGEMAP_SCAN` is asked.
pub(super) struct Query {
    pub(super) flags: u32,
    pub(super) all_of: u32,
    pub(super) any_of: u32,
    pub(super) told: u32,
}

/// Calls `told` with the regions of a range that answer the query, some at a time, ascending.
pub(super) fn walk(
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

/// Whether the host has it.
pub(crate) fn has_pagemap_scan(page: &Mapping) -> bool {
    let query = Query {
        flags: 0,
        all_of: 0,
        any_of: raw::PAGE_IS_PRESENT,
        told: 0,
    };
    held::file(held::PAGEMAP).is_ok_and(|file| {
        let range = page.range(0, page.len());
        walk(file.as_fd(), range, &query, &mut |_| Ok(())).is_ok()
    })
}
