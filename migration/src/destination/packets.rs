//! The packets of a multifd channel: what is in them goes where it belongs.

use std::sync::Arc;

use paguro_wire::DecodeError;
use paguro_wire::input::Input;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::multifd::PacketReader;
use paguro_wire::stream::ram::BlockTable;

use super::direct::Direct;
use super::memory::{Ahead, Arriving, TakeError};
use crate::multifd::{CodecError, Compression, Unpacker};

/// As errors call it.
pub(super) const WHAT: &str = "multifd packet";
const PAGE: usize = paguro_wire::PAGE_BYTES as usize;

/// Takes the packets of one channel.
pub(super) struct Packets {
    memory: Arc<Arriving>,
    reader: PacketReader,
    unpacker: Option<Unpacker>,
    ahead: Ahead,
}

/// What came with a packet.
pub(super) struct Came {
    /// Its number among those of all channels.
    pub(super) number: u64,
    /// Pages with content.
    pub(super) normal: u64,
    /// Pages of zeros.
    pub(super) zero: u64,
    /// The channel is at its SYNC.
    pub(super) sync: bool,
}

impl Packets {
    pub(super) fn new(
        memory: Arc<Arriving>,
        table: Arc<BlockTable>,
        compression: Compression,
    ) -> Result<Self, TakeError> {
        let unpacker = match compression {
            Compression::None => None,
            Compression::Zstd { .. } => {
                let none = |source| DecodeError::Read {
                    what: WHAT,
                    offset: 0,
                    source,
                };
                Some(Unpacker::new().map_err(none)?)
            }
        };
        Ok(Self {
            memory,
            reader: PacketReader::new(table, compression.on_wire()),
            unpacker,
            ahead: Ahead::default(),
        })
    }

    /// The next one, which has begun to come; `None` if `is_over` when its head is here, and then what
    /// is in it is left there.
    pub(super) fn take<R: Direct>(
        &mut self,
        input: &mut ChannelInput<R>,
        is_over: impl FnOnce() -> bool,
    ) -> Result<Option<Came>, TakeError> {
        let packet = self.reader.packet(input)?;
        if is_over() {
            return Ok(None);
        }
        let (memory, block) = (&*self.memory, packet.block);
        memory.prepare_all(block, packet.normal, &mut self.ahead);
        match &mut self.unpacker {
            Some(unpacker) if !packet.normal.is_empty() => {
                let payload = packet.payload_bytes as usize;
                let pages = unpack(unpacker, input, payload, packet.normal.len())?;
                for (&offset, page) in packet.normal.iter().zip(pages.chunks_exact(PAGE)) {
                    memory.page(block, offset, page)?;
                }
            }
            _ => {
                let poured = input.reader().is_direct()
                    && memory.pour(block, packet.normal, |landing| input.pour(WHAT, landing))?;
                if !poured {
                    for &offset in packet.normal {
                        memory.page(block, offset, input.page(WHAT)?)?;
                    }
                }
            }
        }
        for &offset in packet.zero {
            memory.zero(block, offset)?;
        }
        Ok(Some(Came {
            number: packet.number,
            normal: packet.normal.len() as u64,
            zero: packet.zero.len() as u64,
            sync: packet.sync,
        }))
    }
}

/// So many packed bytes come, in which there are so many pages.
fn unpack<'u, R: Direct>(
    unpacker: &'u mut Unpacker,
    input: &mut ChannelInput<R>,
    mut left_bytes: usize,
    pages: usize,
) -> Result<&'u [u8], DecodeError> {
    let at = input.offset();
    let wrong = |found: CodecError| DecodeError::Corrupt {
        what: "zstd payload of a multifd packet",
        offset: at,
        expected: format!("{pages} pages"),
        found: found.to_string(),
    };
    unpacker.begin(pages);
    while left_bytes > 0 {
        let piece = input.some(WHAT, left_bytes)?;
        left_bytes -= piece.len();
        unpacker.feed(piece).map_err(wrong)?;
    }
    unpacker.end().map_err(wrong)
}
