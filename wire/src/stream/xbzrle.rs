//! XBZRLE: a page as its difference to what the destination has.
//!
//! ```text
//! u8 1, u16 n, n bytes of:   { unchanged-run length, changed-run length, changed bytes }
//! ```
//!
//! Lengths are ULEB128 of one or two bytes. An unchanged run may be 0 long only at the beginning,
//! a changed run never; what is unchanged at the end is left out. The changed bytes are the new
//! content itself. A page that did not change has no record at all, and one whose difference is
//! no shorter than a page is sent as a page.
//!
//! The encoder compares words and turns eight bytes of difference into eight bits at once, so
//! what is equal costs little more than reading it. It takes unchanged bytes along in a changed
//! run where ending the run would cost as much.

use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;

/// What stands before the difference.
pub const HEADER_BYTES: usize = 3;

const ENCODING: u8 = 1;
/// Fewer unchanged bytes than this are cheaper to send than to skip.
const GAP_BYTES: usize = 3;
/// The page is compared in pieces of as many bytes as a word has bits.
const PIECE: usize = 64;

/// What [`encode`] made of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// The page is as it was: there is nothing to send.
    Unchanged,
    /// The difference was appended.
    Delta,
    /// The difference is longer than allowed, and nothing was appended: send the page.
    Overflow,
}

/// Appends the difference between `old` and `new` to `out` if it has at most `max_bytes`.
pub fn encode(old: &[u8; PAGE], new: &[u8; PAGE], max_bytes: usize, out: &mut Vec<u8>) -> Encoded {
    let begin = out.len();
    let mut delta = Delta {
        new,
        out,
        limit: begin.saturating_add(max_bytes),
        sent: 0,
        run: 0..0,
    };
    let (olds, _) = old.as_chunks::<PIECE>();
    let (news, _) = new.as_chunks::<PIECE>();
    for (index, (old, new)) in olds.iter().zip(news).enumerate() {
        if old != new && !delta.piece(index * PIECE, changed_bytes(old, new)) {
            out.truncate(begin);
            return Encoded::Overflow;
        }
    }
    if delta.run.is_empty() {
        return Encoded::Unchanged;
    }
    if !delta.flush() {
        out.truncate(begin);
        return Encoded::Overflow;
    }
    Encoded::Delta
}

/// A difference while it is found.
struct Delta<'a> {
    new: &'a [u8; PAGE],
    out: &'a mut Vec<u8>,
    /// Where `out` must end.
    limit: usize,
    /// So much of the page is in `out`.
    sent: usize,
    /// The changed run that may still grow; empty only before the first.
    run: std::ops::Range<usize>,
}

impl Delta<'_> {
    /// Takes the changed bytes of the piece at `base`; false if the difference is too long.
    fn piece(&mut self, base: usize, mut changed: u64) -> bool {
        let mut at = base;
        while changed != 0 {
            let skip = changed.trailing_zeros();
            changed >>= skip;
            let length = changed.trailing_ones();
            at += skip as usize;
            if self.run.is_empty() {
                self.run = at..at;
            } else if at - self.run.end >= GAP_BYTES {
                if !self.flush() {
                    return false;
                }
                self.run = at..at;
            }
            at += length as usize;
            self.run.end = at;
            // All 64 bits cannot be shifted out at once.
            changed = changed.checked_shr(length).unwrap_or(0);
        }
        true
    }

    fn flush(&mut self) -> bool {
        let bytes = &self.new[self.run.clone()];
        put_length(self.out, self.run.start - self.sent);
        put_length(self.out, bytes.len());
        if self.out.len() + bytes.len() > self.limit {
            return false;
        }
        self.out.extend_from_slice(bytes);
        self.sent = self.run.end;
        true
    }
}

