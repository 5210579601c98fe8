//! A snapshot file that was read.

use std::ops::Range;

use crate::device::{BODY_MAX_BYTES, DeviceSection};
use crate::globalstate;
use crate::input::read;
use crate::stream::configuration::Configuration;
use crate::stream::description::{Description, FieldDescription, StructDescription};
use crate::{DecodeError, ReadAt};

use super::Block;
use super::extension::Extension;

/// The structure of a snapshot file: everything but RAM's and the devices' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotFile {
    /// The length of the whole file.
    pub file_bytes: u64,
    /// The machine and what was switched on.
    pub configuration: Configuration,
    /// The RAM blocks, in the file's order.
    pub blocks: Vec<Block>,
    /// All sections, `ram` too, in the file's order.
    pub sections: Vec<Section>,
    /// The stream's description of itself. (The fields of each device are moved to its section.)
    pub description: Description,
    /// Where the VMDESCRIPTION element stands.
    pub description_range: Range<u64>,
    /// Checksums and facts, if the file has them.
    pub extension: Option<Extension>,
    /// Where the stream's own bytes stand: before each block's bitmap, and the tail.
    pub stream_ranges: Vec<Range<u64>>,
}

/// A section of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Section {
    /// Its number in the stream.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Tells sections of the same name apart.
    pub instance: u32,
    /// The version of its body's format.
    pub version: u32,
    /// Of which kind it is.
    pub kind: SectionKind,
    /// Where its body begins.
    pub body_offset: u64,
    /// The bytes of its body; for `ram` those from START to its end, pages included.
    pub body_bytes: u64,
    /// The name of the structure in the description, where it has one.
    pub vmsd_name: Option<String>,
    /// The fields of its body, as described.
    pub fields: Vec<FieldDescription>,
    /// The subsections of its body, as described.
    pub subsections: Vec<StructDescription>,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// RAM: block list, bitmaps and pages.
    Ram,
    /// A device's state in one piece.
    Device,
}

impl SnapshotFile {
    /// The RAM block of this id and its place in the order.
    pub fn block(&self, id: &str) -> Option<(usize, &Block)> {
        self.blocks
            .iter()
            .enumerate()
            .find(|(_, block)| block.id == id)
    }

    /// The device sections.
    pub fn devices(&self) -> impl Iterator<Item = &Section> {
        self.sections
            .iter()
            .filter(|section| section.kind == SectionKind::Device)
    }

    /// The device section of this name and instance.
    pub fn device(&self, name: &str, instance: u32) -> Option<&Section> {
        self.devices()
            .find(|section| section.name == name && section.instance == instance)
    }

    /// The machine's run state as `globalstate` has it: `running`, `paused` or another word of
    /// QEMU's; nothing if there is no such section (QEMU then starts running).
    ///
    /// # Errors
    /// [`DecodeError::Read`], or [`DecodeError::Corrupt`] if the section makes no sense.
    pub fn run_state<R: ReadAt + ?Sized>(&self, reader: &R) -> Result<Option<String>, DecodeError> {
        let Some(section) = self.device(globalstate::NAME, 0) else {
            return Ok(None);
        };
        globalstate::run_state(&section.read(reader)?)
            .map(Some)
            .map_err(|error| {
                DecodeError::corrupt(globalstate::NAME, section.body_offset, "a run state", error)
            })
    }
}

impl Section {
    /// Reads the section's body. If it has subsections the fields are not all of it, and they
    /// are left out of the result: the body can then be read, but not checked field by field.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] for a body longer than [`BODY_MAX_BYTES`] (and for `ram`),
    /// [`DecodeError::Read`].
    pub fn read<R: ReadAt + ?Sized>(&self, reader: &R) -> Result<DeviceSection, DecodeError> {
        const WHAT: &str = "body of a device section";
        if self.body_bytes > BODY_MAX_BYTES as u64 || self.kind == SectionKind::Ram {
            return Err(DecodeError::Limit {
                what: WHAT,
                offset: self.body_offset,
                found: self.body_bytes,
                limit: BODY_MAX_BYTES as u64,
            });
        }
        let mut body = vec![0; self.body_bytes as usize];
        read(reader, WHAT, self.body_offset, &mut body)?;
        let fields = if self.subsections.is_empty() {
            self.fields.clone()
        } else {
            Vec::new()
        };
        Ok(DeviceSection {
            name: self.name.clone(),
            instance: self.instance,
            version: self.version,
            body,
            fields,
        })
    }
}
