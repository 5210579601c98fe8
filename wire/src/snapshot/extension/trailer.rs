//! Reading the extension, from the trailer backwards.

use crate::input::{FileInput, Input, read};
use crate::{DecodeError, ReadAt};

use super::super::Block;
use super::{CRC_BYTES, Extension, FACTS_MAX_BYTES, MAGIC, TRAILER_BYTES, Table, VERSION, crc32c};

/// A block's entry in the directory.
const ENTRY_BYTES: u64 = 20;
/// What a directory has besides entries and facts.
const DIRECTORY_FIXED_BYTES: u64 = 16;

/// The trailer: where the rest of the extension stands.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Trailer {
    pub(in super::super) extension_offset: u64,
    trailer_offset: u64,
    directory_offset: u64,
}

impl Trailer {
    /// Looks for a trailer at the end of a file of `file_bytes` bytes. A file without one is not
    /// wrong.
    pub(in super::super) fn find<R: ReadAt + ?Sized>(
        reader: &R,
        file_bytes: u64,
    ) -> Result<Option<Self>, DecodeError> {
        const WHAT: &str = "trailer";
        let Some(trailer_offset) = file_bytes.checked_sub(TRAILER_BYTES) else {
            return Ok(None);
        };
        let mut bytes = [0; TRAILER_BYTES as usize];
        read(reader, WHAT, trailer_offset, &mut bytes)?;
        if !bytes.starts_with(&MAGIC) {
            return Ok(None);
        }
        let mut input = FileInput::new(reader, trailer_offset + MAGIC.len() as u64, file_bytes);
        let version = input.u32(WHAT)?;
        let reserved = input.u32(WHAT)?;
        let extension_offset = input.u64(WHAT)?;
        let length_bytes = input.u64(WHAT)?;
        let directory_offset = input.u64(WHAT)?;
        check_crc(
            WHAT,
            trailer_offset,
            &bytes[..bytes.len() - 4],
            input.u32(WHAT)?,
        )?;
        if version != VERSION || reserved != 0 {
            let found = format!("version {version}, flags {reserved:#x}");
            return Err(DecodeError::unsupported(
                "extension",
                trailer_offset,
                found,
                "version 1 without flags",
            ));
        }
        if extension_offset.checked_add(length_bytes) != Some(trailer_offset)
            || !(extension_offset..=trailer_offset).contains(&directory_offset)
        {
            return Err(DecodeError::corrupt(
                WHAT,
                trailer_offset,
                format!("an extension that ends at {trailer_offset:#x}"),
                format!(
                    "{length_bytes} bytes at {extension_offset:#x}, directory at {directory_offset:#x}"
                ),
            ));
        }
        Ok(Some(Self {
            extension_offset,
            trailer_offset,
            directory_offset,
        }))
    }

    /// Reads the directory, which must fit these blocks.
    pub(in super::super) fn read_extension<R: ReadAt + ?Sized>(
        &self,
        reader: &R,
        blocks: &[Block],
    ) -> Result<Extension, DecodeError> {
        const WHAT: &str = "directory of checksums";
        let offset = self.directory_offset;
        let found_bytes = self.trailer_offset - offset;
        let least_bytes = DIRECTORY_FIXED_BYTES + blocks.len() as u64 * ENTRY_BYTES;
        let most_bytes = least_bytes + FACTS_MAX_BYTES as u64;
        if !(least_bytes..=most_bytes).contains(&found_bytes) {
            let expected = format!("{least_bytes} to {most_bytes} bytes");
            return Err(DecodeError::corrupt(WHAT, offset, expected, found_bytes));
        }
        let mut bytes = vec![0; found_bytes as usize];
        read(reader, WHAT, offset, &mut bytes)?;
        let (covered, crc) = bytes.split_at(bytes.len() - 4);
        let crc = u32::from_be_bytes(crc.try_into().unwrap_or_default());
        check_crc(WHAT, offset, covered, crc)?;

        let mut input = FileInput::new(reader, offset, self.trailer_offset - 4);
        let metadata_crc = input.u32(WHAT)?;
        let count = input.u32(WHAT)?;
        if u64::from(count) != blocks.len() as u64 {
            let expected = format!("{} RAM blocks", blocks.len());
            return Err(DecodeError::corrupt(WHAT, offset + 4, expected, count));
        }
        let tables = self.read_tables(&mut input, blocks)?;
        let facts_offset = input.offset();
        let facts_bytes = u64::from(input.u32(WHAT)?);
        let left_bytes = input.end() - input.offset();
        if facts_bytes != left_bytes {
            let expected = format!("{left_bytes} bytes of facts");
            return Err(DecodeError::corrupt(
                WHAT,
                facts_offset,
                expected,
                facts_bytes,
            ));
        }
        let facts = serde_json::from_slice(&covered[covered.len() - facts_bytes as usize..])
            .map_err(|source| DecodeError::Json {
                what: "facts",
                offset: facts_offset + 4,
                source,
            })?;
        Ok(Extension {
            offset: self.extension_offset,
            length_bytes: self.trailer_offset + TRAILER_BYTES - self.extension_offset,
            metadata_crc,
            tables,
            facts,
        })
    }

    fn read_tables<I: Input>(
        &self,
        input: &mut I,
        blocks: &[Block],
    ) -> Result<Vec<Table>, DecodeError> {
        const WHAT: &str = "table of page checksums";
        let mut tables = Vec::with_capacity(blocks.len());
        let mut expected_offset = self.extension_offset;
        for block in blocks {
            let offset = input.offset();
            let table = Table {
                offset: input.u64(WHAT)?,
                pages: input.u64(WHAT)?,
                crc: input.u32(WHAT)?,
            };
            if table.offset != expected_offset || table.pages != block.pages() {
                return Err(DecodeError::corrupt(
                    WHAT,
                    offset,
                    format!("{} pages at {expected_offset:#x}", block.pages()),
                    format!("{} pages at {:#x}", table.pages, table.offset),
                ));
            }
            // No overflow: pages of a block whose pages fit into the file.
            expected_offset += table.pages * CRC_BYTES;
            tables.push(table);
        }
        if expected_offset != self.directory_offset {
            return Err(DecodeError::corrupt(
                "directory of checksums",
                self.directory_offset,
                format!("it at {expected_offset:#x}, behind the tables"),
                format!("{:#x}", self.directory_offset),
            ));
        }
        Ok(tables)
    }
}

fn check_crc(
    what: &'static str,
    offset: u64,
    bytes: &[u8],
    expected: u32,
) -> Result<(), DecodeError> {
    match crc32c(bytes) {
        found if found == expected => Ok(()),
        found => Err(DecodeError::corrupt(
            what,
            offset,
            format!("checksum {expected:08x}"),
            format!("{found:08x}"),
        )),
    }
}
