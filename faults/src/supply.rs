//! Where pages are that have not arrived.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use paguro_ram::PageSet;

use crate::Arrivals;

/// Content of RAM that is elsewhere still, as those see it who look at RAM while it fills: a freeze,
/// a migration, a sample. Called from any thread.
pub trait Supply: Send + Sync + Debug {
    /// What of it has arrived.
    fn arrivals(&self) -> &Arrivals;

    /// Pages of a block that it has content for, arrived or not. All others are zero until somebody
    /// writes them. A block may be longer than what it knows of it.
    fn has(&self, block: usize) -> &PageSet;

    /// Reads one page where it is, which brings it no nearer. A read that fails is tried again as long as
    /// that makes sense and the caller shall `go_on`.
    ///
    /// # Errors
    ///
    /// The source's.
    fn read(
        &self,
        block: usize,
        page: usize,
        to: &mut [u8],
        go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<()>;

    /// Has pages come into RAM, as [`Supply::read`] tries: for who is about to touch them, and must
    /// not wait for ever. Whoever cannot has them come by being touched.
    ///
    /// # Errors
    ///
    /// The source's.
    fn bring(
        &self,
        _block: usize,
        _pages: Range<usize>,
        _go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        Ok(())
    }

    /// Whether a page is still to come.
    fn is_to_come(&self, block: usize, page: usize) -> bool {
        self.has(block).contains(page) && !self.arrivals().received(block).contains(page)
    }

    /// The runs of a range that are still to come.
    fn to_come(&self, block: usize, pages: Range<usize>, found: &mut dyn FnMut(Range<usize>)) {
        let (has, received) = (self.has(block), self.arrivals().received(block));
        let end = pages.end.min(has.pages());
        has.runs(pages.start.min(end)..end, |run| {
            received.gaps(run, &mut *found);
        });
    }
}
