//! An [`Input`] over whatever a peer's bytes come through.
//!
//! Small elements come out of a buffer, which is filled with as much as there is and no more: a
//! read is only made when a byte is wanted that is not here yet, so nobody waits for bytes that
//! the peer has no reason to send. Large ones go past the buffer. A page can be looked at where
//! it lies in the buffer ([`ChannelInput::page`]) and be copied from there to its place once; where
//! many come in a row, whoever knows how to read to their places can do that ([`Sink`]).
//!
//! After an error the place in the stream is lost: nothing read afterwards means anything.

use std::io::{ErrorKind, Read};

use crate::input::Input;
use crate::{DecodeError, Medium, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;

/// Where bytes go past the buffer.
pub trait Sink<R> {
    /// How many bytes it still wants.
    fn left_bytes(&self) -> usize;

    /// Takes `bytes`, which were in the buffer already; never more than it wants.
    fn put(&mut self, bytes: &[u8]);

    /// Reads once from `reader`: what it wants, and what there is behind that into `rest`. Bytes read,
    /// in both; nothing is the end.
    ///
    /// # Errors
    /// The reader's.
    fn read(&mut self, reader: &mut R, rest: &mut [u8]) -> std::io::Result<usize>;
}

/// Bytes of a peer, in order, through a buffer.
#[derive(Debug)]
pub struct ChannelInput<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// What is here and was not taken yet: `start..end`.
    start: usize,
    end: usize,
    /// The offset in the stream of the byte at `start`.
    offset: u64,
}

impl<R: Read> ChannelInput<R> {
    /// The size of the buffer unless another is asked for.
    pub const BUFFER_BYTES: usize = 256 << 10;

    /// Reads `reader` through a buffer of [`ChannelInput::BUFFER_BYTES`].
    pub fn new(reader: R) -> Self {
        Self::with_buffer(reader, Self::BUFFER_BYTES)
    }

    /// Reads `reader` through a buffer of `bytes` bytes, or of a page if that is more.
    pub fn with_buffer(reader: R, bytes: usize) -> Self {
        Self {
            reader,
            buffer: vec![0; bytes.max(PAGE)].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
        }
    }

    /// Puts back the first bytes of the stream, which somebody else has read to see what it is.
    ///
    /// # Panics
    /// If they are more than a page, or if something was read before.
    #[must_use]
    pub fn behind(mut self, first: &[u8]) -> Self {
        assert_eq!((self.offset, self.end), (0, 0));
        self.buffer[..first.len()].copy_from_slice(first);
        self.end = first.len();
        self
    }

    /// What was read and not taken yet: so much can be had without waiting.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// What is read from.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// Has the peer closed the channel here? Waits for the next byte or the end.
    ///
    /// # Errors
    /// [`DecodeError::Read`] if neither comes.
    pub fn at_end(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        Ok(self.start == self.end && self.refill(what)? == 0)
    }

    /// The next page, where it lies in the buffer; it counts as taken.
    ///
    /// # Errors
    /// As [`Input::fill`].
    pub fn page(&mut self, what: &'static str) -> Result<&[u8; PAGE], DecodeError> {
        while self.end - self.start < PAGE {
            if self.refill(what)? == 0 {
                return Err(self.truncated(what, self.offset, PAGE));
            }
        }
        let start = self.start;
        self.take(PAGE);
        match self.buffer[start..].first_chunk() {
            Some(page) => Ok(page),
            // A page was just found to be there.
            None => unreachable!(),
        }
    }

    /// From one to `most` of the next bytes, where they lie in the buffer; they count as taken.
    /// Waits only if none is here. `most` must not be 0.
    ///
    /// # Errors
    /// As [`Input::fill`].
    pub fn some(&mut self, what: &'static str, most: usize) -> Result<&[u8], DecodeError> {
        if self.start == self.end && self.refill(what)? == 0 {
            return Err(self.truncated(what, self.offset, most));
        }
        let start = self.start;
        let bytes = most.min(self.end - start);
        self.take(bytes);
        Ok(&self.buffer[start..start + bytes])
    }

    /// Gives the next bytes to `sink`, as many as it wants.
    ///
    /// # Errors
    /// As [`Input::fill`].
    pub fn pour<S: Sink<R>>(
        &mut self,
        what: &'static str,
        sink: &mut S,
    ) -> Result<(), DecodeError> {
        let (begin, needed_bytes) = (self.offset, sink.left_bytes());
        let here = needed_bytes.min(self.end - self.start);
        sink.put(&self.buffer[self.start..self.start + here]);
        self.take(here);
        loop {
            let wanted = sink.left_bytes();
            if wanted == 0 {
                return Ok(());
            }
            // It wanted more than was in the buffer.
            (self.start, self.end) = (0, 0);
            let (reader, rest) = (&mut self.reader, &mut self.buffer[..]);
            let got = once(|| sink.read(reader, rest), what, self.offset)?;
            if got == 0 {
                return Err(self.truncated(what, begin, needed_bytes));
            }
            let placed = got.min(wanted);
            self.offset += placed as u64;
            self.end = got - placed;
        }
    }

