//! The list of RAM blocks.

use std::collections::HashMap;

use thiserror::Error;

use crate::input::Input;
use crate::snapshot::RAM_MAX_BYTES;
use crate::{DecodeError, NAME_MAX_BYTES, PAGE_BYTES};

use super::{BLOCKS_MAX, BlockEntry, decode_record, encode_record, flag};

const WHAT: &str = "list of RAM blocks";

/// A RAM block as the list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBlock {
    /// The block's name.
    pub id: String,
    /// Its used length in bytes, whole pages.
    pub used_length_bytes: u64,
    /// The size of its pages in bytes, where the list says it: with postcopy, for pages that are
    /// larger than usual.
    pub page_size_bytes: Option<u64>,
    /// Where it stands in the guest, where the list says it: with `x-ignore-shared`.
    pub guest_address: Option<u64>,
}

impl ListedBlock {
    /// A block without what some capabilities add.
    pub fn new(id: impl Into<String>, used_length_bytes: u64) -> Self {
        Self {
            id: id.into(),
            used_length_bytes,
            page_size_bytes: None,
            guest_address: None,
        }
    }
}

/// What capabilities add to the entries of the list. Nothing in the stream says which: both
/// sides must know.
#[derive(Clone, Copy, Default)]
pub struct ListExtras<'a> {
    /// With postcopy: has the block of this name, *on this side*, pages of another size than
    /// usual? Then its entry has the size.
    pub page_size_of: Option<&'a dyn Fn(&str) -> bool>,
    /// With `x-ignore-shared`: every entry has the block's guest address.
    pub guest_addresses: bool,
}

/// RAM blocks cannot be listed: the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is nothing to list.
    #[error("there are no RAM blocks")]
    Empty,
    /// More than [`BLOCKS_MAX`].
    #[error("{found} RAM blocks, more than {BLOCKS_MAX}")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// More than [`RAM_MAX_BYTES`].
    #[error("more than {RAM_MAX_BYTES} bytes of RAM")]
    TooLarge,
    /// A name that cannot be written.
    #[error("name {id:?} of a RAM block is empty or longer than {NAME_MAX_BYTES} bytes")]
    BadName {
        /// The name.
        id: String,
    },
    /// A name twice.
    #[error("two RAM blocks are called {id:?}")]
    Repeated {
        /// The name.
        id: String,
    },
    /// A length that is not whole pages, or none.
    #[error("RAM block {id:?} has {used_length_bytes} bytes, not whole pages of {PAGE_BYTES}")]
    NotPages {
        /// The block.
        id: String,
        /// Its length.
        used_length_bytes: u64,
    },
}

/// The RAM blocks of a stream, known by number and by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<ListedBlock>,
    by_id: HashMap<Box<[u8]>, usize>,
}

