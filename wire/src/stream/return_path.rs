//! The return path: what the destination says to the source.
//!
//! ```text
//! u16 type, u16 length, payload
//!
//! 1 SHUT            u32 0 if all went well; the last message
//! 2 PONG            u32 of the PING that it answers
//! 3 REQ_PAGES_ID    u64 start, u32 length, str8 block
//! 4 REQ_PAGES       u64 start, u32 length, of the block of the last REQ_PAGES_ID
//! 5 RECV_BITMAP     str8 block; outside the length: u64 S, S bytes, u64 0123456789abcdef
//! 6 RESUME_ACK      u32 1
//! 7 SWITCHOVER_ACK  nothing
//! ```
//!
//! Messages come in any order: on the destination several threads write them. The bitmap of
//! RECV_BITMAP has a bit for each page that was received, in little-endian words, and is read by
//! [`decode_bitmap`] into memory of the caller, who knows how long his block is.

use crate::input::Input;
use crate::{DecodeError, NAME_MAX_BYTES, PAGE_BYTES};

use super::put_str8;

/// The longest payload that is read, in bytes.
pub const PAYLOAD_MAX_BYTES: u16 = 512;

/// What follows a bitmap.
pub const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;

const WHAT: &str = "message on the return path";

/// A message of the destination's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The migration is over for the destination: 0 if it loaded everything.
    Shut(u32),
    /// Answers the PING of this value.
    Pong(u32),
    /// Pages are wanted now.
    RequestPages {
        /// The block; without a name it is that of the request before.
        block: Option<String>,
        /// Where the pages begin in the block, in bytes; whole pages.
        start: u64,
        /// Their length in bytes; whole pages.
        length_bytes: u32,
    },
    /// Which pages of a block were received: the bitmap follows, see [`decode_bitmap`].
    ReceivedBitmap {
        /// The block.
        block: String,
    },
    /// The destination goes on with a postcopy that was interrupted.
    ResumeAck(u32),
    /// The destination consents to the switchover.
    SwitchoverAck,
}

impl Message {
    /// Appends the message. Names must not be longer than [`NAME_MAX_BYTES`]; the bitmap is
    /// appended by [`encode_bitmap`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (number, length) = match self {
            Self::Shut(_) => (1, 4),
            Self::Pong(_) => (2, 4),
            Self::RequestPages {
                block: Some(id), ..
            } => (3, 13 + id.len()),
            Self::RequestPages { block: None, .. } => (4, 12),
            Self::ReceivedBitmap { block } => (5, 1 + block.len()),
            Self::ResumeAck(_) => (6, 4),
            Self::SwitchoverAck => (7, 0),
        };
        debug_assert!(length <= 13 + NAME_MAX_BYTES);
        out.extend_from_slice(&u16::to_be_bytes(number));
        out.extend_from_slice(&(length as u16).to_be_bytes());
        match self {
            Self::Shut(value) | Self::Pong(value) | Self::ResumeAck(value) => {
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::RequestPages {
                block,
                start,
                length_bytes,
            } => {
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&length_bytes.to_be_bytes());
                if let Some(block) = block {
                    put_str8(out, block);
                }
            }
            Self::ReceivedBitmap { block } => put_str8(out, block),
            Self::SwitchoverAck => {}
        }
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] for a payload above [`PAYLOAD_MAX_BYTES`],
    /// [`DecodeError::Unsupported`] for an unknown type, [`DecodeError::Corrupt`] for a length
    /// that is not the type's, an empty name, a value other than 1 in RESUME_ACK, and requests
    /// that are not whole pages.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let number = input.u16(WHAT)?;
        let length = input.u16(WHAT)?;
        let limit = u64::from(PAYLOAD_MAX_BYTES);
        DecodeError::check_limit("length of a message", offset, u64::from(length), limit)?;
        let frame = Frame { offset, length };
        Ok(match number {
            1 => Self::Shut(frame.u32(input)?),
            2 => Self::Pong(frame.u32(input)?),
            3 => {
                let (start, length_bytes) = frame.range(input, 14..=13 + NAME_MAX_BYTES)?;
                Self::RequestPages {
                    block: Some(frame.name(input, 12)?),
                    start,
                    length_bytes,
                }
            }
            4 => {
                let (start, length_bytes) = frame.range(input, 12..=12)?;
                Self::RequestPages {
                    block: None,
                    start,
                    length_bytes,
                }
            }
            5 => {
                frame.check(2..=1 + NAME_MAX_BYTES)?;
                Self::ReceivedBitmap {
                    block: frame.name(input, 0)?,
                }
            }
            6 => match frame.u32(input)? {
                1 => Self::ResumeAck(1),
                other => return Err(DecodeError::corrupt("RESUME_ACK", offset, 1, other)),
            },
            7 => {
                frame.check(0..=0)?;
                Self::SwitchoverAck
            }
            other => {
                let found = format!("type {other}");
                return Err(DecodeError::unsupported(
                    WHAT,
                    offset,
                    found,
                    "types 1 to 7",
                ));
            }
        })
    }
}

