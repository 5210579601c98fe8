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

pub(crate) mod name;
mod reader;
mod writer;

use thiserror::Error;

pub use reader::SectionReader;
pub use writer::SectionWriter;

use crate::stream::description::{DeviceDescription, FieldDescription};

use name::{GLOBAL_STATE, is_fit};

pub use name::SECTION_NAME_MAX_BYTES;

/// The longest body of a device section that is written or read, in bytes.
pub const BODY_MAX_BYTES: usize = 16 << 20;

/// A device section: what stands between its header and its footer, and what that means.
///
/// Its name is the VMM's own, in files and streams alike: UTF-8 without control characters, at most
/// [`SECTION_NAME_MAX_BYTES`], such as `firecracker/microvm`. [`DeviceSection::opaque`] and
/// [`SectionWriter`] see to that. A name and an instance may be there once. `globalstate` is QEMU's,
/// and is written by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSection {
    /// The section's name, as `paguro/cpu` or `firecracker/microvm`.
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
    /// A section of bytes that only the VMM understands, as its own serializer gave them; instance 0. The
    /// other side finds them in [`DeviceSection::body`], and decides by `version` whether it knows them.
    ///
    /// # Errors
    /// [`DeviceError::BadName`], [`DeviceError::BodyTooLong`]: no file or stream can have it, which
    /// would otherwise be found out with the guest stopped.
    pub fn opaque(name: &str, version: u32, bytes: Vec<u8>) -> Result<Self, DeviceError> {
        const FIELD: &str = "bytes";
        if !is_fit(name) || name == GLOBAL_STATE {
            return Err(DeviceError::BadName {
                section: name.to_owned(),
                name: name.to_owned(),
            });
        }
        if bytes.len() > BODY_MAX_BYTES {
            return Err(DeviceError::BodyTooLong {
                section: name.to_owned(),
                instance: 0,
                field: FIELD.to_owned(),
                bytes: bytes.len(),
            });
        }
        let field = FieldDescription {
            name: FIELD.to_owned(),
            kind: "buffer".to_owned(),
            size: bytes.len() as u64,
            ..Default::default()
        };
        let is_empty = bytes.is_empty();
        Ok(Self {
            name: name.to_owned(),
            instance: 0,
            version,
            body: bytes,
            fields: if is_empty { Vec::new() } else { vec![field] },
        })
    }

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

    /// A name that cannot be written: empty; longer than [`SECTION_NAME_MAX_BYTES`] for a section, than
    /// 255 bytes for a field; of a section, with control characters, or QEMU's `globalstate`.
    #[error("{section:?}: name {name:?} is empty, too long, reserved, or has control characters")]
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
