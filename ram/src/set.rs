//! One atomic bit a page.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of pages of one RAM block, made for its maximum length. All operations are atomic a word
/// (64 pages) at a time and take no lock; ranges are walked word by word.
///
/// A bit set with [`PageSet::claim`] or [`PageSet::insert`] is a *release* of what the caller did
/// before and a look at it an *acquire*, so a set can also publish.
///
/// [`PageSet::claim`] and [`PageSet::take`] change only words in which there is something for the
/// caller: all of RAM is walked in the pause, most of it for nothing, and a change costs far more than
/// a look. What is given out is given out by the change alone. Who gets nothing has looked, which is
/// an *acquire* of what others published; of his own he publishes nothing, as no bit is his. What he
/// stored before is not ordered before that look either: it must not matter to those whose bits come
/// next.
pub struct PageSet {
    words: Box<[AtomicU64]>,
    pages: usize,
}

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageSet({} of {})", self.count(), self.pages)
    }
}

impl PageSet {
    /// An empty set for `pages` pages. Where there is no memory for it the program ends, as with all
    /// collections: for a set of a large guest's RAM there is [`PageSet::try_new`].
    pub fn new(pages: usize) -> Self {
        Self {
            words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            pages,
        }
    }

    /// An empty set for `pages` pages, if there is memory for it.
    ///
    /// # Errors
    ///
    /// The host's: there is none.
    pub fn try_new(pages: usize) -> Result<Self, TryReserveError> {
        let mut words = Vec::new();
        words.try_reserve_exact(pages.div_ceil(64))?;
        words.extend((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)));
        Ok(Self {
            words: words.into(),
            pages,
        })
    }

    /// A set from bitmap words (bit *i* of word *w* is page 64 *w* + *i*), as in a mapped-ram file.
    /// Bits beyond `pages` are dropped, words that are missing are empty.
    pub fn from_words(pages: usize, words: &[u64]) -> Self {
        let set = Self::new(pages);
        for (index, (word, &value)) in set.words.iter().zip(words).enumerate() {
            word.store(value & set.valid(index), Ordering::Relaxed);
        }
        set
    }

    /// The bitmap words.
    pub fn to_words(&self) -> Vec<u64> {
        self.words
            .iter()
            .map(|word| word.load(Ordering::Acquire))
            .collect()
    }

    /// Pages it was made for.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Whether a page is in it. A page beyond the end is not.
    pub fn contains(&self, page: usize) -> bool {
        page < self.pages && self.words[page / 64].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    /// Puts a page in; whether it was new.
    pub fn insert(&self, page: usize) -> bool {
        assert!(page < self.pages);
        let bit = 1 << (page % 64);
        self.words[page / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Takes a page out; whether it was there.
    pub fn remove(&self, page: usize) -> bool {
        assert!(page < self.pages);
        let bit = 1 << (page % 64);
        self.words[page / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Puts a range in.
    pub fn insert_range(&self, range: Range<usize>) {
        self.each_word(range, |word, mask| {
            word.fetch_or(mask, Ordering::AcqRel);
        });
    }

    /// Takes a range out.
    pub fn remove_range(&self, range: Range<usize>) {
        self.each_word(range, |word, mask| {
            word.fetch_and(!mask, Ordering::AcqRel);
        });
    }

    /// Puts the pages in whose bits are set in `bits` (bit *i* is page 64 `word` + *i*); the bits of
    /// those that were new. Bits beyond the end are dropped.
    pub fn insert_word(&self, word: usize, bits: u64) -> u64 {
        let bits = bits & self.valid(word);
        match bits {
            0 => 0,
            bits => bits & !self.words[word].fetch_or(bits, Ordering::AcqRel),
        }
    }

    /// Takes the pages out whose bits are set in `bits`; the bits of those that were in it.
    pub fn take_word(&self, word: usize, bits: u64) -> u64 {
        match bits & self.valid(word) {
            0 => 0,
            bits => bits & self.words[word].fetch_and(!bits, Ordering::AcqRel),
        }
    }

    /// Puts a range in and calls `mine` with the runs of pages that were not in it before: those,
    /// and only those, are now the caller's. Two callers never get the same page.
    pub fn claim(&self, range: Range<usize>, mut mine: impl FnMut(Range<usize>)) {
        self.runs_of(
            range,
            |word, mask| match mask & !word.load(Ordering::Acquire) {
                0 => 0,
                _ => mask & !word.fetch_or(mask, Ordering::AcqRel),
            },
            &mut mine,
        );
    }

    /// [`PageSet::claim`] by whole units of `unit` pages, of which the set must have whole ones and
    /// nothing else may be put in. A unit is claimed by the bit of its first page: claimed word by
    /// word, two callers could each get a part of it.
    pub fn claim_units(
        &self,
        range: Range<usize>,
        unit: usize,
        mut mine: impl FnMut(Range<usize>),
    ) {
        for first in (range.start / unit * unit..range.end).step_by(unit) {
            if self.insert(first) {
                let whole = first..first + unit;
                self.insert_range(whole.clone());
                mine(whole);
            }
        }
    }

    /// Takes a range out and calls `taken` with the runs of pages that were in it.
    pub fn take(&self, range: Range<usize>, mut taken: impl FnMut(Range<usize>)) {
        self.runs_of(
            range,
            |word, mask| match mask & word.load(Ordering::Acquire) {
                0 => 0,
                _ => mask & word.fetch_and(!mask, Ordering::AcqRel),
            },
            &mut taken,
        );
    }

    /// Calls `found` with the runs of pages of the range that are in it, ascending.
    pub fn runs(&self, range: Range<usize>, mut found: impl FnMut(Range<usize>)) {
        self.runs_of(
            range,
            |word, mask| mask & word.load(Ordering::Acquire),
            &mut found,
        );
    }

    /// Calls `found` with the runs of pages of the range that are *not* in it, ascending.
    pub fn gaps(&self, range: Range<usize>, mut found: impl FnMut(Range<usize>)) {
        self.runs_of(
            range,
            |word, mask| mask & !word.load(Ordering::Acquire),
            &mut found,
        );
    }

    /// Pages in it.
    pub fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.load(Ordering::Acquire).count_ones() as usize)
            .sum()
    }

    /// Pages of the range in it.
    pub fn count_in(&self, range: Range<usize>) -> usize {
        let mut count = 0;
        self.each_word(range, |word, mask| {
            count += (word.load(Ordering::Acquire) & mask).count_ones() as usize;
        });
        count
    }

    /// Whether all pages of the range are in it.
    pub fn contains_all(&self, range: Range<usize>) -> bool {
        let len = range.len();
        self.count_in(range) == len
    }

    /// Bytes that the set itself occupies.
    pub fn size_bytes(&self) -> usize {
        self.words.len() * 8
    }

    fn valid(&self, word: usize) -> u64 {
        let left = self.pages.saturating_sub(word * 64);
        if left >= 64 {
            u64::MAX
        } else {
            (1 << left) - 1
        }
    }

    fn each_word(&self, range: Range<usize>, mut visit: impl FnMut(&AtomicU64, u64)) {
        assert!(
            range.end <= self.pages,
            "page {} of {}",
            range.end,
            self.pages
        );
        let mut page = range.start;
        while page < range.end {
            let (index, first) = (page / 64, page % 64);
            let count = (64 - first).min(range.end - page);
            let mask = if count == 64 {
                u64::MAX
            } else {
                ((1 << count) - 1) << first
            };
            visit(&self.words[index], mask);
            page += count;
        }
    }

    fn runs_of(
        &self,
        range: Range<usize>,
        mut bits: impl FnMut(&AtomicU64, u64) -> u64,
        found: &mut dyn FnMut(Range<usize>),
    ) {
        let mut run: Option<Range<usize>> = None;
        let mut base = range.start / 64 * 64;
        self.each_word(range, |word, mask| {
            let mut left = bits(word, mask);
            while left != 0 {
                let first = left.trailing_zeros() as usize;
                let count = (left >> first).trailing_ones() as usize;
                let (start, end) = (base + first, base + first + count);
                match &mut run {
                    Some(open) if open.end == start => open.end = end,
                    other => {
                        if let Some(done) = other.replace(start..end) {
                            found(done);
                        }
                    }
                }
                left = if first + count == 64 {
                    0
                } else {
                    left >> (first + count) << (first + count)
                };
            }
            base += 64;
        });
        if let Some(done) = run {
            found(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(
            pages in 1usize..300,
            steps in proptest::collection::vec((0u8..4, 0usize..300, 0usize..300), 0..40),
        ) {
            let set = PageSet::new(pages);
            let mut model = vec![false; pages];
            for (what, a, b) in steps {
                let (a, b) = (a % (pages + 1), b % (pages + 1));
                let range = a.min(b)..a.max(b);
                let mut got = Vec::new();
                let expect: Vec<usize> = match what {
                    0 => {
                        set.claim(range.clone(), |run| got.extend(run));
                        range.clone().filter(|&p| !std::mem::replace(&mut model[p], true)).collect()
                    }
                    1 => {
                        set.take(range.clone(), |run| got.extend(run));
                        range.clone().filter(|&p| std::mem::replace(&mut model[p], false)).collect()
                    }
                    2 => {
                        set.runs(range.clone(), |run| got.extend(run));
                        range.clone().filter(|&p| model[p]).collect()
                    }
                    _ => {
                        set.gaps(range.clone(), |run| got.extend(run));
                        range.clone().filter(|&p| !model[p]).collect()
                    }
                };
                prop_assert_eq!(got, expect);
                prop_assert_eq!(set.count(), model.iter().filter(|&&x| x).count());
                prop_assert_eq!(
                    set.count_in(range.clone()),
                    range.filter(|&p| model[p]).count()
                );
            }
            let again = PageSet::from_words(pages, &set.to_words());
            prop_assert_eq!(again.to_words(), set.to_words());
        }
    }

    #[test]
    fn a_word_goes_in_and_out_at_once_and_ends_with_the_set() {
        let set = PageSet::new(70);
        assert_eq!(set.insert_word(1, u64::MAX), 0x3f);
        assert_eq!(set.insert_word(1, 0x41), 0);
        assert_eq!(set.insert_word(2, 1), 0);
        assert_eq!((set.count(), set.contains(69)), (6, true));
        assert_eq!(set.take_word(1, 3), 3);
        assert_eq!(set.take_word(1, 7), 4);
        assert_eq!(set.take_word(0, u64::MAX), 0);
        assert_eq!(set.count(), 3);
    }

    #[test]
    fn two_threads_never_claim_the_same_page() {
        let set = PageSet::new(10_000);
        let claimed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut mine = 0;
                        for start in (0..10_000 - 100).step_by(37) {
                            set.claim(start..start + 100, |run| mine += run.len());
                        }
                        mine
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap())
                .sum::<usize>()
        });
        assert_eq!(claimed, set.count());
    }

    #[test]
    fn a_unit_is_never_claimed_in_parts() {
        for _ in 0..50 {
            let set = PageSet::new(64 * 512);
            let claim = || {
                let mut units = 0;
                set.claim_units(0..set.pages(), 512, |run| {
                    assert_eq!((run.start % 512, run.len()), (0, 512));
                    units += 1;
                });
                units
            };
            let units: usize = std::thread::scope(|scope| {
                let threads = [0; 3].map(|_| scope.spawn(claim));
                threads.map(|thread| thread.join().unwrap()).iter().sum()
            });
            assert_eq!((units, set.count()), (64, set.pages()));
        }
    }
}