/// Where a message began, and how long its payload is said to be.
struct Frame {
    offset: u64,
    length: u16,
}

impl Frame {
    fn check(&self, expected: std::ops::RangeInclusive<usize>) -> Result<(), DecodeError> {
        if expected.contains(&usize::from(self.length)) {
            Ok(())
        } else {
            Err(DecodeError::corrupt(
                "length of a message",
                self.offset,
                format!("{expected:?} bytes"),
                self.length,
            ))
        }
    }

    fn u32<I: Input>(&self, input: &mut I) -> Result<u32, DecodeError> {
        self.check(4..=4)?;
        input.u32(WHAT)
    }

    fn range<I: Input>(
        &self,
        input: &mut I,
        expected: std::ops::RangeInclusive<usize>,
    ) -> Result<(u64, u32), DecodeError> {
        self.check(expected)?;
        let start = input.u64(WHAT)?;
        let bytes = input.u32(WHAT)?;
        let end = start.checked_add(u64::from(bytes));
        let pages = (start | u64::from(bytes)).is_multiple_of(PAGE_BYTES);
        if pages && bytes > 0 && end.is_some() {
            Ok((start, bytes))
        } else {
            Err(DecodeError::corrupt(
                "request for pages",
                self.offset,
                "whole pages, at least one",
                format!("{bytes:#x} bytes at {start:#x}"),
            ))
        }
    }

    /// A name that ends the payload, behind `before` bytes.
    fn name<I: Input>(&self, input: &mut I, before: usize) -> Result<String, DecodeError> {
        let offset = input.offset();
        let name_bytes = usize::from(input.u8(WHAT)?);
        if before + 1 + name_bytes != usize::from(self.length) || name_bytes == 0 {
            return Err(DecodeError::corrupt(
                "length of a RAM block's name",
                offset,
                usize::from(self.length).saturating_sub(before + 1),
                name_bytes,
            ));
        }
        input.text("RAM block's name", name_bytes)
    }
}

/// Appends the bitmap that follows [`Message::ReceivedBitmap`]: bit *i* is page *i*.
pub fn encode_bitmap(words: &[u64], out: &mut Vec<u8>) {
    out.extend_from_slice(&(words.len() as u64 * 8).to_be_bytes());
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out.extend_from_slice(&BITMAP_END.to_be_bytes());
}

