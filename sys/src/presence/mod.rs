//! Which pages of a mapping exist.
//!
//! A page that is absent is zero by definition and must not be read: reading makes it resident.
//! Each kind of memory is asked in its own way. What is not sure counts as existing: that costs a
//! look at zeros, and the other mistake loses a page.
//!
//! # Neither present nor nothing
//!
//! Three kinds of entries of page tables look alike from outside: that of a page which was **swapped
//! out**, that of a page which the kernel is just **moving** to another place in memory
//! (compaction, another node), and the **marker** of an absent page that a userfaultfd protects. Only
//! the last one has no content. Whether the host swaps is no help: swap can be switched on at any
//! time, and a container's `/proc/swaps` does not show it.
//!
//! What tells them apart is the frame that an entry names. The one in a marker is no place on any
//! swap device, and is the same for all markers, so the host is asked once what it looks like
//! ([`Host::marker`]). The kernel shows frames to processes with `CAP_SYS_ADMIN`; to all others
//! markers look like swapped pages, and count as existing. So who wants to know what is absent there
//! asks *before* protecting.
//!
//! The same walk also tells which pages were *written* since they were protected, where the
//! protection is of the kind that tells nobody ([`Pagemap::take_written`]).

mod entries;
mod file;
mod walk;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use linux_raw_sys::general as raw;

use crate::{Host, Mapping, held};

pub(crate) use entries::probe_marker;
pub use file::{file_bytes, file_data, hugetlb, shared};
pub(crate) use walk::has_pagemap_scan;
use walk::{Query, walk};

/// Which pages are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// In memory, also while the kernel moves it, or swapped out. Markers of protected absent pages
    /// are left out where they can be told ([`Pagemap::tells_markers`]).
    Existing,
    /// Mapped by a huge page. Found where the host has `PAGEMAP_SCAN`.
    Huge,
    /// In memory or swapped out, and *not* write-protected by a userfaultfd. Found where the host
    /// has `PAGEMAP_SCAN`.
    Unprotected,
}

/// A view of this process' page tables.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    scan: bool,
    marker: Option<u64>,
}

impl Pagemap {
    /// Opens it; by `PAGEMAP_SCAN` where the host has it, else entry by entry.
    ///
    /// # Errors
    ///
    /// The host's: `/proc` is not mounted, or not any more ([`Resources`](crate::Resources)).
    pub fn open(host: &Host) -> io::Result<Self> {
        let file = held::file(held::PAGEMAP)?;
        // The right to see frames is that of whoever opens, and may have been given up since.
        let marker = host.marker.filter(|_| entries::shows_frames(&file));
        Ok(Self {
            file,
            scan: host.pagemap_scan,
            marker,
        })
    }

    /// Whether markers of protected absent pages are told from pages that were swapped out.
    pub fn tells_markers(&self) -> bool {
        self.marker.is_some()
    }

    /// Calls `found` with the byte ranges (offsets in the mapping, ascending) whose pages are
    /// `which` in this process' page tables. Right for anonymous memory; for shared memory a page
    /// may be in the file and not here.
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
        let mut found = |pages: Range<usize>| found(pages.start - base..pages.end - base);
        match which {
            _ if self.scan => self.scan_fast(range, which, &mut found),
            Which::Existing => entries::existing(&self.file, range, self.marker, &mut found),
            // Not told by the entries.
            Which::Huge | Which::Unprotected => Ok(()),
        }
    }

    fn scan_fast(
        &self,
        range: Range<usize>,
        which: Which,
        found: &mut dyn FnMut(Range<usize>),
    ) -> io::Result<()> {
        const EITHER: u32 = raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED;
        // No more is told than is needed, so that neighbours join into one region.
        let told = match (which, self.marker) {
            (Which::Existing, Some(_)) => raw::PAGE_IS_PRESENT,
            _ => 0,
        };
        let query = Query {
            flags: 0,
            // "Written" is what the kernel calls a page without this protection.
            all_of: match which {
                Which::Unprotected => raw::PAGE_IS_WRITTEN,
                _ => 0,
            },
            any_of: match which {
                Which::Huge => raw::PAGE_IS_HUGE,
                _ => EITHER,
            },
            told,
        };
        walk(self.file.as_fd(), range, &query, &mut |regions| {
            for region in regions {
                let pages = region.start as usize..region.end as usize;
                if u64::from(told) & region.categories == u64::from(told) {
                    found(pages);
                } else {
                    entries::existing(&self.file, pages, self.marker, found)?;
                }
            }
            Ok(())
        })
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
}
