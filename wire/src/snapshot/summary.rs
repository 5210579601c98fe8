//! What a person wants to know of a file, as `paguro inspect` prints it.
//!
//! The field names are the keys of its JSON; all sizes and offsets are in bytes.

use serde::Serialize;

use crate::{DecodeError, ReadAt};

use super::extension::Facts;
use super::{SectionKind, SnapshotFile};

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The format: always `qemu-mapped-ram`.
    pub format: &'static str,
    /// The length of the file, holes included.
    pub file_bytes: u64,
    /// The machine type, as `paguro-1`.
    pub machine: String,
    /// The capabilities that the file was written with.
    pub capabilities: Vec<String>,
    /// The run state of the guest: `running`, `paused` or another word of QEMU's; `null` if the
    /// file does not say.
    pub run_state: Option<String>,
    /// The guest's RAM, all blocks together.
    pub ram_bytes: u64,
    /// The pages of all blocks.
    pub pages: u64,
    /// The pages whose content is in the file.
    pub present_pages: u64,
    /// The pages that are zero and take no place.
    pub zero_pages: u64,
    /// The RAM blocks, in the file's order.
    pub blocks: Vec<BlockSummary>,
    /// All sections of the stream, in the file's order.
    pub sections: Vec<SectionSummary>,
    /// The device sections.
    pub devices: Vec<DeviceSummary>,
    /// The checksums.
    pub checksums: ChecksumSummary,
    /// Where the snapshot comes from; `null` in a file without checksums.
    pub facts: Option<Facts>,
    /// Anything unusual, each as a sentence.
    pub notes: Vec<String>,
}

/// A RAM block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockSummary {
    /// The block's id.
    pub name: String,
    /// Its used length.
    pub length_bytes: u64,
    /// The bytes of a page.
    pub page_size_bytes: u64,
    /// Its pages.
    pub pages: u64,
    /// Those whose content is in the file.
    pub present_pages: u64,
    /// Those that are zero and take no place.
    pub zero_pages: u64,
    /// Where its bitmap begins.
    pub bitmap_offset: u64,
    /// Where its pages begin.
    pub pages_offset: u64,
    /// The version of its mapped-ram header.
    pub header_version: u32,
}

/// A section of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SectionSummary {
    /// Its number in the stream.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Tells sections of the same name apart.
    pub instance: u32,
    /// The version of its body's format.
    pub version: u32,
    /// `ram` or `device`.
    pub kind: &'static str,
    /// Where its body begins.
    pub body_offset: u64,
    /// The length of its body; for `ram` with all pages.
    pub body_bytes: u64,
}

/// A device section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceSummary {
    /// The section's name.
    pub name: String,
    /// Tells sections of the same name apart.
    pub instance: u32,
    /// The version of the body's format.
    pub version: u32,
    /// The fields, as the description has them; an array counts once.
    pub fields: usize,
    /// The subsections, as the description has them.
    pub subsections: usize,
    /// The bytes of the state.
    pub state_bytes: u64,
}

/// The checksums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChecksumSummary {
    /// Are there any?
    pub present: bool,
    /// Their algorithm, `crc32c`; `null` if there are none.
    pub algorithm: Option<&'static str>,
    /// The bytes that they take at the end of the file.
    pub extension_bytes: u64,
}

impl Summary {
    /// Sums up a file; reads its bitmaps and `globalstate`.
    ///
    /// # Errors
    /// [`DecodeError`] if these cannot be read or make no sense.
    pub fn new<R: ReadAt + ?Sized>(reader: &R, file: &SnapshotFile) -> Result<Self, DecodeError> {
        let mut blocks = Vec::with_capacity(file.blocks.len());
        for block in &file.blocks {
            let present_pages = block.count_present_pages(reader)?;
            blocks.push(BlockSummary {
                name: block.id.clone(),
                length_bytes: block.used_length_bytes,
                page_size_bytes: block.page_size_bytes,
                pages: block.pages(),
                present_pages,
                zero_pages: block.pages() - present_pages,
                bitmap_offset: block.bitmap_offset,
                pages_offset: block.pages_offset,
                header_version: block.header_version,
            });
        }
        let sum = |value: fn(&BlockSummary) -> u64| blocks.iter().map(value).sum();
        Ok(Self {
            format: "qemu-mapped-ram",
            file_bytes: file.file_bytes,
            machine: file.configuration.machine.clone(),
            capabilities: file.configuration.capabilities.clone(),
            run_state: file.run_state(reader)?,
            ram_bytes: sum(|block| block.length_bytes),
            pages: sum(|block| block.pages),
            present_pages: sum(|block| block.present_pages),
            zero_pages: sum(|block| block.zero_pages),
            blocks,
            sections: sections(file),
            devices: devices(file),
            checksums: ChecksumSummary {
                present: file.extension.is_some(),
                algorithm: file.extension.as_ref().map(|_| "crc32c"),
                extension_bytes: file
                    .extension
                    .as_ref()
                    .map_or(0, |extension| extension.length_bytes),
            },
            facts: file
                .extension
                .as_ref()
                .map(|extension| extension.facts.clone()),
            notes: notes(file),
        })
    }
}

fn sections(file: &SnapshotFile) -> Vec<SectionSummary> {
    file.sections
        .iter()
        .map(|section| SectionSummary {
            id: section.id,
            name: section.name.clone(),
            instance: section.instance,
            version: section.version,
            kind: match section.kind {
                SectionKind::Ram => "ram",
                SectionKind::Device => "device",
            },
            body_offset: section.body_offset,
            body_bytes: section.body_bytes,
        })
        .collect()
}

fn devices(file: &SnapshotFile) -> Vec<DeviceSummary> {
    file.devices()
        .map(|section| DeviceSummary {
            name: section.name.clone(),
            instance: section.instance,
            version: section.version,
            fields: section.fields.len(),
            subsections: section.subsections.len(),
            state_bytes: section.body_bytes,
        })
        .collect()
}

fn notes(file: &SnapshotFile) -> Vec<String> {
    let mut notes = Vec::new();
    if file.extension.is_none() {
        notes.push("no checksums: only the structure can be verified".to_owned());
    }
    if file.device(crate::globalstate::NAME, 0).is_none() {
        notes.push("no globalstate: the guest runs once it is restored".to_owned());
    }
    if file.blocks.iter().any(|block| block.header_version == 0) {
        notes.push("mapped-ram headers of version 0".to_owned());
    }
    notes
}
