//! Writing the extension.

use super::super::{Block, Layout};
use super::{CRC_BYTES, Facts, MAGIC, VERSION, crc32c};

/// Plans the extension of a [`Layout`]: where the tables go is known before any page is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionPlan {
    extension_offset: u64,
    pages: Vec<u64>,
}

impl ExtensionPlan {
    /// Plans the extension behind a tail of `tail_bytes` bytes.
    pub fn new(layout: &Layout, tail_bytes: usize) -> Self {
        Self {
            extension_offset: layout.resume_offset + tail_bytes as u64,
            pages: layout.blocks.iter().map(Block::pages).collect(),
        }
    }

    /// Where the table of block `block` goes; [`encode_table`] makes its bytes.
    pub fn table_offset(&self, block: usize) -> u64 {
        let before: u64 = self.pages.iter().take(block).sum();
        self.extension_offset + before * CRC_BYTES
    }

    /// Where the directory goes, behind all tables.
    pub fn directory_offset(&self) -> u64 {
        self.table_offset(self.pages.len())
    }

    /// Directory and trailer, the last bytes of the file. `table_crcs` are the checksums of the
    /// tables' bytes, one a block.
    pub fn finish(&self, metadata_crc: u32, table_crcs: &[u32], facts: &Facts) -> Vec<u8> {
        debug_assert_eq!(table_crcs.len(), self.pages.len());
        let mut out = Vec::new();
        out.extend_from_slice(&metadata_crc.to_be_bytes());
        out.extend_from_slice(&(self.pages.len() as u32).to_be_bytes());
        for (block, pages) in self.pages.iter().enumerate() {
            out.extend_from_slice(&self.table_offset(block).to_be_bytes());
            out.extend_from_slice(&pages.to_be_bytes());
            let crc = table_crcs.get(block).copied().unwrap_or_default();
            out.extend_from_slice(&crc.to_be_bytes());
        }
        // Cannot fail: plain values.
        let facts = serde_json::to_vec(facts).unwrap_or_default();
        out.extend_from_slice(&(facts.len() as u32).to_be_bytes());
        out.extend_from_slice(&facts);
        out.extend_from_slice(&crc32c(&out).to_be_bytes());

        let trailer_start = out.len();
        let directory_offset = self.directory_offset();
        let trailer_offset = directory_offset + trailer_start as u64;
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&self.extension_offset.to_be_bytes());
        out.extend_from_slice(&(trailer_offset - self.extension_offset).to_be_bytes());
        out.extend_from_slice(&directory_offset.to_be_bytes());
        out.extend_from_slice(&crc32c(&out[trailer_start..]).to_be_bytes());
        out
    }

    /// The whole extension in one piece, for RAM that is small enough: `page_crcs` holds the
    /// checksum of each page of each block, 0 for pages that are not in the file.
    pub fn encode(
        &self,
        metadata_crc: u32,
        page_crcs: &[impl AsRef<[u32]>],
        facts: &Facts,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let mut table_crcs = Vec::with_capacity(page_crcs.len());
        for crcs in page_crcs {
            debug_assert_eq!(crcs.as_ref().len() as u64, self.pages[table_crcs.len()]);
            let table = encode_table(crcs.as_ref());
            table_crcs.push(crc32c(&table));
            out.extend_from_slice(&table);
        }
        out.extend_from_slice(&self.finish(metadata_crc, &table_crcs, facts));
        out
    }
}

/// The bytes of a page table, or of a part of one.
pub fn encode_table(page_crcs: &[u32]) -> Vec<u8> {
    page_crcs.iter().flat_map(|crc| crc.to_be_bytes()).collect()
}
