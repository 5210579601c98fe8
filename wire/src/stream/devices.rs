//! Device sections in a stream.
//!
//! A body in QEMU's format has no length, and what would give it, the description, comes last.
//! A file can be searched from its end; a stream cannot. So in a stream sections whose names begin
//! with `paguro/` say it themselves: their body begins with a field `section_bytes`,
//! the `u32` number of bytes that follow it. The description has that field like any other, so a
//! reader that goes by the description needs to know nothing of this. Of QEMU's sections only
//! `globalstate` is known, whose length is fixed; any other name is refused, because nobody could
//! say where it ends. Sections of a VMM, which have names of their own (`firecracker/microvm`), are
//! called `paguro/of/` and that name in a stream and in its description (`device_name`).
//!
//! What is decoded is as it was before it was sent, name included and without `section_bytes`; it has
//! no description of its fields.

use std::collections::HashSet;

use thiserror::Error;

use crate::device::{BODY_MAX_BYTES, DeviceSection};
use crate::globalstate;
use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

use super::configuration::Configuration;
use super::description::{DESCRIPTION_MAX_BYTES, Description, DeviceDescription, FieldDescription};
use super::device_name;
use super::section::{self, SectionHeader};
use crate::device::name::{SECTION_NAME_MAX_BYTES, is_fit};

/// The most device sections of a stream.
pub const DEVICES_MAX: usize = 4096;
/// The most bytes that all device sections of a stream have together.
pub const DEVICES_MAX_BYTES: usize = 64 << 20;

const LENGTH_FIELD: &str = "section_bytes";
const GLOBALSTATE_BYTES: usize = 4 + globalstate::TEXT_BYTES;
/// Memory is taken as bytes arrive, not as they are announced.
const STEP_BYTES: usize = 64 << 10;

/// Device sections cannot be sent: the fault of whoever made them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// More sections than a stream has.
    #[error("{found} device sections, more than {DEVICES_MAX}")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// More bytes than one section, or all of them, have.
    #[error("device section {name:?}.{instance} makes {bytes} bytes, more than {limit}")]
    TooLong {
        /// The section.
        name: String,
        /// Its instance.
        instance: u32,
        /// The bytes with it.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// A name that cannot be written.
    #[error(
        "name {name:?} of a device section is empty, longer than {SECTION_NAME_MAX_BYTES} bytes, or has \
         control characters"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The same section twice.
    #[error("two device sections are called {name:?}.{instance}")]
    Repeated {
        /// The name.
        name: String,
        /// The instance.
        instance: u32,
    },
    /// A section by QEMU's name `globalstate` that is none: the other side would not find its end.
    #[error("device section {name:?} cannot be sent: QEMU's has {GLOBALSTATE_BYTES} bytes")]
    Endless {
        /// The name.
        name: String,
    },
    /// The description of the fields does not give the length of the body.
    #[error(
        "device section {name:?}.{instance}: {described_bytes:?} bytes are described, it has {body_bytes}"
    )]
    Undescribed {
        /// The section.
        name: String,
        /// Its instance.
        instance: u32,
        /// The bytes by the description, if they can be counted.
        described_bytes: Option<u64>,
        /// The bytes of the body.
        body_bytes: usize,
    },
    /// A description longer than any reader takes.
    #[error("the description has {found_bytes} bytes, more than {DESCRIPTION_MAX_BYTES}")]
    DescriptionTooLong {
        /// How long it is.
        found_bytes: usize,
    },
}

/// Appends the sections with header and footer, in this order; the first has the number
/// `first_id`.
///
/// # Errors
/// [`EncodeError`]; what was appended is then no use.
pub fn encode(
    devices: &[DeviceSection],
    first_id: u32,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    check(devices)?;
    for (id, device) in (first_id..).zip(devices) {
        let name = device_name::on_the_way(&device.name);
        let has_length = device_name::has_length(&name);
        SectionHeader {
            id,
            name,
            instance: device.instance,
            version: device.version,
        }
        .encode(section::FULL, out);
        if has_length {
            // Checked to be below `BODY_MAX_BYTES`.
            out.extend_from_slice(&(device.body.len() as u32).to_be_bytes());
        }
        out.extend_from_slice(&device.body);
        section::encode_footer(id, out);
    }
    Ok(())
}

