//! One bit a page, shared between the vCPUs that set and the reader that takes.

use crate::sync::{AtomicU64, Ordering};
use core::ops::Deref;

/// Words for `pages` pages.
pub const fn words_for(pages: u64) -> usize {
    pages.div_ceil(64) as usize
}

/// A dirty bitmap over storage of the hypervisor's.
pub(crate) struct DirtyBitmap<B> {
    words: B,
    pages: u64,
}

impl<B: Deref<Target = [AtomicU64]>> DirtyBitmap<B> {
    /// `None` if the storage is too short.
    pub(crate) fn new(words: B, pages: u64) -> Option<Self> {
        (words.len() >= words_for(pages)).then_some(Self { words, pages })
    }

    pub(crate) fn into_words(self) -> B {
        self.words
    }

    pub(crate) fn set(&self, page: u64) {
        let word = &self.words[(page / 64) as usize];
        let bit = 1 << (page % 64);
        // Most pages that fault again and again share words with others: look before locking the line.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    pub(crate) fn set_all(&self, first: u64, pages: u64) {
        let end = (first + pages).min(self.pages);
        let mut page = first;
        while page < end {
            let next = (page / 64 * 64 + 64).min(end);
            self.words[(page / 64) as usize]
                .fetch_or(mask(page % 64, next - page), Ordering::AcqRel);
            page = next;
        }
    }

    pub(crate) fn clear_all(&self) {
        for word in self.words.iter() {
            word.store(0, Ordering::Release);
        }
    }

    /// The bits of `word` that stand for pages of the region.
    pub(crate) fn valid_bits(&self, word: usize) -> u64 {
        mask(0, self.pages.saturating_sub(word as u64 * 64).min(64))
    }

    pub(crate) fn peek(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }

    /// Takes the bits of `word` that `mask` names, and leaves the others.
    pub(crate) fn take(&self, word: usize, mask: u64) -> u64 {
        let word = &self.words[word];
        match word.load(Ordering::Relaxed) & mask {
            0 => 0,
            _ => word.fetch_and(!mask, Ordering::AcqRel) & mask,
        }
    }
}

/// `count` bits from bit `first` up; `first + count` is at most 64.
fn mask(first: u64, count: u64) -> u64 {
    match count {
        0 => 0,
        _ => (u64::MAX >> (64 - count)) << first,
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn bitmap(pages: u64) -> DirtyBitmap<Vec<AtomicU64>> {
        DirtyBitmap::new(
            (0..words_for(pages)).map(|_| AtomicU64::new(0)).collect(),
            pages,
        )
        .unwrap()
    }

    #[test]
    fn set_all_equals_single_sets_at_every_offset() {
        for first in 0..70 {
            for pages in 0..(200 - first) {
                let (range, single) = (bitmap(200), bitmap(200));
                range.set_all(first, pages);
                (first..first + pages).for_each(|page| single.set(page));
                assert!(
                    (0..4).all(|word| range.peek(word) == single.peek(word)),
                    "{first} {pages}"
                );
            }
        }
    }

    #[test]
    fn take_gives_each_bit_once_and_only_what_the_mask_names() {
        let bitmap = bitmap(100);
        bitmap.set_all(0, 100);
        assert_eq!(bitmap.take(1, 0b110), 0b110);
        assert_eq!(bitmap.take(1, u64::MAX), (1 << 36) - 1 - 0b110);
        assert_eq!(bitmap.take(1, u64::MAX), 0);
        assert_eq!(bitmap.valid_bits(1), (1 << 36) - 1);
    }

    #[test]
    fn storage_shorter_than_the_pages_is_refused() {
        assert!(DirtyBitmap::new(vec![AtomicU64::new(0)], 65).is_none());
    }
}
