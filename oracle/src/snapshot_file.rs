//! RAM in a snapshot file, by a reader of its own.
//!
//! It reads only what the check needs: the header, the list of RAM blocks with their bitmaps,
//! the pages, and the counters in the section of the device that writes RAM. A page whose bit
//! is clear is zero, whatever the file holds in its place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paguro_workload::layout::{HIGH_RAM_GPA, PAGE_BYTES};
use paguro_workload::params::MAX_MAPPED_GIB;

use crate::{DeviceWriter, Memory};

/// Names and guest-physical addresses of the RAM blocks of the machine.
const BLOCKS: [(&str, u64); 2] = [("paguro.ram", 0), ("paguro.ram1", HIGH_RAM_GPA)];

/// Section of the device that writes RAM: u32 number of writers, then for each u64 writer
/// number, u64 writes done; big-endian.
const DEVICE_SECTION: &str = "paguro/x-dma";

/// Most bytes behind the last RAM block that are searched for the device section.
const MAX_TAIL_BYTES: u64 = 64 << 20;

/// Why a file is not a snapshot that can be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// The file could not be read, or ends too early.
    #[error("cannot read the snapshot at offset {offset}")]
    Read {
        /// Where in the file.
        offset: u64,
        /// What it gave.
        #[source]
        source: io::Error,
    },
    /// The file's content is not that of a snapshot of this machine.
    #[error("not a snapshot of this machine: {what} at offset {offset}")]
    Content {
        /// What is wrong or missing.
        what: &'static str,
        /// Where in the file.
        offset: u64,
    },
}

/// A snapshot file, open for reading.
#[derive(Debug)]
pub struct SnapshotFile {
    file: File,
    blocks: Vec<Block>,
    ram: Vec<(u64, u64)>,
    devices: Vec<DeviceWriter>,
}

#[derive(Debug)]
struct Block {
    gpa: u64,
    len: u64,
    pages_offset: u64,
    /// Bit `i` of byte `i / 8`: page `i` is in the file.
    bitmap: Vec<u8>,
}

impl SnapshotFile {
    /// Opens a snapshot file and reads its list of RAM blocks.
    ///
    /// # Errors
    ///
    /// See [`SnapshotFileError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SnapshotFileError> {
        let open = || {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            io::Result::Ok((file, len))
        };
        let (file, len) = open().map_err(|source| SnapshotFileError::Read { offset: 0, source })?;
        let mut cursor = Cursor {
            file: &file,
            len,
            at: 0,
        };
        let mut blocks = read_blocks(&mut cursor)?;
        blocks.sort_by_key(|block| block.gpa);
        let devices = read_devices(&cursor)?;
        Ok(Self {
            ram: blocks.iter().map(|block| (block.gpa, block.len)).collect(),
            blocks,
            devices,
            file,
        })
    }

    /// The counters of the devices that write RAM, from their section; empty without one.
    pub fn device_writers(&self) -> &[DeviceWriter] {
        &self.devices
    }

    /// Pages that the file holds; all others of its blocks are zero.
    pub fn present_pages(&self) -> u64 {
        let bytes = self.blocks.iter().flat_map(|block| &block.bitmap);
        bytes.map(|byte| u64::from(byte.count_ones())).sum()
    }
}

impl Memory for SnapshotFile {
    fn ram(&self) -> &[(u64, u64)] {
        &self.ram
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> io::Result<()> {
        let block = self
            .blocks
            .iter()
            .find(|block| gpa >= block.gpa && gpa - block.gpa < block.len)
            .filter(|block| buffer.len() as u64 <= block.len - (gpa - block.gpa))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "outside guest RAM"))?;
        let mut offset = gpa - block.gpa;
        let mut rest = buffer;
        while !rest.is_empty() {
            let present = block.holds(offset / PAGE_BYTES);
            let mut run = PAGE_BYTES - offset % PAGE_BYTES;
            while run < rest.len() as u64 && block.holds((offset + run) / PAGE_BYTES) == present {
                run += PAGE_BYTES;
            }
            let (part, after) = rest.split_at_mut(rest.len().min(run as usize));
            if present {
                self.file.read_exact_at(part, block.pages_offset + offset)?
            } else {
                part.fill(0)
            }
            offset += part.len() as u64;
            rest = after;
        }
        Ok(())
    }
}

impl Block {
    fn holds(&self, page: u64) -> bool {
        let byte = self.bitmap.get((page / 8) as usize);
        byte.is_some_and(|byte| byte >> (page % 8) & 1 != 0)
    }
}

/// Reads from the start of the file to the end of the last RAM block's pages.
fn read_blocks(cursor: &mut Cursor<'_>) -> Result<Vec<Block>, SnapshotFileError> {
    cursor.expect(b"QEVM\0\0\0\x03", "no header of stream version 3")?;
    cursor.expect(b"\x07", "no configuration")?;
    let name_bytes = u64::from(cursor.u32()?);
    cursor.skip(name_bytes)?;
    let mut kind = cursor.u8()?;
    while kind == 5 {
        read_subsection(cursor)?;
        kind = cursor.u8()?;
    }
    if kind != 1 {
        return cursor.wrong("no start of the RAM section");
    }
    cursor.u32()?;
    cursor.expect(b"\x03ram\0\0\0\0\0\0\0\x04", "no RAM section of version 4")?;
    let total = cursor.u64()?;
    if total & (PAGE_BYTES - 1) != 4 {
        return cursor.wrong("no size of RAM");
    }
    if total >> 30 > MAX_MAPPED_GIB {
        return cursor.wrong("more RAM than the machine can have");
    }
    let mut left = total - 4;
    let mut blocks = Vec::new();
    while left > 0 {
        let block = read_block(cursor, blocks.len())?;
        if block.len > left {
            return cursor.wrong("RAM blocks larger than the size of RAM");
        }
        left -= block.len;
        cursor.at = block.pages_offset + block.len;
        blocks.push(block);
    }
    Ok(blocks)
}

