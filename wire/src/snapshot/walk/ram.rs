//! Section `ram` of a mapped-ram file: the block list, and marks where pages would be.

use crate::input::Input;
use crate::stream::ram::{self, BLOCKS_MAX, BlockEntry, MappedRamHeader, flag};
use crate::stream::section;
use crate::{DecodeError, Medium, ReadAt};

use super::{Block, RAM_MAX_BYTES, RamProgress, Section, SectionKind, Walk};

impl<R: ReadAt + ?Sized> Walk<'_, R> {
    pub(super) fn start(&mut self, offset: u64) -> Result<(), DecodeError> {
        let header = self.section_header(offset)?;
        if header.name != ram::NAME {
            return Err(DecodeError::unsupported(
                "section",
                offset,
                format!("iterable section {:?}", header.name),
                "ram",
            ));
        }
        if self.ram != RamProgress::NotStarted {
            return Err(DecodeError::corrupt(
                "section",
                offset,
                "one START of ram",
                "a second",
            ));
        }
        if header.version != ram::VERSION || header.instance != 0 {
            return Err(DecodeError::unsupported(
                "section ram",
                offset,
                format!("version {}, instance {}", header.version, header.instance),
                "version 4, instance 0",
            ));
        }
        let id = header.id;
        self.ram = RamProgress::Started {
            id,
            section: self.sections.len(),
        };
        let body_offset = self.input.offset();
        self.sections.push(Section {
            id,
            name: header.name,
            instance: header.instance,
            version: header.version,
            kind: SectionKind::Ram,
            body_offset,
            body_bytes: 0,
            vmsd_name: None,
            fields: Vec::new(),
            subsections: Vec::new(),
        });
        self.block_list()?;
        self.ram_records()?;
        section::decode_footer(&mut self.input, id)
    }

    fn block_list(&mut self) -> Result<(), DecodeError> {
        const WHAT: &str = "list of RAM blocks";
        let offset = self.input.offset();
        let (total_bytes, flags) = ram::decode_record(&mut self.input)?;
        if flags != flag::MEM_SIZE {
            return Err(DecodeError::corrupt(
                WHAT,
                offset,
                "a record MEM_SIZE",
                format!("flags {flags:#x}"),
            ));
        }
        if total_bytes > RAM_MAX_BYTES {
            return Err(DecodeError::Limit {
                what: "size of RAM",
                offset,
                found: total_bytes,
                limit: RAM_MAX_BYTES,
            });
        }
        let mut left_bytes = total_bytes;
        while left_bytes > 0 {
            let offset = self.input.offset();
            if self.blocks.len() == BLOCKS_MAX {
                return Err(DecodeError::Limit {
                    what: "number of RAM blocks",
                    offset,
                    found: BLOCKS_MAX as u64 + 1,
                    limit: BLOCKS_MAX as u64,
                });
            }
            let block = self.block(left_bytes)?;
            left_bytes -= block.used_length_bytes;
            if self.blocks.iter().any(|other| other.id == block.id) {
                return Err(DecodeError::corrupt(
                    "RAM block's id",
                    offset,
                    "each id once",
                    format!("a second {:?}", block.id),
                ));
            }
            // The next entry stands behind this block's pages.
            let next = block.pages_offset + block.used_length_bytes;
            self.stream_ranges
                .push(self.stream_start..self.input.offset());
            self.input.seek(next);
            self.stream_start = next;
            self.blocks.push(block);
        }
        Ok(())
    }

    /// Decodes a block's entry and checks that all of it lies within the file.
    fn block(&mut self, left_bytes: u64) -> Result<Block, DecodeError> {
        let offset = self.input.offset();
        let entry = BlockEntry::decode(&mut self.input)?;
        let header_offset = self.input.offset();
        let header = MappedRamHeader::decode(&mut self.input)?;
        let page_size_bytes = header.page_size_bytes;
        if !page_size_bytes.is_power_of_two() || !(4096..=65536).contains(&page_size_bytes) {
            return Err(DecodeError::unsupported(
                "page size of a RAM block",
                header_offset,
                page_size_bytes,
                "4096, 8192, ... 65536",
            ));
        }
        let length = entry.used_length_bytes;
        if length > left_bytes || !length.is_multiple_of(page_size_bytes) {
            return Err(DecodeError::corrupt(
                "RAM block's used length",
                offset,
                format!("whole pages of {page_size_bytes} bytes, at most {left_bytes} bytes"),
                format!("{length} bytes for {:?}", entry.id),
            ));
        }
        let block = Block {
            id: entry.id,
            used_length_bytes: length,
            page_size_bytes,
            bitmap_offset: header.bitmap_offset,
            pages_offset: header.pages_offset,
            header_version: header.version,
        };
        if !block.pages_offset.is_multiple_of(page_size_bytes)
            || block.pages_offset < self.input.offset()
        {
            return Err(DecodeError::corrupt(
                "offset of a RAM block's pages",
                header_offset,
                format!(
                    "a multiple of {page_size_bytes} not below {:#x}",
                    self.input.offset()
                ),
                format!("{:#x} for {:?}", block.pages_offset, block.id),
            ));
        }
        self.check_inside(
            "bitmap of a RAM block",
            block.bitmap_offset,
            block.bitmap_bytes(),
        )?;
        self.check_inside("pages of a RAM block", block.pages_offset, length)?;
        Ok(block)
    }

    fn check_inside(&self, what: &'static str, offset: u64, bytes: u64) -> Result<(), DecodeError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.file_bytes => Ok(()),
            _ => Err(DecodeError::Truncated {
                what,
                offset,
                needed_bytes: bytes,
                end: self.file_bytes,
                medium: Medium::File,
            }),
        }
    }

    /// In a mapped-ram file the records of RAM are only marks.
    fn ram_records(&mut self) -> Result<(), DecodeError> {
        loop {
            let offset = self.input.offset();
            match ram::decode_record(&mut self.input)? {
                (0, flag::EOS) => return Ok(()),
                (0, flag::MULTIFD_FLUSH) => {}
                (page, flags) => {
                    return Err(DecodeError::corrupt(
                        "RAM record",
                        offset,
                        "EOS",
                        format!("offset {page:#x}, flags {flags:#x}"),
                    ));
                }
            }
        }
    }

    pub(super) fn ram_continuation(
        &mut self,
        offset: u64,
        is_end: bool,
    ) -> Result<(), DecodeError> {
        let found = self.input.u32("section id")?;
        let RamProgress::Started { id, section } = self.ram else {
            return Err(DecodeError::corrupt(
                "section",
                offset,
                "a part of a section that has started",
                format!("section {found}"),
            ));
        };
        if found != id {
            return Err(DecodeError::corrupt("section", offset, id, found));
        }
        self.ram_records()?;
        if is_end {
            self.ram = RamProgress::Ended;
            let ram = &mut self.sections[section];
            ram.body_bytes = self.input.offset() - ram.body_offset;
        }
        section::decode_footer(&mut self.input, id)
    }
}
