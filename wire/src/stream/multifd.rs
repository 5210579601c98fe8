//! Multifd: pages on channels of their own, many at a time.
//!
//! ```text
//! init packet, once, 64 bytes      u32 11223344, u32 1, 16 bytes UUID, u8 channel, 39 zeros
//!
//! packet, 1344 bytes, then its payload
//!    0  u32 11223344, u32 1
//!    8  u32 flags                  01 SYNC, 02 zlib, 04 zstd
//!   12  u32 pages_alloc            at most 128
//!   16  u32 normal_pages
//!   20  u32 next_packet_size       the bytes of the payload
//!   24  u64 packet_num             one count for all channels
//!   32  u32 zero_pages             since QEMU 9.0, before that always 0
//!   36  28 zeros
//!   64  256 bytes name of the block, filled up with NUL
//!  320  u64 offsets[128]           of the normal pages, then of the zero pages
//! ```
//!
//! The payload is the normal pages, one after the other in the order of their offsets, or what
//! compression makes of them: one endless stream a channel, flushed at the end of each packet. A
//! packet has a payload only if it has normal pages; what else a packet without pages says of
//! name and size may be left over from one before, and is not looked at.
//!
//! SYNC: the channel waits there until the main channel comes to its mark.

use std::sync::Arc;

use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

use super::ram::BlockTable;

/// What packets begin with.
pub const MAGIC: u32 = 0x1122_3344;
/// The only version.
pub const VERSION: u32 = 1;
/// The bytes of an init packet.
pub const INIT_BYTES: usize = 64;
/// The bytes of a packet without its payload.
pub const PACKET_BYTES: usize = NAME_AT + NAME_BYTES + 8 * PAGES_MAX;
/// The most pages that a packet has.
pub const PAGES_MAX: usize = 128;
/// The longest compressed payload that is read: twice the pages, as QEMU's own buffer.
pub const COMPRESSED_MAX_BYTES: u32 = 2 * PAGES_MAX as u32 * PAGE_BYTES as u32;

const SYNC: u32 = 1;
const ZLIB: u32 = 2;
const ZSTD: u32 = 4;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 256;
const WHAT: &str = "multifd packet";

/// What a channel says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// The UUID of the machine; zeros if it has none.
    pub uuid: [u8; 16],
    /// The channel's number; channels come in any order.
    pub channel: u8,
}

impl Init {
    /// The packet.
    pub fn encode(&self) -> [u8; INIT_BYTES] {
        let mut bytes = [0; INIT_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8..24].copy_from_slice(&self.uuid);
        bytes[24] = self.channel;
        bytes
    }

    /// Decodes the packet on a channel of `channels`, of the machine of this UUID.
    ///
    /// # Errors
    /// [`DecodeError::NotAStream`] for another magic, [`DecodeError::Unsupported`] for another
    /// version, [`DecodeError::Differs`] for another UUID, [`DecodeError::Corrupt`] for a number
    /// that no channel has.
    pub fn decode<I: Input>(
        input: &mut I,
        uuid: &[u8; 16],
        channels: u8,
    ) -> Result<Self, DecodeError> {
        const WHAT: &str = "multifd channel";
        let offset = input.offset();
        let bytes: [u8; INIT_BYTES] = input.array(WHAT)?;
        let magic = *bytes.first_chunk().unwrap_or(&[0; 4]);
        if magic != MAGIC.to_be_bytes() {
            return Err(DecodeError::NotAStream {
                found: magic,
                expected: MAGIC.to_be_bytes(),
            });
        }
        check_version(WHAT, offset, u32_at(&bytes, 4))?;
        if bytes[8..24] != *uuid {
            let there = format!("{:02x?}", &bytes[8..24]);
            let here = format!("{uuid:02x?}");
            return Err(DecodeError::differs(
                "UUID of the machine",
                offset,
                here,
                there,
            ));
        }
        let channel = bytes[24];
        if channel >= channels {
            let expected = format!("a number below {channels}");
            return Err(DecodeError::corrupt(WHAT, offset, expected, channel));
        }
        Ok(Self {
            uuid: *uuid,
            channel,
        })
    }
}

