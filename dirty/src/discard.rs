//! Giving pages back while a freeze is on.
//!
//! `MADV_DONTNEED` on protected anonymous memory drops the protection with the pages, and an event
//! about it (`UFFD_EVENT_REMOVE`) comes when it is too late to copy. So whoever gives guest RAM
//! back (a balloon, virtio-mem) does it through here from the start of arming on.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::freeze::{ARMING, FROZEN};
use crate::moments::Moment;
use crate::{Copied, Freeze, FreezeError, UNIT_PAGES};

impl Freeze {
    /// Gives pages of a block back by calling `give_back`, without harm to the picture: while
    /// arming they count as released, while frozen they are copied first. Waits for room in the
    /// page buffer, and for copies of others that are under way. Any thread that holds no lock a
    /// vCPU may want.
    ///
    /// # Errors
    ///
    /// What copying ran into; `give_back` was not called then, and the freeze has failed.
    pub fn discard<T>(
        &self,
        block: usize,
        pages: Range<usize>,
        give_back: impl FnOnce() -> T,
    ) -> Result<T, FreezeError> {
        // A pause waits for this before its barrier: the epoch cannot become *frozen* between the
        // look and the note, and the readers still take the event that giving back waits for.
        if self.epoch.load(Ordering::Acquire) == ARMING {
            let _going_on = self
                .discarding
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            if self.epoch.load(Ordering::Acquire) == ARMING {
                let given = give_back();
                self.blocks[block].released.insert_range(pages);
                return Ok(given);
            }
        }
        if self.epoch.load(Ordering::Acquire) == FROZEN {
            self.copy_first(block, pages)?;
        }
        Ok(give_back())
    }

    fn copy_first(&self, index: usize, pages: Range<usize>) -> Result<(), FreezeError> {
        let block = &self.blocks[index];
        let size = self.options.chunk_pages.max(block.unit);
        let first = pages.start / block.unit * block.unit;
        let end = pages.end.next_multiple_of(block.unit).min(block.pages());
        for start in (first..end).step_by(size) {
            let part = start..(start + size).min(end);
            let ahead = self.read_ahead(index, part.clone()).map_err(|error| {
                self.fail(error);
                self.failure()
            })?;
            let Some(units) = self.buffer.take(part.len().div_ceil(UNIT_PAGES)) else {
                // Over: there is no picture to be harmed.
                return Ok(());
            };
            let mut copied = Copied::new(index, units, &self.buffer);
            let mut mine = Vec::new();
            block.claim(part, |run| mine.push(run));
            if mine.is_empty() {
                continue;
            }
            if let Err(error) = self.copy_and_release(index, &mine, &ahead, &mut copied) {
                self.fail(error);
                return Err(self.failure());
            }
            copied.shrink();
            self.buffer.push(copied);
            self.moments.at(Moment::Queued);
            self.settle(mine.iter().map(Range::len).sum());
        }
        // What others have claimed is theirs to copy; it takes them a fraction of a millisecond.
        while !block.saved.contains_all(first..end) && self.epoch.load(Ordering::Acquire) == FROZEN
        {
            self.moments.at(Moment::AwaitsCopies);
            std::thread::yield_now();
        }
        Ok(())
    }
}
