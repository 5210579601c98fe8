//! A piece of guest RAM as whoever answers its faults sees it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_sys::{Mapping, page_size};

use crate::{HUGE_PAGES, RamError};

/// A page found by its host address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Index of the block.
    pub block: usize,
    /// Page in the block.
    pub page: usize,
}

/// What is behind a piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd (or tmpfs file), mapped shared.
    Memfd,
    /// A private mapping of a file: pages that were not written are the file's.
    PrivateFile,
}

/// A span of addresses at which guest RAM is mapped: in this process, or in another one that has sent
/// its userfaultfd. Its maximum length is fixed; its used length may change below that.
///
/// What the kernel does for a userfaultfd needs no more than this. Whoever reads or writes pages by
/// himself needs the [mapping](Self::mapping), which only spans of this process have.
#[derive(Debug)]
pub struct Span {
    id: String,
    start: usize,
    max_bytes: usize,
    used_bytes: AtomicUsize,
    unit_pages: usize,
    backing: Backing,
    mapping: Option<Arc<Mapping>>,
}

/// A span of another process' memory is not one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// The peer's: pages of that many base pages there are not.
    #[error("span {id}: units of {unit_pages} pages; known are 1 and {HUGE_PAGES}")]
    Unit {
        /// The span.
        id: String,
        /// What was said.
        unit_pages: usize,
    },
    /// The peer's: it is empty, not made of whole units, or beyond the last address.
    #[error("span {id}: {bytes:#x} bytes at {start:#x} are not whole pages of memory")]
    Addresses {
        /// The span.
        id: String,
        /// Its first address.
        start: usize,
        /// Its length.
        bytes: usize,
    },
    /// The peer's: two are in one place.
    #[error("spans {one} and {other} overlap")]
    Overlap {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
}

impl Span {
    /// The memory of this process that a mapping is.
    pub(crate) fn here(id: String, mapping: Arc<Mapping>, backing: Backing) -> Self {
        Self {
            id,
            start: mapping.addr(),
            max_bytes: mapping.len(),
            used_bytes: AtomicUsize::new(mapping.len()),
            unit_pages: mapping.page_bytes() / page_size(),
            backing,
            mapping: Some(mapping),
        }
    }

    /// Memory of another process: `bytes` bytes from its address `start` on, of which `unit_pages` pages
    /// are placed at once (1, or [`HUGE_PAGES`] on hugetlbfs). What that process says is checked to be
    /// possible; whether it is so, the kernel says when it is used.
    ///
    /// # Errors
    ///
    /// [`SpanError`].
    pub fn elsewhere(
        id: &str,
        start: usize,
        bytes: usize,
        unit_pages: usize,
        backing: Backing,
    ) -> Result<Self, SpanError> {
        let id = id.to_owned();
        if unit_pages != 1 && unit_pages != HUGE_PAGES {
            return Err(SpanError::Unit { id, unit_pages });
        }
        let unit = unit_pages * page_size();
        let whole = start.is_multiple_of(unit) && bytes.is_multiple_of(unit);
        if bytes == 0 || !whole || start.checked_add(bytes).is_none() {
            return Err(SpanError::Addresses { id, start, bytes });
        }
        Ok(Self {
            id,
            start,
            max_bytes: bytes,
            used_bytes: AtomicUsize::new(bytes),
            unit_pages,
            backing,
            mapping: None,
        })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is behind it.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The memory, if it is this process'.
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// Bytes in use now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Bytes it may grow to.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Changes the used length.
    ///
    /// # Errors
    ///
    /// [`RamError::Length`]: not whole units, or more than the maximum.
    pub fn resize(&self, used: usize) -> Result<(), RamError> {
        if used > self.max_bytes || !used.is_multiple_of(self.unit_pages * page_size()) {
            return Err(RamError::Length {
                id: self.id.clone(),
                used,
                max: self.max_bytes,
            });
        }
        self.used_bytes.store(used, Ordering::Release);
        Ok(())
    }

    /// Pages in use now.
    pub fn pages(&self) -> usize {
        self.used_bytes() / page_size()
    }

    /// Pages it may grow to: the size of its sets.
    pub fn max_pages(&self) -> usize {
        self.max_bytes / page_size()
    }

    /// Pages that can only be protected or placed together: 1, or 512 on hugetlbfs.
    pub fn unit_pages(&self) -> usize {
        self.unit_pages
    }

    /// Virtual addresses of a range of pages, in the process whose memory it is.
    ///
    /// # Panics
    ///
    /// If they are outside: a bug of the caller.
    pub fn addresses_of(&self, pages: &Range<usize>) -> Range<usize> {
        let max = self.max_pages();
        let inside = pages.start <= pages.end && pages.end <= max;
        assert!(inside, "pages {pages:?} are outside a span of {max}");
        self.start + pages.start * page_size()..self.start + pages.end * page_size()
    }
}

/// The spans of one guest's RAM, in the order of its blocks.
#[derive(Clone, Debug)]
pub struct Spans(Arc<[Arc<Span>]>);

impl Spans {
    /// The spans of another process' memory, in the order in which it names them.
    ///
    /// # Errors
    ///
    /// [`SpanError::Overlap`].
    pub fn elsewhere(spans: Vec<Span>) -> Result<Self, SpanError> {
        let mut sorted: Vec<&Span> = spans.iter().collect();
        sorted.sort_by_key(|span| span.start);
        for pair in sorted.windows(2) {
            if pair[0].start + pair[0].max_bytes > pair[1].start {
                return Err(SpanError::Overlap {
                    one: pair[0].id.clone(),
                    other: pair[1].id.clone(),
                });
            }
        }
        Ok(Self::here(spans.into_iter().map(Arc::new)))
    }

