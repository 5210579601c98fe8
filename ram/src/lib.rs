//! Guest RAM as the engine sees it: named blocks, sets of pages, what is discarded.
//!
//! Nothing here knows of migration. A [`RamBlock`] is a mapping with a name and a place in the
//! guest, [`GuestRam`] the list of them; a [`Span`] is what is left of one for whoever answers its
//! faults, and may be another process' memory; a [`PageSet`] is one atomic bit a page; [`Discards`]
//! says which parts of a block have no content; [`populate`] makes pages present without writing;
//! [`presence`] finds those that are absent.
//!
//! A *page* here is the host's base page (4 KiB on x86-64), on hugetlbfs too: zero pages are found
//! and files are written in that unit. What can be protected or placed at once may be larger and
//! is asked of the block ([`RamBlock::unit_pages`]).

//! # Giving memory back
//!
//! A balloon, virtio-mem, or whatever else takes content away from guest RAM does it through the engine
//! (`Memory::discard` and `discard_at` of `paguro-migration`), which copies first what a snapshot that is
//! under way still needs. What is lost in any other way is lost to that snapshot.
//!
//! What was given back may have no access (`PROT_NONE`) until it is used again. What may have content
//! must be readable and writable: nobody asks before he reads, and a page that cannot be read ends the
//! process (SIGSEGV). Hosts that populate absent pages before they protect them (Linux before 6.4) must be
//! told of it by [`Discards`]. RAM that is restored, or comes in, is to be accessible all of it.

#![forbid(unsafe_code)]

mod block;
mod builder;
mod discard;
mod error;
mod guest;
mod populate;
pub mod presence;
mod set;
mod span;

pub use block::{BlockConfig, PageKind, RamBlock};
pub use builder::{Block, GuestRamBuilder};
pub use discard::{Discards, NothingDiscarded};
pub use error::RamError;
pub use guest::{GuestRam, Pages};
pub use populate::{PopulateError, populate};
pub use set::PageSet;
pub use span::{Backing, Located, Span, SpanError, Spans};

/// Pages in 2 MiB.
pub const HUGE_PAGES: usize = paguro_sys::HUGE_PAGE_BYTES / 4096;
