//! Planning a file: what stands where, before a page is written.
//!
//! A writer plans, writes the [`Piece`]s, pages and bitmaps at their offsets in any order, then
//! the tail at [`Layout::resume_offset`], and last the extension behind it.

use std::collections::HashSet;

use thiserror::Error;

use crate::device::DeviceSection;
use crate::stream::configuration::{Configuration, MAPPED_RAM};
use crate::stream::description::{DESCRIPTION_MAX_BYTES, Description, Promise};
use crate::stream::header;
use crate::stream::ram::{self, BlockEntry, MappedRamHeader, flag};
use crate::stream::section::{self, SectionHeader};
use crate::{NAME_MAX_BYTES, PAGE_BYTES};

use super::{Block, RAM_MAX_BYTES, SECTIONS_MAX, extension};

/// Pages begin at multiples of this, in bytes, as in QEMU's files.
const PAGES_ALIGNMENT_BYTES: u64 = 1 << 20;

/// The number of section `ram`; devices count on from it.
const RAM_SECTION_ID: u32 = 1;

/// What a plan needs to know of a RAM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPlan {
    /// The block's id, at most 255 bytes.
    pub id: String,
    /// Its used length, a multiple of [`PAGE_BYTES`].
    pub used_length_bytes: u64,
}

/// Bytes and their place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The place, in bytes from the start of the file.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Where the bytes end.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Will an extension with checksums follow the tail?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Yes: the tail promises it, and a file without it is refused.
    On,
    /// No: the file ends with the tail.
    Off,
}

/// The places of everything in front of the tail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// What CONFIGURATION says.
    pub configuration: Configuration,
    /// The stream's bytes in front of each block's bitmap, one piece a block.
    pub pieces: Vec<Piece>,
    /// The blocks, in the order of the plan.
    pub blocks: Vec<Block>,
    /// Where the tail goes.
    pub resume_offset: u64,
}

/// A file cannot be planned as asked: the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// There is nothing to save.
    #[error("a snapshot needs at least one RAM block")]
    NoBlocks,
    /// Too many blocks or sections.
    #[error("{found} {what} are more than the {limit} that a snapshot can have")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A name is empty or too long.
    #[error("the name {name:?} of a {what} is empty or longer than 255 bytes")]
    BadName {
        /// What it names.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two things have the same name.
    #[error("two {what} are called {name:?}")]
    Duplicate {
        /// What they are.
        what: &'static str,
        /// Their name.
        name: String,
    },
    /// A block's length is zero or not made of whole pages.
    #[error(
        "RAM block {id:?}: a length of {used_length_bytes} bytes is not a number of 4 KiB pages"
    )]
    NotPages {
        /// The block.
        id: String,
        /// Its length.
        used_length_bytes: u64,
    },
    /// A section's fields do not add up to its body: its length could not be found again.
    #[error(
        "section {name:?}.{instance}: {described_bytes:?} bytes are described, the body has {body_bytes}"
    )]
    Undescribed {
        /// The section.
        name: String,
        /// Its instance.
        instance: u32,
        /// The bytes that its fields have.
        described_bytes: Option<u64>,
        /// The bytes of its body.
        body_bytes: u64,
    },
    /// All blocks together are too large.
    #[error("the RAM blocks together are larger than {RAM_MAX_BYTES} bytes")]
    TooLarge,
    /// The description would be too long.
    #[error(
        "the description of all devices is {found_bytes} bytes, more than {DESCRIPTION_MAX_BYTES}"
    )]
    DescriptionTooLong {
        /// Its length.
        found_bytes: usize,
    },
}

impl Layout {
    /// Plans a file for these blocks.
    ///
    /// # Errors
    /// [`LayoutError`] for names, lengths and numbers of blocks that cannot be.
    pub fn plan(machine: &str, blocks: &[BlockPlan]) -> Result<Self, LayoutError> {
        check_name("machine", machine)?;
        check_blocks(blocks)?;
        let configuration = Configuration {
            machine: machine.to_owned(),
            capabilities: vec![MAPPED_RAM.to_owned()],
            ..Default::default()
        };
        let mut layout = Self {
            configuration,
            pieces: Vec::with_capacity(blocks.len()),
            blocks: Vec::with_capacity(blocks.len()),
            resume_offset: 0,
        };
        let total_bytes = blocks.iter().map(|block| block.used_length_bytes).sum();
        let mut bytes = layout.front(total_bytes);
        for block in blocks {
            layout.place(block, bytes);
            bytes = Vec::new();
        }
        Ok(layout)
    }

    fn front(&self, total_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        header::encode(&mut bytes);
        self.configuration.encode(&mut bytes);
        SectionHeader {
            id: RAM_SECTION_ID,
            name: ram::NAME.to_owned(),
            instance: 0,
            version: ram::VERSION,
        }
        .encode(section::START, &mut bytes);
        ram::encode_record(total_bytes, flag::MEM_SIZE, &mut bytes);
        bytes
    }

    /// Puts a block at the end of what is planned; `bytes` are in front of its entry.
    fn place(&mut self, plan: &BlockPlan, mut bytes: Vec<u8>) {
        BlockEntry {
            id: plan.id.clone(),
            used_length_bytes: plan.used_length_bytes,
        }
        .encode(&mut bytes);
        let bitmap_offset = self.resume_offset + bytes.len() as u64 + MappedRamHeader::BYTES;
        let mut block = Block {
            id: plan.id.clone(),
            used_length_bytes: plan.used_length_bytes,
            page_size_bytes: PAGE_BYTES,
            bitmap_offset,
            pages_offset: 0,
            header_version: MappedRamHeader::VERSION,
        };
        block.pages_offset =
            (bitmap_offset + block.bitmap_bytes()).next_multiple_of(PAGES_ALIGNMENT_BYTES);
        block.header().encode(&mut bytes);
        self.pieces.push(Piece {
            offset: self.resume_offset,
            bytes,
        });
        self.resume_offset = block.pages_offset + block.used_length_bytes;
        self.blocks.push(block);
    }

