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

#![forbid(unsafe_code)]

mod block;
mod builder;
mod discard;
mod guest;
mod populate;
pub mod presence;
mod set;
mod span;

pub use block::{BlockConfig, PageKind, RamBlock, RamError};
pub use builder::{Block, GuestRamBuilder};
pub use discard::{Discards, NothingDiscarded};
pub use guest::{GuestRam, Located};
pub use populate::{PopulateError, populate};
pub use set::PageSet;
pub use span::{Backing, Span, SpanError, Spans};

/// Pages in 2 MiB.
pub const HUGE_PAGES: usize = paguro_sys::HUGE_PAGE_BYTES / 4096;
