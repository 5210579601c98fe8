//! Section framing: what begins and ends each section.

use crate::DecodeError;
use crate::input::Input;

use super::put_str8;

/// Ends the stream.
pub const EOF: u8 = 0x00;
/// Begins an iterable section.
pub const START: u8 = 0x01;
/// Goes on with an iterable section.
pub const PART: u8 = 0x02;
/// The last part of an iterable section.
pub const END: u8 = 0x03;
/// A section in one piece.
pub const FULL: u8 = 0x04;
/// A subsection; only within CONFIGURATION and device bodies.
pub const SUBSECTION: u8 = 0x05;
/// The description, directly after EOF.
pub const VMDESCRIPTION: u8 = 0x06;
/// The configuration, directly after the header.
pub const CONFIGURATION: u8 = 0x07;
/// A command, see [`super::command`].
pub const COMMAND: u8 = 0x08;
/// Ends each section.
pub const FOOTER: u8 = 0x7e;

/// What START and FULL say of their section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionHeader {
    /// The number by which PART, END and FOOTER refer to the section.
    pub id: u32,
    /// The name.
    pub name: String,
    /// Tells sections of the same name apart.
    pub instance: u32,
    /// The version of the body's format.
    pub version: u32,
}

impl SectionHeader {
    /// Appends the header with its type byte, [`START`] or [`FULL`]. The name must not be longer
    /// than [`crate::NAME_MAX_BYTES`].
    pub fn encode(&self, kind: u8, out: &mut Vec<u8>) {
        out.push(kind);
        out.extend_from_slice(&self.id.to_be_bytes());
        put_str8(out, &self.name);
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
    }

    /// Decodes what follows the type byte.
    ///
    /// # Errors
    /// As [`Input::fill`]; [`DecodeError::Corrupt`] for a name that is not UTF-8.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        Ok(Self {
            id: input.u32("section id")?,
            name: input.str8("section name")?,
            instance: input.u32("section instance")?,
            version: input.u32("section version")?,
        })
    }
}

/// Appends the beginning of a PART or END.
pub fn encode_continuation(kind: u8, id: u32, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Appends a footer.
pub fn encode_footer(id: u32, out: &mut Vec<u8>) {
    out.push(FOOTER);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Decodes a footer, which must be that of section `id`.
///
/// # Errors
/// [`DecodeError::Corrupt`] if another byte or another id stands there.
pub fn decode_footer<I: Input>(input: &mut I, id: u32) -> Result<(), DecodeError> {
    let offset = input.offset();
    let [marker, found @ ..] = input.array::<5>("section footer")?;
    let found = u32::from_be_bytes(found);
    if marker == FOOTER && found == id {
        return Ok(());
    }
    Err(DecodeError::corrupt(
        "section footer",
        offset,
        format!("7e of section {id}"),
        format!("{marker:02x} of section {found}"),
    ))
}
