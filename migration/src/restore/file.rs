//! A snapshot file that is read.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use paguro_pager::{PageSource, SourceError};
use paguro_ram::{BlockConfig, PageSet};
use paguro_sys::page_size;
use paguro_wire::ReadAt;
use paguro_wire::device::DeviceSection;
use paguro_wire::globalstate;
use paguro_wire::snapshot::extension::crc32c;
use paguro_wire::snapshot::verify::verify_metadata;
use paguro_wire::snapshot::{Block, SnapshotFile};
use rustix::fs::{FileType, OFlags};

use super::RestoreError;
use crate::TargetError;

/// A snapshot file: everything but its pages is read and checked.
#[derive(Debug)]
pub struct RestoreFile {
    path: PathBuf,
    file: File,
    parsed: SnapshotFile,
    devices: Vec<DeviceSection>,
    was_running: bool,
    present: Vec<PageSet>,
}

impl RestoreFile {
    /// Opens and parses it. Checksums of the metadata are checked where there are any.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Open`], `Decode`, `Damaged`.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let open = |source| RestoreError::Open {
            path: path.to_owned(),
            source,
        };
        let decode = |source| RestoreError::Decode {
            path: path.to_owned(),
            source,
        };
        // A named pipe would wait for its writer here.
        let mut options = OpenOptions::new();
        let opened = options
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32);
        let file = opened.open(path).map_err(open)?;
        let mode = rustix::fs::fstat(&file)
            .map_err(|error| open(error.into()))?
            .st_mode;
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => {}
            other => return Err(open(TargetError::of_kind(other).into())),
        }
        let parsed = SnapshotFile::parse(&file).map_err(decode)?;
        if parsed.extension.is_some() {
            let damage = verify_metadata(&file, &parsed).map_err(decode)?;
            if let Some(damage) = damage.into_iter().next() {
                return Err(RestoreError::Damaged {
                    path: path.to_owned(),
                    damage,
                });
            }
        }
        let mut present = Vec::with_capacity(parsed.blocks.len());
        for block in &parsed.blocks {
            let words = block.read_bitmap(&file).map_err(decode)?;
            present.push(PageSet::from_words(block.pages() as usize, &words));
        }
        let mut devices = Vec::new();
        for section in parsed.devices() {
            devices.push(section.read(&file).map_err(decode)?);
        }
        let was_running = match parsed.run_state(&file).map_err(decode)? {
            // Without the section the destination starts running, as in QEMU.
            None => true,
            Some(state) => state == globalstate::RUNNING,
        };
        devices.retain(|device| device.name != "globalstate");
        Ok(Self {
            path: path.to_owned(),
            file,
            parsed,
            devices,
            was_running,
            present,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the machine that it is of.
    pub fn machine_name(&self) -> &str {
        &self.parsed.configuration.machine
    }

    /// What was parsed.
    pub fn parsed(&self) -> &SnapshotFile {
        &self.parsed
    }

    /// Its RAM blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.parsed.blocks
    }

    /// Bytes of RAM, over all blocks.
    pub fn ram_bytes(&self) -> u64 {
        self.parsed
            .blocks
            .iter()
            .map(|block| block.used_length_bytes)
            .sum()
    }

    /// The devices, without `globalstate`.
    pub fn devices(&self) -> &[DeviceSection] {
        &self.devices
    }

    /// Whether the machine ran when it was saved.
    pub fn was_running(&self) -> bool {
        self.was_running
    }

    /// Pages of a block that are in the file; all others are zero.
    pub fn present(&self, block: usize) -> &PageSet {
        &self.present[block]
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether these are the blocks of the file, by name and length, in its order.
    pub(crate) fn match_blocks(&self, layout: &[BlockConfig]) -> Result<(), RestoreError> {
        let ours = layout
            .iter()
            .map(|block| (block.id.as_str(), block.bytes as u64));
        let theirs = self
            .blocks()
            .iter()
            .map(|block| (block.id.as_str(), block.used_length_bytes));
        if ours.clone().eq(theirs.clone()) {
            return Ok(());
        }
        Err(RestoreError::Blocks {
            found: describe(theirs),
            expected: describe(ours),
        })
    }

    /// Checks pages against the file's checksums, if it has any.
    pub(crate) fn check(
        &self,
        block: usize,
        pages: Range<usize>,
        bytes: &[u8],
    ) -> Result<(), SourceError> {
        let Some(extension) = &self.parsed.extension else {
            return Ok(());
        };
        let expected = extension.tables[block]
            .read(&self.file, pages.start as u64, pages.len() as u64)
            .map_err(|error| self.unreadable(block, &pages, std::io::Error::other(error)))?;
        for ((page, content), expected) in pages.zip(bytes.chunks_exact(page_size())).zip(expected)
        {
            let found = crc32c(content);
            if found != expected {
                let block = self.blocks()[block].id.clone();
                return Err(SourceError::Damaged {
                    block,
                    page,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn unreadable(
        &self,
        block: usize,
        pages: &Range<usize>,
        source: std::io::Error,
    ) -> SourceError {
        let block = self.blocks()[block].id.clone();
        SourceError::Read {
            block,
            first: pages.start,
            end: pages.end,
            source,
        }
    }
}

impl PageSource for RestoreFile {
    fn has(&self, block: usize) -> &PageSet {
        &self.present[block]
    }

    fn read(&self, block: usize, pages: Range<usize>, to: &mut [u8]) -> Result<(), SourceError> {
        let offset = self.blocks()[block].page_offset(pages.start as u64);
        self.file
            .read_at(offset, to)
            .map_err(|source| self.unreadable(block, &pages, source))?;
        self.check(block, pages, to)
    }
}

fn describe<'a>(blocks: impl Iterator<Item = (&'a str, u64)>) -> String {
    let blocks: Vec<_> = blocks
        .map(|(id, bytes)| format!("{id} of {bytes} bytes"))
        .collect();
    if blocks.is_empty() {
        "no RAM".to_owned()
    } else {
        blocks.join(", ")
    }
}
