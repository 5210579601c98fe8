//! Page bitmaps: bit *i* of the words is page *i*; in the file, 64-bit little-endian words.

/// The words of a bitmap for `pages` pages.
pub fn words_for(pages: u64) -> u64 {
    pages.div_ceil(64)
}

/// The bytes of a bitmap for `pages` pages in a file.
pub fn bytes_for(pages: u64) -> u64 {
    words_for(pages) * 8
}

/// The words as the file's bytes.
pub fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The file's bytes as words. Bytes that do not fill a word are left out.
pub fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    words(bytes).collect()
}

pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// Is page `page` set? Pages beyond the bitmap are not.
pub fn is_set(words: &[u64], page: u64) -> bool {
    usize::try_from(page / 64)
        .ok()
        .and_then(|word| words.get(word))
        .is_some_and(|word| word >> (page % 64) & 1 == 1)
}

/// The number of pages that are set.
pub fn count_ones(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// The first set bit that lies beyond `pages`, if there is one.
pub fn first_beyond(words: &[u64], pages: u64) -> Option<u64> {
    let whole = usize::try_from(pages / 64).ok()?;
    for (index, word) in words.iter().enumerate().skip(whole) {
        let beyond = if index == whole {
            word & (u64::MAX << (pages % 64))
        } else {
            *word
        };
        if beyond != 0 {
            return Some(index as u64 * 64 + u64::from(beyond.trailing_zeros()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_agree_on_bit_order() {
        let words = [1 | 1 << 9, 1 << 63];
        let bytes = to_bytes(&words);
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1], 2);
        assert_eq!(bytes[15], 0x80);
        assert_eq!(from_bytes(&bytes), words);
        assert!(is_set(&words, 9) && is_set(&words, 127));
        assert!(!is_set(&words, 10) && !is_set(&words, 128));
        assert_eq!(count_ones(&words), 3);
    }

    #[test]
    fn bits_beyond_the_last_page_are_found() {
        assert_eq!(first_beyond(&[u64::MAX], 64), None);
        assert_eq!(first_beyond(&[u64::MAX], 63), Some(63));
        assert_eq!(first_beyond(&[0, 1 << 5], 64), Some(69));
        assert_eq!(first_beyond(&[0x1f], 5), None);
        assert_eq!(first_beyond(&[u64::MAX], 0), Some(0));
    }
}