fn read_subsection(cursor: &mut Cursor<'_>) -> Result<(), SnapshotFileError> {
    match cursor.str8()?.as_slice() {
        b"configuration/capabilities" => {
            cursor.u32()?;
            for _ in 0..cursor.u32()?.min(64) {
                cursor.str8()?;
            }
            Ok(())
        }
        b"configuration/target-page-bits" => cursor.skip(8),
        b"configuration/uuid" => cursor.skip(20),
        _ => cursor.wrong("an unknown part of the configuration"),
    }
}

fn read_block(cursor: &mut Cursor<'_>, index: usize) -> Result<Block, SnapshotFileError> {
    let name = cursor.str8()?;
    let Some(&(_, gpa)) = BLOCKS
        .get(index)
        .filter(|(known, _)| known.as_bytes() == name)
    else {
        return cursor.wrong("a RAM block that this machine does not have");
    };
    let len = cursor.u64()?;
    let version = cursor.u32()?;
    let page_bytes = cursor.u64()?;
    let bitmap_offset = cursor.u64()?;
    let pages_offset = cursor.u64()?;
    if len > MAX_MAPPED_GIB << 30 {
        return cursor.wrong("a block larger than the machine can have");
    }
    if version > 1 || page_bytes != PAGE_BYTES || len == 0 || len % PAGE_BYTES != 0 {
        return cursor.wrong("a block header of another kind");
    }
    let pages_end = pages_offset
        .checked_add(len)
        .filter(|end| *end <= cursor.len);
    if pages_end.is_none() || pages_offset < cursor.at {
        return cursor.wrong("pages of a block that are not in the file");
    }
    // As long as the file at most, since the pages are in it.
    let pages = len / PAGE_BYTES;
    let bitmap = cursor.bytes_at(bitmap_offset, pages.div_ceil(64) * 8)?;
    let past = |(i, byte): (usize, &u8)| match pages.checked_sub(8 * i as u64) {
        Some(in_byte @ 0..8) => byte >> in_byte != 0,
        Some(_) => false,
        None => *byte != 0,
    };
    if bitmap.iter().enumerate().any(past) {
        return cursor.wrong("a bitmap with pages beyond its block");
    }
    Ok(Block {
        gpa,
        len,
        pages_offset,
        bitmap,
    })
}

/// Finds the device section behind the RAM blocks by its framing: sections say their names but
/// not their lengths.
fn read_devices(cursor: &Cursor<'_>) -> Result<Vec<DeviceWriter>, SnapshotFileError> {
    const FULL: u8 = 4;
    let bytes = (cursor.len - cursor.at).min(MAX_TAIL_BYTES);
    let tail = cursor.bytes_at(cursor.at, bytes)?;
    let name_bytes = DEVICE_SECTION.len();
    let starts_here = |at: &[u8]| {
        at[0] == FULL && usize::from(at[5]) == name_bytes && &at[6..] == DEVICE_SECTION.as_bytes()
    };
    let Some(start) = tail.windows(6 + name_bytes).position(starts_here) else {
        return Ok(Vec::new());
    };
    let mut body = Cursor {
        at: cursor.at + (start + 6 + name_bytes) as u64,
        ..*cursor
    };
    body.expect(b"\0\0\0\0\0\0\0\x01", "a device section of another version")?;
    let count = body.u32()?;
    if count > 16 {
        return body.wrong("too many device writers");
    }
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(DeviceWriter {
            writer: body.u64()?,
            done: body.u64()?,
        });
    }
    Ok(devices)
}

/// A place in the file.
struct Cursor<'a> {
    file: &'a File,
    len: u64,
    at: u64,
}

impl Cursor<'_> {
    fn wrong<T>(&self, what: &'static str) -> Result<T, SnapshotFileError> {
        Err(SnapshotFileError::Content {
            what,
            offset: self.at,
        })
    }

    /// Bytes at an offset, which must all be in the file.
    fn bytes_at(&self, offset: u64, len: u64) -> Result<Vec<u8>, SnapshotFileError> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.len) {
            return self.wrong("something that lies beyond the end of the file");
        }
        let mut bytes = vec![0; len as usize];
        let result = self.file.read_exact_at(&mut bytes, offset);
        result.map_err(|source| SnapshotFileError::Read { offset, source })?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<(), SnapshotFileError> {
        if len > self.len - self.at {
            return self.wrong("something that lies beyond the end of the file");
        }
        self.at += len;
        Ok(())
    }

    fn take(&mut self, len: u64) -> Result<Vec<u8>, SnapshotFileError> {
        let bytes = self.bytes_at(self.at, len)?;
        self.at += len;
        Ok(bytes)
    }

    fn expect(&mut self, bytes: &[u8], what: &'static str) -> Result<(), SnapshotFileError> {
        let found = self.bytes_at(self.at, bytes.len() as u64)?;
        if found != bytes {
            return self.wrong(what);
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn str8(&mut self) -> Result<Vec<u8>, SnapshotFileError> {
        let len = self.u8()?;
        self.take(u64::from(len))
    }

    fn u8(&mut self) -> Result<u8, SnapshotFileError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, SnapshotFileError> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, SnapshotFileError> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }
}
