//! CONFIGURATION: the machine's name and what both sides must agree on.
//!
//! `07`, `u32` length and name of the machine type, then subsections: `05`, `str8` name, `u32`
//! version 1, and a body that only its name explains.
//!
//! | subsection | body |
//! |---|---|
//! | `configuration/target-page-bits` | `u32` |
//! | `configuration/capabilities` | `u32` count, count x `str8` |
//! | `configuration/uuid` | 16 bytes |

use crate::input::Input;
use crate::{DecodeError, NAME_MAX_BYTES};

use super::description::{FieldDescription, StructDescription};
use super::put_str8;
use super::section::{CONFIGURATION, SUBSECTION};

/// The capability that makes a stream a mapped-ram file.
pub const MAPPED_RAM: &str = "mapped-ram";
/// The capability by which shared RAM stays out of the stream.
pub const IGNORE_SHARED: &str = "x-ignore-shared";

/// The most capabilities that are read.
pub const CAPABILITIES_MAX: u32 = 64;

const PAGE_BITS: &str = "configuration/target-page-bits";
const CAPABILITIES: &str = "configuration/capabilities";
const UUID: &str = "configuration/uuid";
const SUBSECTION_VERSION: u32 = 1;

/// The machine and what was switched on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// The machine type, as `paguro-1`.
    pub machine: String,
    /// The target's page size as a power of two, where the stream says it.
    pub target_page_bits: Option<u32>,
    /// Those of the capabilities that change the bytes: `mapped-ram`, `x-ignore-shared`.
    pub capabilities: Vec<String>,
    /// The machine's UUID, where the stream says it.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Is this capability on?
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|name| name == capability)
    }

    /// Appends the element. Names must not be longer than [`NAME_MAX_BYTES`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.machine.len() <= NAME_MAX_BYTES);
        out.push(CONFIGURATION);
        out.extend_from_slice(&(self.machine.len() as u32).to_be_bytes());
        out.extend_from_slice(self.machine.as_bytes());
        if let Some(bits) = self.target_page_bits {
            put_subsection(out, PAGE_BITS);
            out.extend_from_slice(&bits.to_be_bytes());
        }
        if !self.capabilities.is_empty() {
            put_subsection(out, CAPABILITIES);
            out.extend_from_slice(&(self.capabilities.len() as u32).to_be_bytes());
            for capability in &self.capabilities {
                put_str8(out, capability);
            }
        }
        if let Some(uuid) = &self.uuid {
            put_subsection(out, UUID);
            out.extend_from_slice(uuid);
        }
    }

    /// Decodes the element, up to the byte that begins the next one.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for a subsection that is not known: nothing says how long
    /// it is. [`DecodeError::Corrupt`] for anything else that is not a configuration.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let element = input.u8("CONFIGURATION")?;
        if element != CONFIGURATION {
            return Err(DecodeError::corrupt(
                "CONFIGURATION",
                offset,
                "07",
                format!("{element:02x}"),
            ));
        }
        let length = input.u32("length of the machine's name")?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut configuration = Configuration {
            machine: input.text("machine's name", length)?,
            ..Default::default()
        };
        while input.peek("section type")? == SUBSECTION {
            configuration.decode_subsection(input)?;
        }
        Ok(configuration)
    }

    fn decode_subsection<I: Input>(&mut self, input: &mut I) -> Result<(), DecodeError> {
        const WHAT: &str = "configuration subsection";
        let offset = input.offset();
        input.u8(WHAT)?;
        let name = input.str8(WHAT)?;
        let version = input.u32(WHAT)?;
        if version != SUBSECTION_VERSION {
            let found = format!("{name:?} version {version}");
            return Err(DecodeError::unsupported(WHAT, offset, found, "version 1"));
        }
        let repeated = match name.as_str() {
            PAGE_BITS => self
                .target_page_bits
                .replace(input.u32(PAGE_BITS)?)
                .is_some(),
            UUID => self.uuid.replace(input.array(UUID)?).is_some(),
            CAPABILITIES => {
                let repeated = !self.capabilities.is_empty();
                self.decode_capabilities(input)?;
                repeated
            }
            other => {
                return Err(DecodeError::unsupported(
                    WHAT,
                    offset,
                    format!("{other:?}"),
                    "target-page-bits, capabilities, uuid",
                ));
            }
        };
        if repeated {
            Err(DecodeError::corrupt(
                WHAT,
                offset,
                "each at most once",
                format!("a second {name:?}"),
            ))
        } else {
            Ok(())
        }
    }

    fn decode_capabilities<I: Input>(&mut self, input: &mut I) -> Result<(), DecodeError> {
        let offset = input.offset();
        let count = input.u32("number of capabilities")?;
        if count > CAPABILITIES_MAX {
            return Err(DecodeError::Limit {
                what: "number of capabilities",
                offset,
                found: u64::from(count),
                limit: u64::from(CAPABILITIES_MAX),
            });
        }
        for _ in 0..count {
            self.capabilities.push(input.str8("capability")?);
        }
        Ok(())
    }

    /// The element's entry in VMDESCRIPTION.
    pub fn describe(&self) -> StructDescription {
        let field = |name: &str, kind: &str, size: usize| FieldDescription {
            name: name.to_owned(),
            kind: kind.to_owned(),
            size: size as u64,
            ..Default::default()
        };
        let structure = |name: &str, fields: Vec<FieldDescription>| StructDescription {
            vmsd_name: name.to_owned(),
            version: SUBSECTION_VERSION,
            fields,
            subsections: Vec::new(),
        };
        let mut whole = structure(
            "configuration",
            vec![
                field("len", "uint32", 4),
                field("name", "buffer", self.machine.len()),
            ],
        );
        if self.target_page_bits.is_some() {
            let fields = vec![field("target_page_bits", "uint32", 4)];
            whole.subsections.push(structure(PAGE_BITS, fields));
        }
        if !self.capabilities.is_empty() {
            let mut fields = vec![field("caps_count", "uint32", 4)];
            for (index, capability) in self.capabilities.iter().enumerate() {
                let mut entry = field("capabilities", "capability", 1 + capability.len());
                entry.index = (self.capabilities.len() > 1).then_some(index as u64);
                fields.push(entry);
            }
            whole.subsections.push(structure(CAPABILITIES, fields));
        }
        if self.uuid.is_some() {
            let fields = vec![field("uuid", "buffer", 16)];
            whole.subsections.push(structure(UUID, fields));
        }
        whole
    }
}

fn put_subsection(out: &mut Vec<u8>, name: &str) {
    out.push(SUBSECTION);
    put_str8(out, name);
    out.extend_from_slice(&SUBSECTION_VERSION.to_be_bytes());
}