    pub(crate) fn here(spans: impl Iterator<Item = Arc<Span>>) -> Self {
        Self(spans.collect())
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Span>] {
        &self.0
    }

    /// The page at a virtual address.
    pub fn locate(&self, address: usize) -> Option<Located> {
        self.0.iter().enumerate().find_map(|(block, span)| {
            let offset = address.checked_sub(span.start)?;
            (offset < span.max_bytes).then(|| Located {
                block,
                page: offset / page_size(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn span(id: &str, start: usize, pages: usize, unit: usize) -> Result<Span, SpanError> {
        Span::elsewhere(id, start, pages * PAGE, unit, Backing::Anonymous)
    }

    #[test]
    fn what_cannot_be_memory_is_refused() {
        assert!(matches!(span("a", 0, 4, 2), Err(SpanError::Unit { .. })));
        let nowhere = [
            span("a", PAGE, 0, 1),
            span("a", 7, 4, 1),
            span("a", PAGE, HUGE_PAGES, HUGE_PAGES),
            span("a", 0, HUGE_PAGES + 1, HUGE_PAGES),
            span("a", usize::MAX & !(PAGE - 1), 4, 1),
        ];
        for nowhere in nowhere {
            assert!(matches!(nowhere, Err(SpanError::Addresses { .. })));
        }
        for (start, fits) in [(3, false), (4, true), (1, false), (0, true)] {
            let second = span("b", (8 + start) * PAGE, if start == 0 { 1 } else { 4 }, 1);
            let both = vec![span("a", 9 * PAGE, 3, 1).unwrap(), second.unwrap()];
            assert_eq!(Spans::elsewhere(both).is_ok(), fits, "{start}");
        }
    }

    #[test]
    fn a_page_is_found_by_its_address() {
        let spans = Spans::elsewhere(vec![
            span("high", 64 * PAGE, 2, 1).unwrap(),
            span("low", 8 * PAGE, 4, 1).unwrap(),
        ]);
        let spans = spans.unwrap();
        let at = |page: usize| spans.locate(page * PAGE + 5).map(|at| (at.block, at.page));
        assert_eq!(
            [at(7), at(8), at(11), at(12)],
            [None, Some((1, 0)), Some((1, 3)), None]
        );
        assert_eq!([at(65), at(66)], [Some((0, 1)), None]);
        let low = &spans.all()[1];
        assert_eq!(low.addresses_of(&(1..3)), 9 * PAGE..11 * PAGE);
        low.resize(2 * PAGE).unwrap();
        assert_eq!((low.pages(), low.max_pages()), (2, 4));
        assert!(low.resize(5 * PAGE).is_err() && low.resize(1).is_err());
    }
}
