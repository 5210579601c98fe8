//! Walking through a file from its first byte to its last.
//!
//! The walk reads the stream element by element, as a loader would, and jumps over the parts
//! whose place it knows: bitmaps, pages, device bodies. At its end every byte of the file has
//! been given to exactly one part, or is a hole between a bitmap and its pages.

mod ram;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::input::{FileInput, Input, read};
use crate::stream::command::{Command, CommandHeader};
use crate::stream::configuration::{Configuration, IGNORE_SHARED, MAPPED_RAM};
use crate::stream::description::DeviceDescription;
use crate::stream::header;
use crate::stream::section::{self, SectionHeader};
use crate::{DecodeError, Medium, ReadAt};

use super::closing::Closing;
use super::{Block, RAM_MAX_BYTES, SECTIONS_MAX, Section, SectionKind, SnapshotFile, extension};

impl SnapshotFile {
    /// Reads the structure of a file, of paguro's or QEMU's, and checks it: all lengths, places
    /// and names, that nothing overlaps, that every section has its footer, and the extension's
    /// own checksums. Bitmaps, pages and device bodies are not read.
    ///
    /// Memory is bounded by the limits of this crate, whatever the file holds.
    ///
    /// # Errors
    /// [`DecodeError`], which says what is wrong and where.
    pub fn parse<R: ReadAt + ?Sized>(reader: &R) -> Result<Self, DecodeError> {
        let file_bytes = reader.len_bytes().map_err(|source| DecodeError::Read {
            what: "length of the file",
            offset: 0,
            source,
        })?;
        Walk::new(reader, file_bytes).run()
    }
}

struct Walk<'r, R: ?Sized> {
    reader: &'r R,
    file_bytes: u64,
    input: FileInput<'r, R>,
    configuration: Configuration,
    blocks: Vec<Block>,
    sections: Vec<Section>,
    section_ids: HashSet<u32>,
    stream_ranges: Vec<Range<u64>>,
    /// Where the stream's bytes began after the last jump.
    stream_start: u64,
    ram: RamProgress,
    closing: Option<Closing>,
    /// What is described and not yet found.
    described: HashMap<(String, u32), DeviceDescription>,
}

/// How far section `ram` has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RamProgress {
    NotStarted,
    Started { id: u32, section: usize },
    Ended,
}