/// Bit *i* is set if byte *i* differs.
fn changed_bytes(old: &[u8; PIECE], new: &[u8; PIECE]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // Moves bits 0, 8, 16, ... of a word to bits 56, 57, 58, ...
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (olds, _) = old.as_chunks::<8>();
    let (news, _) = new.as_chunks::<8>();
    let mut changed = 0;
    for (index, (old, new)) in olds.iter().zip(news).enumerate() {
        let difference = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
        // The top bit of each byte that is not zero.
        let marks = (((difference & LOW) + LOW) | difference) & !LOW;
        changed |= ((marks >> 7).wrapping_mul(GATHER) >> 56) << (index * 8);
    }
    changed
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    debug_assert!(length <= PAGE);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        out.extend_from_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
    }
}

/// Appends what stands before a difference of `delta_bytes` bytes, which are at most a page.
pub fn encode_header(delta_bytes: usize, out: &mut Vec<u8>) {
    debug_assert!(delta_bytes <= PAGE);
    out.push(ENCODING);
    out.extend_from_slice(&(delta_bytes as u16).to_be_bytes());
}

/// Decodes what stands before a difference: how many bytes it has, at most a page.
///
/// # Errors
/// [`DecodeError::Unsupported`] for another encoding, [`DecodeError::Limit`] for more than a page.
pub fn decode_header<I: Input>(input: &mut I) -> Result<usize, DecodeError> {
    const WHAT: &str = "XBZRLE header";
    let offset = input.offset();
    let [encoding, high, low] = input.array(WHAT)?;
    if encoding != ENCODING {
        let found = format!("encoding {encoding}");
        return Err(DecodeError::unsupported(WHAT, offset, found, "encoding 1"));
    }
    let bytes = u16::from_be_bytes([high, low]);
    DecodeError::check_limit("length of XBZRLE", offset, u64::from(bytes), PAGE_BYTES)?;
    Ok(usize::from(bytes))
}

/// Applies a difference, which stands at `offset` in the stream, to what the page was. After an
/// error a part of it may have been applied.
///
/// # Errors
/// [`DecodeError::Corrupt`] if it is none, or goes beyond the page.
pub fn decode(delta: &[u8], offset: u64, page: &mut [u8; PAGE]) -> Result<(), DecodeError> {
    let mut left = delta;
    let mut at = 0;
    while !left.is_empty() {
        let position = offset + (delta.len() - left.len()) as u64;
        let wrong = |found: String| {
            let expected = "runs within a page: unchanged (0 only at first), changed (never 0)";
            DecodeError::corrupt("XBZRLE", position, expected, found)
        };
        let cut = || wrong(format!("a length cut off in {} bytes", delta.len()));
        let unchanged = take_length(&mut left).ok_or_else(cut)?;
        let changed = take_length(&mut left).ok_or_else(cut)?;
        if changed == 0 || (unchanged == 0 && at > 0) {
            return Err(wrong(format!(
                "{unchanged} unchanged, {changed} changed at {at}"
            )));
        }
        let start = at + unchanged;
        let Some(place) = page.get_mut(start..start + changed) else {
            return Err(wrong(format!(
                "{unchanged} unchanged, {changed} changed at {at}"
            )));
        };
        let Some((bytes, rest)) = left.split_at_checked(changed) else {
            return Err(wrong(format!("{} of {changed} changed bytes", left.len())));
        };
        place.copy_from_slice(bytes);
        left = rest;
        at = start + changed;
    }
    Ok(())
}