/// Appends VMDESCRIPTION: of the configuration and of these sections as they stand in the stream.
///
/// # Errors
/// [`EncodeError`].
pub fn encode_description(
    configuration: &Configuration,
    devices: &[DeviceSection],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    check(devices)?;
    let description = Description {
        page_size: PAGE_BYTES,
        configuration: Some(configuration.describe()),
        devices: devices.iter().map(describe).collect(),
        paguro: None,
    };
    // Cannot fail: no maps with keys that are not strings, no writer that fails.
    let json = serde_json::to_vec(&description).unwrap_or_default();
    if json.len() as u64 > DESCRIPTION_MAX_BYTES {
        let found_bytes = json.len();
        return Err(EncodeError::DescriptionTooLong { found_bytes });
    }
    out.push(section::VMDESCRIPTION);
    out.extend_from_slice(&(json.len() as u32).to_be_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// A section's entry in VMDESCRIPTION as it stands in a stream.
pub fn describe(device: &DeviceSection) -> DeviceDescription {
    let name = device_name::on_the_way(&device.name);
    let mut described = DeviceDescription {
        vmsd_name: Some(name.clone()),
        name,
        ..device.describe()
    };
    if device_name::has_length(&described.name) {
        let length = FieldDescription {
            name: LENGTH_FIELD.to_owned(),
            kind: "uint32".to_owned(),
            size: 4,
            ..Default::default()
        };
        described.fields.insert(0, length);
    }
    described
}

fn check(devices: &[DeviceSection]) -> Result<(), EncodeError> {
    let found = devices.len();
    if found > DEVICES_MAX {
        return Err(EncodeError::TooMany { found });
    }
    let mut names = HashSet::new();
    let mut total_bytes = 0;
    for device in devices {
        let (name, instance) = (device.name.clone(), device.instance);
        let bytes = device.body.len();
        total_bytes += bytes;
        for (bytes, limit) in [(bytes, BODY_MAX_BYTES), (total_bytes, DEVICES_MAX_BYTES)] {
            if bytes > limit {
                return Err(EncodeError::TooLong {
                    name,
                    instance,
                    bytes,
                    limit,
                });
            }
        }
        if !is_fit(&name) {
            return Err(EncodeError::BadName { name });
        }
        if name == globalstate::NAME && bytes != GLOBALSTATE_BYTES {
            return Err(EncodeError::Endless { name });
        }
        let described_bytes = device.describe().body_bytes();
        if described_bytes != Some(bytes as u64) {
            return Err(EncodeError::Undescribed {
                name,
                instance,
                described_bytes,
                body_bytes: bytes,
            });
        }
        if !names.insert((&device.name, instance)) {
            return Err(EncodeError::Repeated { name, instance });
        }
    }
    Ok(())
}

/// Decodes device sections, and knows how much of them came already.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceReader {
    seen: HashSet<(String, u32)>,
    total_bytes: usize,
}

impl DeviceReader {
    /// Decodes the body of a section whose header began at `at`.
    pub(super) fn body<I: Input>(
        &mut self,
        input: &mut I,
        header: SectionHeader,
        at: u64,
    ) -> Result<DeviceSection, DecodeError> {
        const WHAT: &str = "device section";
        let found = format!("{:?}.{}", header.name, header.instance);
        if !self.seen.insert((header.name.clone(), header.instance)) {
            return Err(DecodeError::corrupt(
                WHAT,
                at,
                "each once",
                format!("a second {found}"),
            ));
        }
        let count = self.seen.len() as u64;
        DecodeError::check_limit("number of device sections", at, count, DEVICES_MAX as u64)?;
        let offset = input.offset();
        let Some(name) = device_name::arrived(&header.name).map(str::to_owned) else {
            let expected = "a name of its own behind paguro/of/";
            return Err(DecodeError::corrupt(WHAT, at, expected, found));
        };
        let bytes = if device_name::has_length(&header.name) {
            u64::from(input.u32("length of a device section")?)
        } else if header.name == globalstate::NAME && header.version == globalstate::VERSION {
            GLOBALSTATE_BYTES as u64
        } else {
            let found = format!("{found} of version {}", header.version);
            let supported = "sections of paguro, and globalstate of version 1";
            return Err(DecodeError::unsupported(WHAT, at, found, supported));
        };
        let limit = BODY_MAX_BYTES as u64;
        DecodeError::check_limit("length of a device section", offset, bytes, limit)?;
        // Not more than `BODY_MAX_BYTES`.
        let bytes = bytes as usize;
        self.total_bytes += bytes;
        let (total, limit) = (self.total_bytes as u64, DEVICES_MAX_BYTES as u64);
        DecodeError::check_limit("length of all device sections", offset, total, limit)?;
        Ok(DeviceSection {
            body: read_bytes(input, "body of a device section", bytes)?,
            name,
            instance: header.instance,
            version: header.version,
            fields: Vec::new(),
        })
    }
}

/// Reads bytes whose number was checked.
pub(super) fn read_bytes<I: Input>(
    input: &mut I,
    what: &'static str,
    bytes: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let begin = all.len();
        all.resize(begin + (bytes - begin).min(STEP_BYTES), 0);
        input.fill(what, &mut all[begin..])?;
    }
    Ok(all)
}