impl<'r, R: ReadAt + ?Sized> Walk<'r, R> {
    pub(super) fn new(reader: &'r R, file_bytes: u64) -> Self {
        Self {
            reader,
            file_bytes,
            input: FileInput::new(reader, 0, file_bytes),
            configuration: Configuration::default(),
            blocks: Vec::new(),
            sections: Vec::new(),
            section_ids: HashSet::new(),
            stream_ranges: Vec::new(),
            stream_start: 0,
            ram: RamProgress::NotStarted,
            closing: None,
            described: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<SnapshotFile, DecodeError> {
        self.check_magic()?;
        header::decode(&mut self.input)?;
        self.configuration()?;
        loop {
            let offset = self.input.offset();
            match self.input.u8("section type")? {
                section::START => self.start(offset)?,
                section::PART => self.ram_continuation(offset, false)?,
                section::END => self.ram_continuation(offset, true)?,
                section::FULL => self.device(offset)?,
                section::COMMAND => self.command(offset)?,
                section::EOF => break,
                other => {
                    return Err(DecodeError::corrupt(
                        "section type",
                        offset,
                        "00 to 04 or 08",
                        format!("{other:02x}"),
                    ));
                }
            }
        }
        self.finish()
    }

    /// Tells files of another kind from snapshots that were cut off.
    fn check_magic(&self) -> Result<(), DecodeError> {
        if self.file_bytes == 0 {
            return Err(DecodeError::Empty);
        }
        let mut found = vec![0; self.file_bytes.min(4) as usize];
        read(self.reader, "magic", 0, &mut found)?;
        if header::MAGIC.starts_with(&found) {
            Ok(())
        } else {
            Err(DecodeError::NotASnapshot { found })
        }
    }

    fn configuration(&mut self) -> Result<(), DecodeError> {
        let offset = self.input.offset();
        self.configuration = Configuration::decode(&mut self.input)?;
        if !self.configuration.has(MAPPED_RAM) {
            return Err(DecodeError::NoFixedPlaces { offset });
        }
        let strange = self
            .configuration
            .capabilities
            .iter()
            .find(|name| *name != MAPPED_RAM);
        if let Some(capability) = strange {
            let found = match capability.as_str() {
                IGNORE_SHARED => "x-ignore-shared: shared RAM is not in this file".to_owned(),
                other => format!("capability {other:?}"),
            };
            return Err(DecodeError::unsupported(
                "CONFIGURATION",
                offset,
                found,
                "the capability mapped-ram alone",
            ));
        }
        Ok(())
    }

    fn device(&mut self, offset: u64) -> Result<(), DecodeError> {
        let header = self.section_header(offset)?;
        let (name, instance) = (header.name, header.instance);
        self.find_closing()?;
        let Some(described) = self.described.remove(&(name.clone(), instance)) else {
            return Err(DecodeError::corrupt(
                "device section",
                offset,
                "one that the description has, once",
                format!("{name:?}.{instance}"),
            ));
        };
        let body_offset = self.input.offset();
        let Some(body_bytes) = described.body_bytes() else {
            return Err(DecodeError::corrupt(
                "described length of a device section",
                body_offset,
                "less than the file's",
                format!("an overflow for {name:?}.{instance}"),
            ));
        };
        self.input.skip("body of a device section", body_bytes)?;
        self.sections.push(Section {
            id: header.id,
            name,
            instance,
            version: header.version,
            kind: SectionKind::Device,
            body_offset,
            body_bytes,
            vmsd_name: described.vmsd_name,
            fields: described.fields,
            subsections: described.subsections,
        });
        section::decode_footer(&mut self.input, header.id)
    }

    fn section_header(&mut self, offset: u64) -> Result<SectionHeader, DecodeError> {
        let header = SectionHeader::decode(&mut self.input)?;
        if self.sections.len() == SECTIONS_MAX {
            return Err(DecodeError::Limit {
                what: "number of sections",
                offset,
                found: SECTIONS_MAX as u64 + 1,
                limit: SECTIONS_MAX as u64,
            });
        }
        if self.section_ids.insert(header.id) {
            Ok(header)
        } else {
            Err(DecodeError::corrupt(
                "section id",
                offset,
                "a new one",
                format!("{} again", header.id),
            ))
        }
    }

    /// QEMU marks the stop of the source by a command; in a file it means nothing.
    fn command(&mut self, offset: u64) -> Result<(), DecodeError> {
        let header = CommandHeader::decode(&mut self.input)?;
        match header.command {
            Command::SwitchoverStart | Command::OpenReturnPath | Command::Ping => {
                self.input.skip("command", u64::from(header.payload_bytes))
            }
            other => Err(DecodeError::unsupported(
                "command",
                offset,
                format!("{other:?}"),
                "commands that need no answer",
            )),
        }
    }

    /// Reads the description, once.
    fn find_closing(&mut self) -> Result<(), DecodeError> {
        if self.closing.is_some() {
            return Ok(());
        }
        let start = self.input.offset();
        let mut closing = Closing::find(self.reader, start, self.file_bytes)?;
        for device in std::mem::take(&mut closing.description.devices) {
            let key = (device.name.clone(), device.instance_id);
            if let Some(twice) = self.described.insert(key, device) {
                return Err(DecodeError::corrupt(
                    "VMDESCRIPTION",
                    closing.range.start,
                    "each device once",
                    format!("a second {:?}.{}", twice.name, twice.instance_id),
                ));
            }
        }
        self.closing = Some(closing);
        Ok(())
    }

    fn finish(mut self) -> Result<SnapshotFile, DecodeError> {
        let offset = self.input.offset();
        if self.ram != RamProgress::Ended {
            return Err(DecodeError::corrupt(
                "section ram",
                offset,
                "it with an END: before that its bitmaps are not written",
                "the end of the stream",
            ));
        }
        self.find_closing()?;
        let Some(closing) = self.closing.take() else {
            return Err(DecodeError::NoDescription {
                end: self.file_bytes,
            });
        };
        if closing.range.start != offset {
            return Err(DecodeError::corrupt(
                "VMDESCRIPTION",
                closing.range.start,
                format!("it at {offset:#x}, directly after EOF"),
                format!("it at {:#x}", closing.range.start),
            ));
        }
        if let Some(promise) = closing.description.paguro {
            self.check_promise(&closing, promise.extension)?;
        }
        self.stream_ranges
            .push(self.stream_start..closing.range.end);
        self.check_overlaps(&closing)?;
        let extension = match &closing.trailer {
            Some(trailer) => Some(trailer.read_extension(self.reader, &self.blocks)?),
            None => None,
        };
        Ok(SnapshotFile {
            file_bytes: self.file_bytes,
            configuration: self.configuration,
            blocks: self.blocks,
            sections: self.sections,
            description: closing.description,
            description_range: closing.range,
            extension,
            stream_ranges: self.stream_ranges,
        })
    }

    fn check_promise(&self, closing: &Closing, version: u32) -> Result<(), DecodeError> {
        if version != extension::VERSION {
            return Err(DecodeError::unsupported(
                "extension",
                closing.range.start,
                format!("version {version}"),
                "version 1",
            ));
        }
        match closing.trailer {
            Some(_) => Ok(()),
            None => Err(DecodeError::Truncated {
                what: "extension with checksums, which the description promises",
                offset: closing.range.end,
                needed_bytes: extension::TRAILER_BYTES,
                end: self.file_bytes,
                medium: Medium::File,
            }),
        }
    }

    /// No byte may belong to two things.
    fn check_overlaps(&self, closing: &Closing) -> Result<(), DecodeError> {
        let mut parts: Vec<(Range<u64>, &'static str)> = Vec::new();
        for range in &self.stream_ranges {
            parts.push((range.clone(), "stream"));
        }
        for block in &self.blocks {
            let bitmap = block.bitmap_offset..block.bitmap_offset + block.bitmap_bytes();
            let pages = block.pages_offset..block.pages_offset + block.used_length_bytes;
            parts.push((bitmap, "bitmap of a RAM block"));
            parts.push((pages, "pages of a RAM block"));
        }
        parts.push((closing.range.end..self.file_bytes, "extension"));
        parts.retain(|(range, _)| !range.is_empty());
        parts.sort_by_key(|(range, _)| range.start);
        for pair in parts.windows(2) {
            let [(first, first_what), (second, second_what)] = pair else {
                continue;
            };
            if second.start < first.end {
                return Err(DecodeError::corrupt(
                    second_what,
                    second.start,
                    format!("it behind {:#x}, where the {first_what} ends", first.end),
                    "an overlap",
                ));
            }
        }
        Ok(())
    }
}