/// How payloads are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Payload {
    /// Not at all.
    #[default]
    None,
    /// zlib.
    Zlib,
    /// zstd.
    Zstd,
}

impl Payload {
    fn flag(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Zlib => ZLIB,
            Self::Zstd => ZSTD,
        }
    }
}

/// A packet: pages of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Wait for the main channel after this packet.
    pub sync: bool,
    /// The packet's number among those of all channels.
    pub number: u64,
    /// The number of the block; means nothing if there are no pages.
    pub block: usize,
    /// Offsets of the pages in the payload, in bytes from the block's beginning.
    pub normal: &'a [u64],
    /// Offsets of pages that are zero.
    pub zero: &'a [u64],
    /// The bytes of the payload, which follow; 0 if there are no normal pages.
    pub payload_bytes: u32,
}

impl Packet<'_> {
    /// A packet without pages, at which the channel waits.
    pub fn sync(number: u64) -> Packet<'static> {
        Packet {
            sync: true,
            number,
            block: 0,
            normal: &[],
            zero: &[],
            payload_bytes: 0,
        }
    }

    /// Appends the packet without its payload. The pages must be of the table's block, at most
    /// [`PAGES_MAX`], and the payload's bytes be those of the pages if they are not compressed.
    pub fn encode(&self, table: &BlockTable, compression: Payload, out: &mut Vec<u8>) {
        let pages = self.normal.len() + self.zero.len();
        debug_assert!(pages <= PAGES_MAX);
        let begin = out.len();
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        let mut flags = u32::from(self.sync) * SYNC;
        let mut alloc = 0;
        if pages > 0 {
            flags |= compression.flag();
            alloc = PAGES_MAX as u32;
        }
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&alloc.to_be_bytes());
        out.extend_from_slice(&(self.normal.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.payload_bytes.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&(self.zero.len() as u32).to_be_bytes());
        out.resize(begin + NAME_AT, 0);
        if pages > 0 {
            out.extend_from_slice(table.blocks()[self.block].id.as_bytes());
        }
        out.resize(begin + NAME_AT + NAME_BYTES, 0);
        for offset in self.normal.iter().chain(self.zero) {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out.resize(begin + PACKET_BYTES, 0);
    }
}

/// Reads the packets of one channel.
#[derive(Debug, Clone)]
pub struct PacketReader {
    table: Arc<BlockTable>,
    compression: Payload,
    bytes: Box<[u8; PACKET_BYTES]>,
    offsets: Box<[u64; PAGES_MAX]>,
}

impl PacketReader {
    /// Reads packets of pages in these blocks, compressed as both sides were told.
    pub fn new(table: Arc<BlockTable>, compression: Payload) -> Self {
        Self {
            table,
            compression,
            bytes: Box::new([0; PACKET_BYTES]),
            offsets: Box::new([0; PAGES_MAX]),
        }
    }