/// Decodes the bitmap of a block of `pages` pages into `words`, which are
/// [`words_for`](crate::bitmap::words_for) so many pages.
///
/// # Errors
/// [`DecodeError::Corrupt`] if it is of another size, has bits beyond the last page, or lacks its
/// end.
pub fn decode_bitmap<I: Input>(
    input: &mut I,
    pages: u64,
    words: &mut [u64],
) -> Result<(), DecodeError> {
    const WHAT: &str = "received bitmap";
    debug_assert_eq!(words.len() as u64, crate::bitmap::words_for(pages));
    let offset = input.offset();
    let found = input.u64(WHAT)?;
    let expected = words.len() as u64 * 8;
    if found != expected {
        let expected = format!("{expected} bytes for {pages} pages");
        return Err(DecodeError::corrupt(WHAT, offset, expected, found));
    }
    for word in words.iter_mut() {
        *word = u64::from_le_bytes(input.array(WHAT)?);
    }
    if let Some(page) = crate::bitmap::first_beyond(words, pages) {
        let found = format!("a bit for page {page}");
        return Err(DecodeError::corrupt(
            WHAT,
            offset,
            format!("{pages} pages"),
            found,
        ));
    }
    let offset = input.offset();
    match input.u64(WHAT)? {
        BITMAP_END => Ok(()),
        other => Err(DecodeError::corrupt(
            "end of the received bitmap",
            offset,
            format!("{BITMAP_END:#x}"),
            format!("{other:#x}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::FileInput;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        let mut input = FileInput::new(bytes, 0, bytes.len() as u64);
        let message = Message::decode(&mut input)?;
        assert_eq!(input.offset(), bytes.len() as u64);
        Ok(message)
    }

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<u32>().prop_map(Message::Shut),
            any::<u32>().prop_map(Message::Pong),
            ("[a-z:/.]{1,85}|[a-z]{255}", 0..1u64 << 40, 1..1u32 << 19).prop_map(
                |(id, start, pages)| {
                    Message::RequestPages {
                        block: Some(id),
                        start: start << 12,
                        length_bytes: pages << 12,
                    }
                }
            ),
            (0..1u64 << 40, 1..1u32 << 19).prop_map(|(start, pages)| Message::RequestPages {
                block: None,
                start: start << 12,
                length_bytes: pages << 12,
            }),
            "[a-z]{1,255}".prop_map(|block| Message::ReceivedBitmap { block }),
            Just(Message::ResumeAck(1)),
            Just(Message::SwitchoverAck),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_and_cut_off_ones_do_not(message in messages()) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            prop_assert_eq!(decode(&bytes).unwrap(), message);
            for end in 0..bytes.len() {
                let error = decode(&bytes[..end]).unwrap_err();
                let truncated = matches!(error, DecodeError::Truncated { .. });
                prop_assert!(truncated, "cut at {}: {}", end, error);
            }
        }

        #[test]
        fn bitmaps_come_back(pages in 0..1000u64, seed in any::<u64>()) {
            let mut words = vec![seed; crate::bitmap::words_for(pages) as usize];
            if let (Some(last), rest @ 1..) = (words.last_mut(), pages % 64) {
                *last &= (1 << rest) - 1;
            }
            let mut bytes = Vec::new();
            encode_bitmap(&words, &mut bytes);
            let mut found = vec![0; words.len()];
            let mut input = FileInput::new(&bytes, 0, bytes.len() as u64);
            decode_bitmap(&mut input, pages, &mut found).unwrap();
            prop_assert_eq!(found, words);
        }
    }

    #[test]
    fn bytes_are_qemus() {
        for (bytes, message) in [
            (&b"\0\x02\0\x04\0\0\0\x01"[..], Message::Pong(1)),
            (
                b"\0\x03\0\x13\0\0\0\0\0\x59\x80\0\0\0\x10\0\x06pc.ram",
                Message::RequestPages {
                    block: Some("pc.ram".to_owned()),
                    start: 0x59_8000,
                    length_bytes: 0x1000,
                },
            ),
            (b"\0\x01\0\x04\0\0\0\0", Message::Shut(0)),
        ] {
            assert_eq!(decode(bytes).unwrap(), message);
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn wrong_messages_are_refused() {
        for (bytes, text) in [
            (&b"\0\0\0\0"[..], "type 0"),
            (b"\0\x08\0\0", "type 8"),
            (b"\0\x01\x02\x01", "513 is above the limit of 512"),
            (b"\0\x01\0\x05\0\0\0\0\0", "expected 4..=4 bytes, found 5"),
            (b"\0\x07\0\x01\0", "found 1"),
            (b"\0\x06\0\x04\0\0\0\x02", "RESUME_ACK"),
            (
                b"\0\x04\0\x0c\0\0\0\0\0\0\x10\0\0\0\0\0",
                "0x0 bytes at 0x1000",
            ),
            (b"\0\x04\0\x0c\0\0\0\0\0\0\x10\x01\0\0\x10\0", "at 0x1001"),
            (
                b"\0\x04\0\x0c\xff\xff\xff\xff\xff\xff\xf0\0\0\0\x10\0",
                "whole pages",
            ),
            (b"\0\x05\0\x03\x01aa", "expected 2, found 1"),
            (b"\0\x05\0\x03\x03aa", "expected 2, found 3"),
            (b"\0\x05\0\x03\x02\xff\xff", "UTF-8"),
            (b"\0\x03\0\x0d\0\0\0\0\0\0\x10\0\0\0\x10\0\0", "found 13"),
        ] {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{bytes:02x?}: {error}");
        }
    }

    #[test]
    fn wrong_bitmaps_are_refused() {
        let bitmap = |size: u64, word: u64, end: u64| {
            let mut bytes = size.to_be_bytes().to_vec();
            bytes.extend_from_slice(&word.to_le_bytes());
            bytes.extend_from_slice(&end.to_be_bytes());
            let mut input = FileInput::new(&bytes, 0, bytes.len() as u64);
            decode_bitmap(&mut input, 10, &mut [0])
        };
        bitmap(8, 0x3ff, BITMAP_END).unwrap();
        for (size, word, end) in [
            (16, 0, BITMAP_END),
            (u64::MAX, 0, BITMAP_END),
            (8, 0x400, BITMAP_END),
            (8, 0, 0),
        ] {
            assert!(bitmap(size, word, end).is_err());
        }
    }
}