/// At most 0x3fff; nothing if two bytes do not hold it.
fn take_length(left: &mut &[u8]) -> Option<usize> {
    match **left {
        [low, ref rest @ ..] if low < 0x80 => {
            *left = rest;
            Some(usize::from(low))
        }
        [low, high, ref rest @ ..] if high < 0x80 => {
            *left = rest;
            Some(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes of QEMU's that the format was learned from.
    const SAMPLE: &[u8] =
        b"\x00\x01\x70\xc7\x01\x04\x70\x43\x44\x44\x60\x01\x70\x87\x0e\x01\x70\xc7\x0f\x02\x70\x0c";

    fn sample_page() -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[0] = 0x70;
        page[200..204].copy_from_slice(b"\x70\x43\x44\x44");
        page[300] = 0x70;
        page[2100] = 0x70;
        page[4092..4094].copy_from_slice(b"\x70\x0c");
        page
    }

    #[test]
    fn the_sample_decodes_and_encodes() {
        let mut page = [0; PAGE];
        decode(SAMPLE, 0, &mut page).unwrap();
        assert_eq!(page, sample_page());
        let mut delta = Vec::new();
        let encoded = encode(&[0; PAGE], &sample_page(), PAGE, &mut delta);
        assert_eq!((encoded, delta.as_slice()), (Encoded::Delta, SAMPLE));
        let mut out = vec![9];
        let encoded = encode(&[0; PAGE], &page, SAMPLE.len(), &mut out);
        assert_eq!((encoded, out.len()), (Encoded::Delta, 1 + SAMPLE.len()));
        out.truncate(1);
        let encoded = encode(&[0; PAGE], &page, SAMPLE.len() - 1, &mut out);
        assert_eq!((encoded, out.as_slice()), (Encoded::Overflow, &[9][..]));
    }

    #[test]
    fn pages_that_are_equal_or_wholly_different() {
        let mut out = Vec::new();
        assert_eq!(
            encode(&[7; PAGE], &[7; PAGE], 0, &mut out),
            Encoded::Unchanged
        );
        assert_eq!(
            encode(&[7; PAGE], &[8; PAGE], PAGE, &mut out),
            Encoded::Overflow
        );
        assert!(out.is_empty());
        assert_eq!(
            encode(&[7; PAGE], &[8; PAGE], PAGE + 3, &mut out),
            Encoded::Delta
        );
        assert_eq!(out[..3], [0, 0x80, 0x20]);
    }

    #[test]
    fn what_is_no_difference_is_refused() {
        for (delta, why) in [
            (&b"\x00"[..], "no second length"),
            (b"\x80", "half a length"),
            (b"\x80\x80\x01", "a length of three bytes"),
            (b"\x00\x00", "a changed run of 0"),
            (b"\x00\x01x\x00\x01x", "an unchanged run of 0 in the middle"),
            (b"\x00\x02x", "fewer bytes than the run has"),
            (b"\x00\x01x\x05", "an unchanged run at the end"),
            (b"\xff\x1f\x02xx", "a run across the end of the page"),
            (b"\x80\x20\x01x", "a run behind the page"),
            (b"\xff\x7f\xff\x7fx", "the greatest lengths"),
        ] {
            let error = decode(delta, 5, &mut [0; PAGE]).expect_err(why);
            assert!(
                matches!(error, DecodeError::Corrupt { .. }),
                "{why}: {error}"
            );
        }
        let mut page = [0; PAGE];
        decode(b"\xff\x1f\x01x", 0, &mut page).unwrap();
        assert_eq!(page[PAGE - 1], b'x');
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(
            old in any::<u8>(),
            changes in prop::collection::vec((0..PAGE, 1..200usize, any::<u8>(), 1..4usize), 0..60),
            max_bytes in prop_oneof![Just(PAGE), 0..PAGE],
        ) {
            let old: [u8; PAGE] = std::array::from_fn(|at| old.wrapping_mul(at as u8));
            let mut new = old;
            for (start, length, value, step) in changes {
                for byte in new[start..].iter_mut().take(length).step_by(step) {
                    *byte = byte.wrapping_add(value);
                }
            }
            let mut delta = Vec::new();
            let encoded = encode(&old, &new, max_bytes, &mut delta);
            prop_assert!(delta.len() <= max_bytes);
            let mut page = old;
            decode(&delta, 0, &mut page).unwrap();
            match encoded {
                Encoded::Unchanged => prop_assert!(delta.is_empty() && old == new),
                Encoded::Delta => prop_assert!(page == new && old != new),
                Encoded::Overflow => prop_assert!(delta.is_empty() && old != new),
            }
        }

        #[test]
        fn any_bytes_are_refused_or_applied(delta in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&delta, u64::MAX / 2, &mut [0; PAGE]);
        }
    }
}
