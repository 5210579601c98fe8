//! The body of a device section, field by field.
//!
//! A body is nothing but its fields, one after the other, big-endian, with no lengths or tags:
//! who reads must know what was written. [`SectionWriter`] therefore notes the name and size of
//! every field, and these become the section's entry in VMDESCRIPTION. [`SectionReader`] reads
//! the fields back in the same order; where the description is at hand it also checks that each
//! field is the one that was written, so that two swapped registers are an error and not a
//! different machine.
//!
//! Variable parts (`buffer`, `array_u64`, `array_struct`) are preceded by a `u32` of their
//! length, a field of its own named `NAME_count`. An empty one is described by its count alone.

mod reader;
mod writer;

use thiserror::Error;

pub use reader::SectionReader;
pub use writer::SectionWriter;

use crate::stream::description::{DeviceDescription, FieldDescription};

/// The longest body of a device section that is written or read, in bytes.
pub const BODY_MAX_BYTES: usize = 16 << 20;

/// A device section: what stands between its header and its footer, and what that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSection {
    /// The section's name, as `paguro/cpu`.
    pub name: String,
    /// Tells sections of the same name apart.
    pub instance: u32,
    /// The version of the body's format.
    pub version: u32,
    /// The body.
    pub body: Vec<u8>,
    /// The fields of the body; empty where no description came with it.
    pub fields: Vec<FieldDescription>,
}

impl DeviceSection {
    /// The section's entry in VMDESCRIPTION.
    pub fn describe(&self) -> DeviceDescription {
        DeviceDescription {
            name: self.name.clone(),
            instance_id: self.instance,
            vmsd_name: Some(self.name.clone()),
            version: Some(self.version),
            fields: self.fields.clone(),
            subsections: Vec::new(),
        }
    }
}

/// A device section could not be written or read.
///
/// Reading errors are the fault of whoever wrote the section (another version, or damage);
/// writing errors are the fault of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Another section than the one asked for.
    #[error("device section {found:?} where {expected:?} is read")]
    WrongSection {
        /// The name asked for.
        expected: String,
        /// The section's name.
        found: String,
    },

    /// The section's format is of a version that the reader does not know.
    #[error(
        "{section:?}.{instance}: version {found} of this device section is not known; known: {oldest} to {newest}"
    )]
    WrongVersion {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// Its version.
        found: u32,
        /// The oldest version that can be read.
        oldest: u32,
        /// The newest version that can be read.
        newest: u32,
    },

    /// The body ends inside a field.
    #[error(
        "{section:?}.{instance}: field {field:?} at offset {offset} needs {needed_bytes} bytes, {left_bytes} are left"
    )]
    TooShort {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// The field asked for.
        field: String,
        /// Where the field begins in the body.
        offset: usize,
        /// The bytes of the field.
        needed_bytes: u64,
        /// The bytes that are there.
        left_bytes: usize,
    },

    /// The body goes on after the last field.
    #[error(
        "{section:?}.{instance}: {bytes} bytes are left after the last field, at offset {offset}"
    )]
    Trailing {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// Where the known fields end in the body.
        offset: usize,
        /// The bytes that nobody asked for.
        bytes: usize,
    },

    /// The section's description has another field at this place.
    #[error(
        "{section:?}.{instance}: field {field:?} is read at offset {offset}, where the description has {described}"
    )]
    WrongField {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// The field asked for.
        field: String,
        /// Where the field begins in the body.
        offset: usize,
        /// What the description says.
        described: String,
    },

    /// A field has a value that cannot be.
    #[error(
        "{section:?}.{instance}: field {field:?} at offset {offset}: expected {expected}, found {found}"
    )]
    BadValue {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// The field.
        field: String,
        /// Where the field ends in the body.
        offset: usize,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },

    /// A section's or field's name is empty or too long to be written.
    #[error("{section:?}: name {name:?} is empty or longer than 255 bytes")]
    BadName {
        /// The section.
        section: String,
        /// The name.
        name: String,
    },

    /// The body grew beyond [`BODY_MAX_BYTES`].
    #[error(
        "{section:?}.{instance}: the body would be {bytes} bytes with field {field:?}, more than {BODY_MAX_BYTES}"
    )]
    BodyTooLong {
        /// The section.
        section: String,
        /// Its instance.
        instance: u32,
        /// The field that was one too many.
        field: String,
        /// The bytes with it.
        bytes: usize,
    },
}
