//! Putting pages where none are.
//!
//! The kernel decides atomically who was first: a page that is there already wins, and the one
//! that comes late is dropped (property P5). `UFFDIO_COPY` does this for anonymous and for shared
//! memory alike.

use std::ops::Range;

use paguro_ram::{Located, Span};
use paguro_sys::{HUGE_PAGE_BYTES, Placed, UffdError, Waiting, page_size};
use parking_lot::RwLockReadGuard;

use crate::{Faults, FaultsError, Use};

/// How pages are placed at the moment.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Writable at once.
    #[default]
    Free,
    /// Protected from their first moment: a freeze is on.
    Protected,
}

/// What became of a page that was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is there now, by us or somebody faster.
    There,
    /// The mapping changed under us: some of the pages nobody can use, and who waited for them was
    /// woken; the others are there.
    MappingChanged,
}

impl Faults {
    /// From when this returns until [`Faults::free_placements`], all that is placed is placed
    /// protected. Waits for placements under way.
    pub fn protect_placements(&self) {
        *self.placing.write() = Mode::Protected;
    }

    /// Ends [`Faults::protect_placements`].
    pub fn free_placements(&self) {
        *self.placing.write() = Mode::Free;
    }

    /// Places `content` on absent pages from page `first` on and wakes who waits there. Pages that
    /// are there already stay as they are.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Place`], for reasons other than a changed mapping.
    pub fn place(
        &self,
        block: usize,
        first: usize,
        content: &[u8],
    ) -> Result<Outcome, FaultsError> {
        let mode = self.mode();
        let protected = self.protects(&mode, block);
        self.place_with(block, first, content.len(), |to, done, len| {
            self.uffd.copy(to, &content[done..done + len], protected)
        })
    }

    /// Places zeros.
    ///
    /// # Errors
    ///
    /// As [`Faults::place`].
    pub fn place_zeros(&self, block: usize, pages: Range<usize>) -> Result<Outcome, FaultsError> {
        let mode = self.mode();
        let ram = self.block(block);
        let protected = self.protects(&mode, block);
        let huge = ram.unit_pages() > 1;
        let len = pages.len() * page_size();
        self.place_with(block, pages.start, len, |to, _, len| {
            if protected || huge {
                return self.uffd.copy(to, &self.zeros[..len], protected);
            }
            let placed = self.uffd.zero(to..to + len);
            // An absent page that is marked as protected answers "exists" to ZEROPAGE and stays
            // absent: a copy of zeros tells the two apart.
            if placed.answer == Err(UffdError::Exists) && placed.bytes == 0 {
                return self.uffd.copy(to, &self.zeros[..page_size()], false);
            }
            placed
        })
    }

    /// Answers a fault with zeros: there is nothing to be had for this page. What the host refuses is
    /// [tried again](Faults::again).
    pub fn answer_with_zeros(&self, at: Located) {
        if let Err(error) = self.place_zeros(at.block, self.unit_of(at)) {
            self.again(at, &error);
        }
    }

    /// The pages that can only be placed or released together with this one.
    pub fn unit_of(&self, at: Located) -> Range<usize> {
        let unit = self.block(at.block).unit_pages();
        let first = at.page / unit * unit;
        first..first + unit
    }

    /// A block that the freeze does not watch (a read-only one) cannot have protected pages.
    fn protects(&self, mode: &Mode, block: usize) -> bool {
        *mode == Mode::Protected && self.is_registered(block, Use::WriteProtect)
    }

    fn mode(&self) -> RwLockReadGuard<'_, Mode> {
        self.placing.read()
    }

    pub(crate) fn place_with(
        &self,
        block: usize,
        first: usize,
        len: usize,
        call: impl Fn(usize, usize, usize) -> Placed,
    ) -> Result<Outcome, FaultsError> {
        let ram = self.block(block);
        let page = page_size();
        let unit = ram.unit_pages() * page;
        let range = ram.addresses_of(&(first..first + len / page));
        let mut done = 0;
        let mut step = HUGE_PAGE_BYTES;
        let mut outcome = Outcome::There;
        let mut waiting = Waiting::default();
        while done < len {
            let part = (len - done).min(step);
            let Placed { bytes, answer } = call(range.start + done, done, part);
            done += bytes;
            match answer {
                Ok(()) | Err(UffdError::Again) if bytes > 0 => waiting = Waiting::default(),
                Ok(()) | Err(UffdError::Again) => self.drain(&mut waiting),
                Err(UffdError::Exists) => {
                    // Somebody was faster; whoever waits for the page must look again.
                    self.wake_range(range.start + done..range.start + done + unit, ram);
                    done += unit;
                }
                // The kernel refuses a range of which a part is gone, or that lies in two mappings:
                // one by one, what can be placed is placed.
                Err(UffdError::Gone) if part > unit => step = unit,
                Err(UffdError::Gone | UffdError::Ended) => {
                    // Unmapping wakes nobody by itself.
                    self.wake_range(range.start + done..range.start + done + unit, ram);
                    if outcome == Outcome::There {
                        let page = first + done / page;
                        tracing::warn!(block = ram.id(), page, "dropped: the mapping changed");
                    }
                    outcome = Outcome::MappingChanged;
                    done += unit;
                }
                Err(source) => {
                    return Err(FaultsError::Place {
                        block: ram.id().to_owned(),
                        first: first + done / page,
                        count: (len - done) / page,
                        source,
                    });
                }
            }
        }
        Ok(outcome)
    }

    fn wake_range(&self, range: Range<usize>, ram: &Span) {
        if let Err(error) = self.uffd.wake(range) {
            tracing::warn!(block = ram.id(), %error, "cannot wake");
        }
    }
}
