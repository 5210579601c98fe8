//! Writing records.

use std::sync::Arc;

use crate::NAME_MAX_BYTES;
use crate::stream::xbzrle;

use super::{BlockTable, encode_record, flag, put_str8};

/// Writes the records of one channel: everything but the pages themselves.
#[derive(Debug, Clone)]
pub struct RamWriter {
    table: Arc<BlockTable>,
    previous: Option<usize>,
}

impl RamWriter {
    /// The most bytes that a record takes without its page.
    pub const RECORD_MAX_BYTES: usize = 8 + 1 + NAME_MAX_BYTES + xbzrle::HEADER_BYTES;

    /// Writes records of pages in these blocks.
    pub fn new(table: Arc<BlockTable>) -> Self {
        Self {
            table,
            previous: None,
        }
    }

    /// The blocks.
    pub fn table(&self) -> &Arc<BlockTable> {
        &self.table
    }

    /// Names the block in the next record again, as a channel that takes another role wants it.
    pub fn forget_block(&mut self) {
        self.previous = None;
    }

    /// Appends the record of a page; its content must follow it.
    pub fn page(&mut self, block: usize, offset: u64, out: &mut Vec<u8>) {
        self.record(block, offset, flag::PAGE, out);
    }

    /// Appends the record of a page of zeros, all of it.
    pub fn zero(&mut self, block: usize, offset: u64, out: &mut Vec<u8>) {
        self.record(block, offset, flag::ZERO, out);
        out.push(0);
    }

    /// Appends the record of a page's difference, and the difference: at most a page of it.
    pub fn xbzrle(&mut self, block: usize, offset: u64, delta: &[u8], out: &mut Vec<u8>) {
        self.record(block, offset, flag::XBZRLE, out);
        xbzrle::encode_header(delta.len(), out);
        out.extend_from_slice(delta);
    }

    /// Appends the mark at which the main channel waits for the multifd channels.
    pub fn multifd_flush(&self, out: &mut Vec<u8>) {
        encode_record(0, flag::MULTIFD_FLUSH, out);
    }

    /// Appends the end of the body.
    pub fn eos(&self, out: &mut Vec<u8>) {
        encode_record(0, flag::EOS, out);
    }

    fn record(&mut self, block: usize, offset: u64, flags: u64, out: &mut Vec<u8>) {
        debug_assert!(self.table.check_page(block, offset, 0).is_ok());
        if self.previous.replace(block) == Some(block) {
            return encode_record(offset, flags | flag::CONTINUE, out);
        }
        encode_record(offset, flags, out);
        put_str8(out, &self.table.blocks()[block].id);
    }
}
