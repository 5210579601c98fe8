//! Where stream elements are decoded from: a file here, a socket elsewhere.
//!
//! The elements in [`crate::stream`] are decoded through [`Input`], which hands out bytes in
//! order and can look one byte ahead (that is all the lookahead QEMU's grammar needs: a
//! subsection is known by its first byte).

use crate::{DecodeError, Medium, NAME_MAX_BYTES, ReadAt};

/// Bytes in order, with one byte of lookahead.
pub trait Input {
    /// The offset of the next byte, for error messages.
    fn offset(&self) -> u64;

    /// Fills all of `buffer`; `what` names the thing read in errors.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if the bytes end first, [`DecodeError::Read`] if they cannot
    /// be read.
    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), DecodeError>;

    /// The next byte, which stays the next byte.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn peek(&mut self, what: &'static str) -> Result<u8, DecodeError>;

    /// The next `N` bytes.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    /// The next byte.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// The next two bytes.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    /// The next four bytes.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    /// The next eight bytes.
    ///
    /// # Errors
    /// As [`Input::fill`].
    fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// A string of one length byte and as many bytes of UTF-8.
    ///
    /// # Errors
    /// As [`Input::fill`]; [`DecodeError::Corrupt`] if it is not UTF-8.
    fn str8(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u8(what)?);
        self.text(what, length)
    }

    /// A string of `length` bytes (at most [`NAME_MAX_BYTES`]) of UTF-8.
    ///
    /// # Errors
    /// As [`Input::fill`]; [`DecodeError::Limit`] if it is too long, [`DecodeError::Corrupt`] if
    /// it is not UTF-8.
    fn text(&mut self, what: &'static str, length: usize) -> Result<String, DecodeError> {
        let offset = self.offset();
        DecodeError::check_limit(what, offset, length as u64, NAME_MAX_BYTES as u64)?;
        let mut bytes = vec![0; length];
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| {
            let bytes = error.into_bytes();
            DecodeError::corrupt(what, offset, "UTF-8", format!("{:02x?}", bytes))
        })
    }
}

/// An [`Input`] over a part of a file.
#[derive(Debug)]
pub struct FileInput<'r, R: ?Sized> {
    reader: &'r R,
    position: u64,
    end: u64,
}

impl<'r, R: ReadAt + ?Sized> FileInput<'r, R> {
    /// Reads `reader` from `position`; nothing at `end` or beyond is read.
    pub fn new(reader: &'r R, position: u64, end: u64) -> Self {
        Self {
            reader,
            position,
            end,
        }
    }

    /// Goes on reading at `position`.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// Where the readable part ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Passes over `bytes` bytes, which must exist.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if they do not.
    pub fn skip(&mut self, what: &'static str, bytes: u64) -> Result<(), DecodeError> {
        self.check(what, bytes)?;
        self.position += bytes;
        Ok(())
    }

    fn check(&self, what: &'static str, bytes: u64) -> Result<(), DecodeError> {
        match self.position.checked_add(bytes) {
            Some(end) if end <= self.end => Ok(()),
            _ => Err(DecodeError::Truncated {
                what,
                offset: self.position,
                needed_bytes: bytes,
                end: self.end,
                medium: Medium::File,
            }),
        }
    }
}

impl<R: ReadAt + ?Sized> Input for FileInput<'_, R> {
    fn offset(&self) -> u64 {
        self.position
    }

    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), DecodeError> {
        self.check(what, buffer.len() as u64)?;
        read(self.reader, what, self.position, buffer)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn peek(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.check(what, 1)?;
        let mut byte = [0];
        read(self.reader, what, self.position, &mut byte)?;
        Ok(byte[0])
    }
}

/// Reads at `offset` and names `what` if that fails.
pub(crate) fn read<R: ReadAt + ?Sized>(
    reader: &R,
    what: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), DecodeError> {
    reader
        .read_at(offset, buffer)
        .map_err(|source| DecodeError::Read {
            what,
            offset,
            source,
        })
}
