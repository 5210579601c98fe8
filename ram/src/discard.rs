//! What of a RAM block has no content.

use std::ops::Range;

use crate::RamBlock;

/// A device that gives guest RAM back in pieces (virtio-mem) says which parts of a block are
/// *populated*, that is, have content. The rest is *discarded*: never read, sent, saved, placed
/// or populated, whatever may be in it. But for pages of the huge-page pool of which a part is
/// populated: a freeze protects and saves them whole.
///
/// Callers hold whatever keeps the answer true while they use it: within a pause nothing is
/// plugged or unplugged; at other times a change is announced before it happens.
pub trait Discards: Send + Sync + std::fmt::Debug {
    /// Calls `part` for each maximal populated range of pages in `range`, ascending.
    fn populated(&self, block: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>));

    /// Calls `part` for each maximal discarded range of pages in `range`, ascending.
    fn discarded(&self, block: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        let mut at = range.start;
        let end = range.end;
        self.populated(block, range, &mut |populated| {
            if at < populated.start {
                part(at..populated.start);
            }
            at = populated.end;
        });
        if at < end {
            part(at..end);
        }
    }
}

/// All of RAM has content.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingDiscarded;

impl Discards for NothingDiscarded {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        if !range.is_empty() {
            part(range);
        }
    }
}