    /// Decodes the next packet; its payload is then next in the input. Allocates nothing.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for another version or for flags of what is not there (QPL,
    /// UADK, QATzip, device state); [`DecodeError::Differs`] for another compression;
    /// [`DecodeError::Limit`] and [`DecodeError::Corrupt`] for everything that does not fit.
    pub fn packet<I: Input>(&mut self, input: &mut I) -> Result<Packet<'_>, DecodeError> {
        let at = input.offset();
        input.fill(WHAT, &mut self.bytes[..])?;
        let magic = u32_at(&self.bytes[..], 0);
        if magic != MAGIC {
            let (expected, found) = (format!("{MAGIC:#x}"), format!("{magic:#x}"));
            return Err(DecodeError::corrupt(
                "magic of a multifd packet",
                at,
                expected,
                found,
            ));
        }
        check_version(WHAT, at, u32_at(&self.bytes[..], 4))?;
        let flags = u32_at(&self.bytes[..], 8);
        if flags & !(SYNC | ZLIB | ZSTD) != 0 {
            let found = format!("flags {flags:#x}");
            let supported = "SYNC, zlib, zstd";
            return Err(DecodeError::unsupported(WHAT, at + 8, found, supported));
        }
        let (normal, zero) = self.counts(at)?;
        let mut packet = Packet {
            sync: flags & SYNC != 0,
            number: u64_at(&self.bytes[..], 24),
            block: 0,
            normal: &[],
            zero: &[],
            payload_bytes: 0,
        };
        if normal + zero > 0 {
            packet.block = self.block(at)?;
            self.read_offsets(packet.block, normal + zero, at)?;
        }
        if normal > 0 {
            self.check_compression(flags, at)?;
            packet.payload_bytes = self.payload_bytes(normal, at)?;
        }
        (packet.normal, packet.zero) = self.offsets[..normal + zero].split_at(normal);
        Ok(packet)
    }

    fn counts(&self, at: u64) -> Result<(usize, usize), DecodeError> {
        let [alloc, normal, zero] =
            [12, 16, 32].map(|field| u64::from(u32_at(&self.bytes[..], field)));
        DecodeError::check_limit("pages_alloc", at + 12, alloc, PAGES_MAX as u64)?;
        DecodeError::check_limit("pages of a multifd packet", at + 16, normal + zero, alloc)?;
        Ok((normal as usize, zero as usize))
    }

    fn block(&self, at: u64) -> Result<usize, DecodeError> {
        let at = at + NAME_AT as u64;
        let name = &self.bytes[NAME_AT..][..NAME_BYTES];
        let length = name.iter().position(|byte| *byte == 0);
        match length.map(|length| name.split_at(length)) {
            Some((id, padding)) if padding.iter().all(|byte| *byte == 0) => {
                self.table.named(id, at)
            }
            _ => Err(DecodeError::corrupt(
                "RAM block's name",
                at,
                "255 bytes at most, filled up with NUL",
                format!("{:?}", String::from_utf8_lossy(name)),
            )),
        }
    }

    fn read_offsets(&mut self, block: usize, count: usize, at: u64) -> Result<(), DecodeError> {
        let begin = NAME_AT + NAME_BYTES;
        let (words, _) = self.bytes[begin..].as_chunks::<8>();
        for (index, word) in words[..count].iter().enumerate() {
            let offset = u64::from_be_bytes(*word);
            let place = at + (begin + index * 8) as u64;
            self.table.check_page(block, offset, place)?;
            self.offsets[index] = offset;
        }
        Ok(())
    }

    fn check_compression(&self, flags: u32, at: u64) -> Result<(), DecodeError> {
        let found = flags & !SYNC;
        if found == self.compression.flag() {
            Ok(())
        } else {
            Err(DecodeError::differs(
                "compression of multifd",
                at + 8,
                format!("{:?}", self.compression),
                format!("flags {found:#x} (0: none, 0x2: zlib, 0x4: zstd)"),
            ))
        }
    }

    fn payload_bytes(&self, normal: usize, at: u64) -> Result<u32, DecodeError> {
        let found = u32_at(&self.bytes[..], 20);
        let plain = normal as u32 * PAGE_BYTES as u32;
        let fits = match self.compression {
            Payload::None => found == plain,
            _ => (1..=COMPRESSED_MAX_BYTES).contains(&found),
        };
        if fits {
            Ok(found)
        } else {
            Err(DecodeError::corrupt(
                "payload of a multifd packet",
                at + 20,
                match self.compression {
                    Payload::None => format!("{plain} bytes for {normal} pages"),
                    _ => format!("1 to {COMPRESSED_MAX_BYTES} bytes"),
                },
                found,
            ))
        }
    }
}

fn check_version(what: &'static str, offset: u64, found: u32) -> Result<(), DecodeError> {
    match found {
        VERSION => Ok(()),
        other => {
            let found = format!("version {other}");
            Err(DecodeError::unsupported(
                what,
                offset + 4,
                found,
                "version 1",
            ))
        }
    }
}

/// Within the packet: offsets are constants here.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().unwrap_or(&[0; 4]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().unwrap_or(&[0; 8]))
}