    /// What goes to [`Layout::resume_offset`]: the end of `ram`, the devices, the description.
    /// `devices` include `globalstate`; they are loaded in this order.
    ///
    /// # Errors
    /// [`LayoutError`] for names and numbers of sections that cannot be, for bodies that are not
    /// described, and for a description that is too long.
    pub fn tail(
        &self,
        devices: &[DeviceSection],
        checksums: Checksums,
    ) -> Result<Vec<u8>, LayoutError> {
        check_devices(devices)?;
        let mut out = Vec::new();
        ram::encode_record(0, flag::EOS, &mut out);
        section::encode_footer(RAM_SECTION_ID, &mut out);
        section::encode_continuation(section::END, RAM_SECTION_ID, &mut out);
        ram::encode_record(0, flag::EOS, &mut out);
        section::encode_footer(RAM_SECTION_ID, &mut out);
        for (id, device) in (RAM_SECTION_ID + 1..).zip(devices) {
            SectionHeader {
                id,
                name: device.name.clone(),
                instance: device.instance,
                version: device.version,
            }
            .encode(section::FULL, &mut out);
            out.extend_from_slice(&device.body);
            section::encode_footer(id, &mut out);
        }
        out.push(section::EOF);
        let description = self.describe(devices, checksums);
        if description.len() as u64 > DESCRIPTION_MAX_BYTES {
            return Err(LayoutError::DescriptionTooLong {
                found_bytes: description.len(),
            });
        }
        out.push(section::VMDESCRIPTION);
        out.extend_from_slice(&(description.len() as u32).to_be_bytes());
        out.extend_from_slice(&description);
        Ok(out)
    }

    fn describe(&self, devices: &[DeviceSection], checksums: Checksums) -> Vec<u8> {
        let description = Description {
            page_size: PAGE_BYTES,
            configuration: Some(self.configuration.describe()),
            devices: devices.iter().map(DeviceSection::describe).collect(),
            paguro: (checksums == Checksums::On).then_some(Promise {
                extension: extension::VERSION,
            }),
        };
        // Cannot fail: no maps with keys that are not strings, no writer that fails.
        serde_json::to_vec(&description).unwrap_or_default()
    }

    /// The checksum of all metadata: each piece and the bitmap behind it, then the tail.
    /// `bitmaps` are the words of each block's bitmap, in the order of the blocks.
    pub fn metadata_crc32c(&self, bitmaps: &[impl AsRef<[u64]>], tail: &[u8]) -> u32 {
        debug_assert_eq!(bitmaps.len(), self.blocks.len());
        let mut crc = 0;
        for (piece, words) in self.pieces.iter().zip(bitmaps) {
            crc = crc32c::crc32c_append(crc, &piece.bytes);
            for words in words.as_ref().chunks(8192) {
                let bytes = crate::bitmap::to_bytes(words);
                crc = crc32c::crc32c_append(crc, &bytes);
            }
        }
        crc32c::crc32c_append(crc, tail)
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), LayoutError> {
    if name.is_empty() || name.len() > NAME_MAX_BYTES {
        let name = name.to_owned();
        return Err(LayoutError::BadName { what, name });
    }
    Ok(())
}

fn check_count(what: &'static str, found: usize, limit: usize) -> Result<(), LayoutError> {
    if found > limit {
        Err(LayoutError::TooMany { what, found, limit })
    } else {
        Ok(())
    }
}

fn check_blocks(blocks: &[BlockPlan]) -> Result<(), LayoutError> {
    if blocks.is_empty() {
        return Err(LayoutError::NoBlocks);
    }
    check_count("RAM blocks", blocks.len(), ram::BLOCKS_MAX)?;
    let mut ids = HashSet::new();
    let mut total_bytes = 0u64;
    for block in blocks {
        check_name("RAM block", &block.id)?;
        if !ids.insert(&block.id) {
            return Err(LayoutError::Duplicate {
                what: "RAM blocks",
                name: block.id.clone(),
            });
        }
        if block.used_length_bytes == 0 || !block.used_length_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(LayoutError::NotPages {
                id: block.id.clone(),
                used_length_bytes: block.used_length_bytes,
            });
        }
        total_bytes = total_bytes.saturating_add(block.used_length_bytes);
    }
    if total_bytes > RAM_MAX_BYTES {
        Err(LayoutError::TooLarge)
    } else {
        Ok(())
    }
}

fn check_devices(devices: &[DeviceSection]) -> Result<(), LayoutError> {
    check_count("device sections", devices.len(), SECTIONS_MAX)?;
    let mut names = HashSet::new();
    for device in devices {
        check_name("device section", &device.name)?;
        if !names.insert((&device.name, device.instance)) || device.name == ram::NAME {
            return Err(LayoutError::Duplicate {
                what: "sections",
                name: format!("{}.{}", device.name, device.instance),
            });
        }
        let described_bytes = device.describe().body_bytes();
        let body_bytes = device.body.len() as u64;
        if described_bytes != Some(body_bytes) {
            return Err(LayoutError::Undescribed {
                name: device.name.clone(),
                instance: device.instance,
                described_bytes,
                body_bytes,
            });
        }
    }
    Ok(())
}