impl BlockTable {
    /// A table of these blocks, in this order.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn new(blocks: Vec<ListedBlock>) -> Result<Self, TableError> {
        let mut table = Self::empty();
        if blocks.is_empty() {
            return Err(TableError::Empty);
        }
        if blocks.len() > BLOCKS_MAX {
            let found = blocks.len();
            return Err(TableError::TooMany { found });
        }
        let mut left_bytes = RAM_MAX_BYTES;
        for block in blocks {
            let id = block.id.clone();
            if id.is_empty() || id.len() > NAME_MAX_BYTES {
                return Err(TableError::BadName { id });
            }
            let used_length_bytes = block.used_length_bytes;
            if used_length_bytes == 0 || !used_length_bytes.is_multiple_of(PAGE_BYTES) {
                return Err(TableError::NotPages {
                    id,
                    used_length_bytes,
                });
            }
            left_bytes = left_bytes
                .checked_sub(used_length_bytes)
                .ok_or(TableError::TooLarge)?;
            if !table.push(block) {
                return Err(TableError::Repeated { id });
            }
        }
        Ok(table)
    }

    fn empty() -> Self {
        Self {
            blocks: Vec::new(),
            by_id: HashMap::new(),
        }
    }

    fn push(&mut self, block: ListedBlock) -> bool {
        let key = block.id.as_bytes().into();
        let new = self.by_id.insert(key, self.blocks.len()).is_none();
        self.blocks.push(block);
        new
    }

    /// The blocks, in the order of the list.
    pub fn blocks(&self) -> &[ListedBlock] {
        &self.blocks
    }

    /// The number of the block of this name.
    pub fn find(&self, id: &[u8]) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The bytes of all blocks.
    pub fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.used_length_bytes).sum()
    }

    /// Appends the record MEM_SIZE and the list. Entries have what `extras` asks for, and 0 where
    /// a block does not say it.
    pub fn encode(&self, extras: ListExtras<'_>, out: &mut Vec<u8>) {
        encode_record(self.total_bytes(), flag::MEM_SIZE, out);
        for block in &self.blocks {
            super::put_str8(out, &block.id);
            out.extend_from_slice(&block.used_length_bytes.to_be_bytes());
            if extras.page_size_of.is_some_and(|other| other(&block.id)) {
                out.extend_from_slice(&block.page_size_bytes.unwrap_or(0).to_be_bytes());
            }
            if extras.guest_addresses {
                out.extend_from_slice(&block.guest_address.unwrap_or(0).to_be_bytes());
            }
        }
    }

    /// Decodes the record MEM_SIZE and the list.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] for more blocks or more RAM than can be; [`DecodeError::Corrupt`]
    /// for another record, names that are empty or repeated, and lengths that are not pages or
    /// do not add up.
    pub fn decode<I: Input>(input: &mut I, extras: ListExtras<'_>) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let (total_bytes, flags) = decode_record(input)?;
        if flags != flag::MEM_SIZE || total_bytes == 0 {
            return Err(DecodeError::corrupt(
                WHAT,
                offset,
                "a record MEM_SIZE with the bytes of RAM",
                format!("{total_bytes:#x} with flags {flags:#x}"),
            ));
        }
        DecodeError::check_limit("size of RAM", offset, total_bytes, RAM_MAX_BYTES)?;
        let mut table = Self::empty();
        let mut left_bytes = total_bytes;
        while left_bytes > 0 {
            let offset = input.offset();
            let number = table.blocks.len() as u64 + 1;
            DecodeError::check_limit("number of RAM blocks", offset, number, BLOCKS_MAX as u64)?;
            let block = decode_block(input, extras)?;
            let length = block.used_length_bytes;
            if length == 0 || length > left_bytes || !length.is_multiple_of(PAGE_BYTES) {
                return Err(DecodeError::corrupt(
                    "RAM block's used length",
                    offset,
                    format!(
                        "whole pages, at most {left_bytes:#x} bytes that are left of the total"
                    ),
                    format!("{length:#x} bytes for {:?}", block.id),
                ));
            }
            left_bytes -= length;
            let id = block.id.clone();
            if !table.push(block) {
                let found = format!("a second {id:?}");
                return Err(DecodeError::corrupt(WHAT, offset, "each block once", found));
            }
        }
        Ok(table)
    }

    /// Compares the list of a stream, whose record begins at `offset`, with this side's blocks:
    /// all must be there, each with its length. Gives for each block of the stream the number of
    /// the same block here.
    ///
    /// # Errors
    /// [`DecodeError::Differs`], with the values of both sides.
    pub fn same_as(&self, here: &BlockTable, offset: u64) -> Result<Vec<usize>, DecodeError> {
        let list = |table: &BlockTable| {
            let texts: Vec<_> = table.blocks.iter().map(describe).collect();
            texts.join(", ")
        };
        let differs = |there: &str| DecodeError::differs("RAM blocks", offset, list(here), there);
        let mut numbers = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let Some(number) = here.find(block.id.as_bytes()) else {
                return Err(differs(&describe(block)));
            };
            let own = &here.blocks[number];
            if own.used_length_bytes != block.used_length_bytes {
                let here = describe(own);
                return Err(DecodeError::differs(
                    "RAM block",
                    offset,
                    here,
                    describe(block),
                ));
            }
            numbers.push(number);
        }
        if numbers.len() == here.blocks.len() {
            Ok(numbers)
        } else {
            Err(differs(&list(self)))
        }
    }

    /// Is there a page at `page_offset` in this block? `offset` is where the stream says so.
    pub(crate) fn check_page(
        &self,
        block: usize,
        page_offset: u64,
        offset: u64,
    ) -> Result<(), DecodeError> {
        let length = self.blocks[block].used_length_bytes;
        // Both are whole pages, so the page fits if it begins inside.
        if page_offset < length && page_offset.is_multiple_of(PAGE_BYTES) {
            Ok(())
        } else {
            Err(DecodeError::corrupt(
                "offset of a page",
                offset,
                format!(
                    "a page in the {length:#x} bytes of {:?}",
                    self.blocks[block].id
                ),
                format!("{page_offset:#x}"),
            ))
        }
    }

    /// The number of the block that the stream names at `offset`.
    pub(crate) fn named(&self, id: &[u8], offset: u64) -> Result<usize, DecodeError> {
        self.find(id).ok_or_else(|| {
            DecodeError::corrupt(
                "RAM block's name",
                offset,
                "a block of the list",
                format!("{:?}", String::from_utf8_lossy(id)),
            )
        })
    }
}

fn describe(block: &ListedBlock) -> String {
    format!("{:?} of {:#x} bytes", block.id, block.used_length_bytes)
}

fn decode_block<I: Input>(
    input: &mut I,
    extras: ListExtras<'_>,
) -> Result<ListedBlock, DecodeError> {
    let entry = BlockEntry::decode(input)?;
    let mut block = ListedBlock::new(entry.id, entry.used_length_bytes);
    if extras.page_size_of.is_some_and(|other| other(&block.id)) {
        block.page_size_bytes = Some(input.u64("RAM block's page size")?);
    }
    if extras.guest_addresses {
        block.guest_address = Some(input.u64("RAM block's guest address")?);
    }
    Ok(block)
}