    fn take(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads once, what there is, behind what is in the buffer. Nothing is the end.
    fn refill(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        if self.start > 0 {
            // At most a page less a byte is moved: more is never waited for.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let offset = self.offset + self.end as u64;
        let bytes = read_once(&mut self.reader, &mut self.buffer[self.end..], what, offset)?;
        self.end += bytes;
        Ok(bytes)
    }

    /// The slow half of `fill`: the buffer is empty.
    #[cold]
    fn fill_past_buffer(
        &mut self,
        what: &'static str,
        mut rest: &mut [u8],
        begin: u64,
        needed_bytes: usize,
    ) -> Result<(), DecodeError> {
        while !rest.is_empty() {
            let got = if rest.len() >= self.buffer.len() {
                let got = read_once(&mut self.reader, rest, what, self.offset)?;
                self.offset += got as u64;
                got
            } else {
                self.refill(what)?;
                let got = rest.len().min(self.end);
                rest[..got].copy_from_slice(&self.buffer[..got]);
                self.take(got);
                got
            };
            if got == 0 {
                return Err(self.truncated(what, begin, needed_bytes));
            }
            rest = &mut rest[got..];
        }
        Ok(())
    }

    fn truncated(&self, what: &'static str, offset: u64, needed_bytes: usize) -> DecodeError {
        DecodeError::Truncated {
            what,
            offset,
            needed_bytes: needed_bytes as u64,
            end: self.offset + (self.end - self.start) as u64,
            medium: Medium::Channel,
        }
    }
}

impl<R: Read> Input for ChannelInput<R> {
    fn offset(&self) -> u64 {
        self.offset
    }

    #[inline]
    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), DecodeError> {
        let begin = self.offset;
        let here = self.buffered();
        if let Some(bytes) = here.get(..buffer.len()) {
            buffer.copy_from_slice(bytes);
            self.take(buffer.len());
            return Ok(());
        }
        let needed_bytes = buffer.len();
        let (first, rest) = buffer.split_at_mut(here.len());
        first.copy_from_slice(here);
        self.take(first.len());
        self.fill_past_buffer(what, rest, begin, needed_bytes)
    }

    fn peek(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        if self.at_end(what)? {
            Err(self.truncated(what, self.offset, 1))
        } else {
            Ok(self.buffer[self.start])
        }
    }
}

fn read_once<R: Read>(
    reader: &mut R,
    buffer: &mut [u8],
    what: &'static str,
    offset: u64,
) -> Result<usize, DecodeError> {
    once(|| reader.read(buffer), what, offset)
}

/// Reads until it was not interrupted.
fn once(
    mut read: impl FnMut() -> std::io::Result<usize>,
    what: &'static str,
    offset: u64,
) -> Result<usize, DecodeError> {
    loop {
        match read() {
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(DecodeError::Read {
                    what,
                    offset,
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Gives `step` bytes a read, and panics if it is asked once more than it may be.
    struct Steps {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        end: End,
    }

    #[derive(Clone, Copy)]
    enum End {
        Closed,
        Silent,
        Forbidden,
    }

    impl Read for Steps {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = &self.bytes[self.at..];
            let bytes = left.len().min(self.step).min(buffer.len());
            if bytes == 0 {
                return match self.end {
                    End::Closed => Ok(0),
                    End::Silent => Err(ErrorKind::WouldBlock.into()),
                    End::Forbidden => panic!("a read that would wait for ever"),
                };
            }
            buffer[..bytes].copy_from_slice(&left[..bytes]);
            self.at += bytes;
            Ok(bytes)
        }
    }

    fn input(bytes: usize, step: usize, end: End) -> ChannelInput<Steps> {
        let bytes = (0..bytes).map(|at| (at * 7 + at / 256) as u8).collect();
        ChannelInput::with_buffer(
            Steps {
                bytes,
                at: 0,
                step,
                end,
            },
            0,
        )
    }

    #[test]
    fn all_ways_of_reading_give_the_bytes_in_order() {
        for step in [1, 3, 4095, 4096, 4097, usize::MAX] {
            let mut input = input(40_000, step, End::Forbidden);
            let expected = input.reader.bytes.clone();
            let mut found = Vec::new();
            for round in 0.. {
                let left = expected.len() - found.len();
                if left == 0 {
                    break;
                }
                assert_eq!(input.offset(), found.len() as u64);
                match round % 5 {
                    0 => found.push(input.u8("x").unwrap()),
                    1 if left >= PAGE => found.extend_from_slice(input.page("x").unwrap()),
                    2 => found.extend_from_slice(input.some("x", 100).unwrap()),
                    3 if left >= 9000 => {
                        let mut large = [0; 9000];
                        input.fill("x", &mut large).unwrap();
                        found.extend_from_slice(&large);
                    }
                    4 => assert_eq!(input.peek("x").unwrap(), expected[found.len()]),
                    _ => {
                        let mut small = vec![0; left.min(77)];
                        input.fill("x", &mut small).unwrap();
                        found.extend_from_slice(&small);
                    }
                }
            }
            assert_eq!(found, expected);
        }
    }

    /// Wants `left_bytes` bytes and keeps them.
    struct Kept {
        left_bytes: usize,
        bytes: Vec<u8>,
    }

    impl Sink<Steps> for Kept {
        fn left_bytes(&self) -> usize {
            self.left_bytes
        }

        fn put(&mut self, bytes: &[u8]) {
            self.left_bytes -= bytes.len();
            self.bytes.extend_from_slice(bytes);
        }

        fn read(&mut self, reader: &mut Steps, rest: &mut [u8]) -> io::Result<usize> {
            let mut all = vec![0; self.left_bytes + rest.len()];
            let got = reader.read(&mut all)?;
            let placed = got.min(self.left_bytes);
            self.put(&all[..placed]);
            rest[..got - placed].copy_from_slice(&all[placed..got]);
            Ok(got)
        }
    }

    #[test]
    fn what_is_poured_are_the_next_bytes_and_those_behind_stay() {
        for step in [1, 3, 4095, 5000, usize::MAX] {
            for (before, left_bytes) in [(0, 1), (1, 0), (5, 4090), (5, 4096), (9, 20_000)] {
                let mut input = input(30_000, step, End::Forbidden).behind(b"abc");
                let mut expected = b"abc".to_vec();
                expected.extend(&input.reader.bytes);
                let mut found = vec![0; before];
                input.fill("x", &mut found).unwrap();
                let bytes = Vec::new();
                let mut kept = Kept { left_bytes, bytes };
                input.pour("x", &mut kept).unwrap();
                found.extend(&kept.bytes);
                assert_eq!(input.offset(), found.len() as u64);
                found.extend(input.array::<7>("x").unwrap());
                assert_eq!(found, expected[..before + left_bytes + 7]);
            }
        }
        let mut short = input(11, 4, End::Closed);
        let (left_bytes, bytes) = (12, Vec::new());
        let error = short.pour("pages", &mut Kept { left_bytes, bytes });
        assert_eq!(
            error.unwrap_err().to_string(),
            "truncated: pages at 0x0 needs 12 bytes, but the peer closed the channel at 0xb"
        );
    }

    #[test]
    fn the_end_within_an_element_says_that_the_peer_closed() {
        for step in [1, 5, usize::MAX] {
            let mut input = input(11, step, End::Closed);
            assert_eq!(input.array::<8>("x").unwrap().len(), 8);
            let error = input.u64("a number").unwrap_err();
            assert_eq!(
                error.to_string(),
                "truncated: a number at 0x8 needs 8 bytes, but the peer closed the channel at 0xb"
            );
            assert!(input.at_end("x").unwrap());
        }
        let mut short = input(4095, usize::MAX, End::Closed);
        let error = short.page("a page").unwrap_err().to_string();
        assert!(error.ends_with("needs 4096 bytes, but the peer closed the channel at 0xfff"));
        let mut large = [0; 5000];
        let mut short = input(4999, usize::MAX, End::Closed);
        let error = short.fill("a lot", &mut large).unwrap_err().to_string();
        assert!(
            error.ends_with("at 0x0 needs 5000 bytes, but the peer closed the channel at 0x1387")
        );
    }

    #[test]
    fn silence_is_an_error_of_the_host() {
        let mut input = input(3, 1, End::Silent);
        let error = input.u32("a number").unwrap_err();
        assert_eq!(error.to_string(), "cannot read a number at 0x3");
        assert!(matches!(error, DecodeError::Read { .. }));
    }

    #[test]
    fn what_is_buffered_is_known() {
        let mut input = input(20, usize::MAX, End::Forbidden);
        assert!(input.buffered().is_empty());
        input.u32("x").unwrap();
        assert_eq!(input.buffered().len(), 16);
        assert_eq!(input.some("x", 100).unwrap().len(), 16);
    }
}
