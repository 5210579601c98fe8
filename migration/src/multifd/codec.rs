//! zstd as multifd uses it: one stream a channel, flushed with each packet and never ended.

use std::io;

use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::multifd::{COMPRESSED_MAX_BYTES, PAGES_MAX};
use zstd::stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The window of level 20: what a source may make this side keep for a channel (32 MiB).
const WINDOW_LOG_MAX: u32 = 25;

/// Compresses the packets of one channel.
pub struct Packer {
    encoder: Encoder<'static>,
    out: Vec<u8>,
}

impl Packer {
    /// With this level.
    ///
    /// # Errors
    ///
    /// zstd's, when there is no memory.
    pub fn new(level: u8) -> io::Result<Self> {
        Ok(Self {
            encoder: Encoder::new(i32::from(level))?,
            out: Vec::with_capacity(COMPRESSED_MAX_BYTES as usize),
        })
    }

    /// The pages of the next packet, compressed; not more of them than a packet has.
    ///
    /// # Errors
    ///
    /// zstd's.
    pub fn pack(&mut self, pages: &[u8]) -> io::Result<&[u8]> {
        self.out.clear();
        let mut input = InBuffer::around(pages);
        let mut output = OutBuffer::around(&mut self.out);
        // There is room for twice of what goes in, and zstd adds a few bytes a block at most.
        let full = || io::Error::other("zstd makes more than twice of it");
        while input.pos() < pages.len() {
            let before = input.pos();
            self.encoder.run(&mut input, &mut output)?;
            if input.pos() == before && output.pos() == output.capacity() {
                return Err(full());
            }
        }
        while self.encoder.flush(&mut output)? > 0 {
            if output.pos() == output.capacity() {
                return Err(full());
            }
        }
        Ok(&self.out)
    }
}

/// Decompresses the packets of one channel.
pub struct Unpacker {
    decoder: Decoder<'static>,
    pages: Box<[u8]>,
    /// So much of them is there.
    here: usize,
    /// So much of them there will be.
    due: usize,
}

/// The payload of a packet is none.
#[derive(Debug)]
pub enum CodecError {
    /// zstd says so.
    Zstd(io::Error),
    /// More comes out of it than its pages.
    TooLong,
    /// Less comes out of it than its pages.
    TooShort {
        /// So many bytes.
        bytes: usize,
    },
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zstd(error) => write!(f, "{error}"),
            Self::TooLong => write!(f, "more bytes"),
            Self::TooShort { bytes } => write!(f, "{bytes} bytes"),
        }
    }
}

impl Unpacker {
    /// At the beginning of a channel.
    ///
    /// # Errors
    ///
    /// zstd's, when there is no memory.
    pub fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self {
            decoder,
            pages: vec![0; PAGES_MAX * PAGE_BYTES as usize].into_boxed_slice(),
            here: 0,
            due: 0,
        })
    }

    /// A packet with so many pages begins.
    pub fn begin(&mut self, pages: usize) {
        self.here = 0;
        self.due = pages.min(PAGES_MAX) * PAGE_BYTES as usize;
    }

    /// The next piece of its payload.
    ///
    /// # Errors
    ///
    /// It is no payload of zstd, or of more pages.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), CodecError> {
        let mut input = InBuffer::around(piece);
        loop {
            let room = &mut self.pages[self.here..self.due];
            let mut output = OutBuffer::around(room);
            let before = input.pos();
            self.decoder
                .run(&mut input, &mut output)
                .map_err(CodecError::Zstd)?;
            let made = output.pos();
            self.here += made;
            // What is consumed may still be inside: it ends when nothing comes out any more.
            let stuck = made == 0 && input.pos() == before;
            match (input.pos() == piece.len(), stuck) {
                (true, _) if made == 0 || self.here == self.due => return Ok(()),
                (false, true) => return Err(CodecError::TooLong),
                _ => {}
            }
        }
    }

    /// The pages, once the payload is at its end.
    ///
    /// # Errors
    ///
    /// It was one of more pages or fewer.
    pub fn end(&mut self) -> Result<&[u8], CodecError> {
        // What would not go into the pages is still inside.
        let mut more = [0; 1];
        let mut output = OutBuffer::around(&mut more[..]);
        self.decoder
            .run(&mut InBuffer::around(&[]), &mut output)
            .map_err(CodecError::Zstd)?;
        if output.pos() > 0 {
            return Err(CodecError::TooLong);
        }
        if self.here == self.due {
            Ok(&self.pages[..self.due])
        } else {
            Err(CodecError::TooShort { bytes: self.here })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = PAGE_BYTES as usize;

    fn pages(count: usize, seed: u64) -> Vec<u8> {
        let word = |i: usize| {
            let noise = (i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if i.is_multiple_of(3) { noise } else { seed }.to_le_bytes()
        };
        (0..count * PAGE / 8).flat_map(word).collect()
    }

    #[test]
    fn packets_come_back_whatever_pieces_they_come_in() {
        let mut packer = Packer::new(1).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        for (round, count) in [1, 128, 7, 128, 2].into_iter().enumerate() {
            let pages = pages(count, round as u64);
            let packed = packer.pack(&pages).unwrap();
            unpacker.begin(count);
            for piece in packed.chunks(1 + round * 1000) {
                unpacker.feed(piece).unwrap();
            }
            assert_eq!(unpacker.end().unwrap(), pages);
        }
    }

    #[test]
    fn what_cannot_be_compressed_has_room() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(PAGES_MAX * PAGE)
        .collect();
        for level in [1, 20] {
            let mut packer = Packer::new(level).unwrap();
            let packed = packer.pack(&noise).unwrap().to_vec();
            let mut unpacker = Unpacker::new().unwrap();
            unpacker.begin(PAGES_MAX);
            unpacker.feed(&packed).unwrap();
            assert_eq!(unpacker.end().unwrap(), noise);
        }
    }

    #[test]
    fn a_payload_of_more_or_fewer_bytes_than_its_pages_is_refused() {
        for (said, packed) in [(1, 2), (1, 128), (2, 1), (128, 127)] {
            let mut packer = Packer::new(3).unwrap();
            let payload = packer.pack(&vec![7; packed * PAGE]).unwrap().to_vec();
            let mut unpacker = Unpacker::new().unwrap();
            unpacker.begin(said);
            let fed = unpacker.feed(&payload);
            let ended = fed.and_then(|()| unpacker.end().map(<[u8]>::len));
            let refused = match ended {
                Err(CodecError::TooLong) => packed > said,
                Err(CodecError::TooShort { .. }) => packed < said,
                _ => false,
            };
            assert!(refused, "{packed} pages as {said}: {ended:?}");
        }
        let mut unpacker = Unpacker::new().unwrap();
        unpacker.begin(1);
        assert!(matches!(
            unpacker.feed(b"no zstd at all"),
            Err(CodecError::Zstd(_))
        ));
    }
}
