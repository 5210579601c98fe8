//! Bits of written pages that somebody else keeps.

use std::sync::Arc;

use paguro_sys::page_size;
use vm_memory::GuestRegionMmap;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};

/// A bit for each page of a RAM block, set by whoever has written the page. Any thread may ask.
pub trait WrittenBits: Send + Sync {
    /// How many pages it has bits for, of the size that pages of this host have.
    fn pages(&self) -> usize;

    /// Resets those of the bits `mask` of word `word` that are set, and returns them: bit *i* is page
    /// 64 `word` + *i*. A bit that is set meanwhile is returned or stays. Pages that are not there are
    /// not asked for.
    fn take(&self, word: usize, mask: u64) -> u64;
}

impl WrittenBits for AtomicBitmap {
    fn pages(&self) -> usize {
        // Its own pages may have another size, of which it says nothing.
        if self.len() == self.byte_size().div_ceil(page_size()) {
            self.len()
        } else {
            0
        }
    }

    fn take(&self, word: usize, mask: u64) -> u64 {
        let (mut left, mut taken) = (mask, 0);
        while left != 0 {
            let bit = left & left.wrapping_neg();
            let page = word * 64 + bit.trailing_zeros() as usize;
            // Looked at first: a reset keeps other processors from the word. A mark that comes between
            // the two is of a page that is read later than this.
            if self.is_bit_set(page) {
                self.reset_bit(page);
                taken |= bit;
            }
            left ^= bit;
        }
        taken
    }
}

impl<B: Bitmap + WrittenBits> WrittenBits for GuestRegionMmap<B> {
    fn pages(&self) -> usize {
        self.bitmap().pages()
    }

    fn take(&self, word: usize, mask: u64) -> u64 {
        self.bitmap().take(word, mask)
    }
}

impl<T: WrittenBits + ?Sized> WrittenBits for Arc<T> {
    fn pages(&self) -> usize {
        (**self).pages()
    }

    fn take(&self, word: usize, mask: u64) -> u64 {
        (**self).take(word, mask)
    }
}
