//! A snapshot file that is read.
//!
//! Everything but pages is read once, in [`RestoreFile::open`], and kept: which pages there are, and
//! the checksum of each. So whatever somebody writes to the file afterwards, a page that was not saved
//! is not taken for one that was. Pages of files without checksums can only be believed as long as
//! nobody wrote to the file.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paguro_pager::{PageSource, SourceError};
use paguro_ram::PageSet;
use paguro_sys::page_size;
use paguro_wire::ReadAt;
use paguro_wire::device::DeviceSection;
use paguro_wire::globalstate;
use paguro_wire::snapshot::extension::crc32c;
use paguro_wire::snapshot::verify::verify_metadata_and_keep_tables;
use paguro_wire::snapshot::{Block, SnapshotFile};
use rustix::fs::{FileType, OFlags};

use super::RestoreError;
use super::identity::Identity;
use crate::TargetError;

/// A snapshot file: everything but its pages is read and checked.
#[derive(Debug)]
pub struct RestoreFile {
    path: PathBuf,
    file: Arc<File>,
    identity: Identity,
    given_up: AtomicBool,
    parsed: SnapshotFile,
    devices: Vec<DeviceSection>,
    was_running: bool,
    present: Vec<PageSet>,
    /// The checksum of each page, by block; empty without checksums.
    checksums: Vec<Vec<u32>>,
}

impl RestoreFile {
    /// Opens and parses it. Checksums of the metadata are checked where there are any.
    ///
    /// What is kept of it takes four bytes a page for the checksums, and a bit a page: a little more
    /// than a 1024th of RAM.
    ///
    /// # Errors
    ///
    /// [`RestoreError::Open`], `Decode`, `Damaged`, `Changed`.
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
        let identity = Identity::of(&file).map_err(open)?;
        let parsed = SnapshotFile::parse(&file).map_err(decode)?;
        let (checksums, damage) =
            verify_metadata_and_keep_tables(&file, &parsed).map_err(decode)?;
        if let Some(damage) = damage.into_iter().next() {
            return Err(RestoreError::Damaged {
                path: path.to_owned(),
                damage,
            });
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
        devices.retain(|device| device.name != globalstate::NAME);
        // What was read after it was checked is what was checked.
        if let Some(how) = identity.change(&file) {
            return Err(RestoreError::Changed {
                path: path.to_owned(),
                how,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            identity,
            given_up: AtomicBool::new(false),
            parsed,
            devices,
            was_running,
            present,
            checksums,
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

    /// Whoever waits for pages of it waits no longer: reads that fail are not tried again. For the end
    /// of a process that restores a machine.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The open file, and what it was when it was opened.
    pub(crate) fn identity(&self) -> (Arc<File>, Identity) {
        (self.file.clone(), self.identity)
    }

    /// Whether pages can be told from others by their content.
    pub(crate) fn has_checksums(&self) -> bool {
        self.parsed.extension.is_some()
    }

    /// That somebody wrote to it since it was opened, if somebody did.
    pub(crate) fn change(&self) -> Option<SourceError> {
        let how = self.identity.change(&self.file)?;
        Some(changed(&self.path, how))
    }

    /// Whether these are the blocks of the file, by name and length in bytes, in its order.
    pub(crate) fn match_blocks<'a>(
        &self,
        ours: impl Iterator<Item = (&'a str, usize)> + Clone,
    ) -> Result<(), RestoreError> {
        let ours = ours.map(|(id, bytes)| (id, bytes as u64));
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

    /// Checks pages that were just read: against their checksums, or else whether the file is what it
    /// was. (In this order: whoever writes to a file moves its time first.)
    pub(crate) fn check(
        &self,
        block: usize,
        pages: Range<usize>,
        bytes: &[u8],
    ) -> Result<(), SourceError> {
        let Some(expected) = self.checksums.get(block) else {
            return self.change().map_or(Ok(()), Err);
        };
        let expected = &expected[pages.clone()];
        for ((page, content), &expected) in pages.zip(bytes.chunks_exact(page_size())).zip(expected)
        {
            let found = crc32c(content);
            if found != expected {
                let damaged = || SourceError::Damaged {
                    block: self.blocks()[block].id.clone(),
                    page,
                    expected,
                    found,
                };
                return Err(self.change().unwrap_or_else(damaged));
            }
        }
        Ok(())
    }

    /// A read failed: because of what somebody did to the file, or for a reason that may pass.
    pub(crate) fn unreadable(
        &self,
        block: usize,
        pages: &Range<usize>,
        source: std::io::Error,
    ) -> SourceError {
        self.change().unwrap_or_else(|| SourceError::Read {
            block: self.blocks()[block].id.clone(),
            first: pages.start,
            end: pages.end,
            source,
        })
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

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

pub(super) fn changed(path: &Path, how: String) -> SourceError {
    SourceError::Changed {
        what: path.display().to_string(),
        how,
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
