//! The first eight bytes: magic and version.

use crate::DecodeError;
use crate::input::Input;

/// `QEVM`.
pub const MAGIC: [u8; 4] = *b"QEVM";
/// The only version in use; 2 is refused by QEMU as well.
pub const VERSION: u32 = 3;

/// Appends the header.
pub fn encode(out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
}

/// Decodes the header.
///
/// # Errors
/// [`DecodeError::NotAStream`] for another magic, [`DecodeError::Unsupported`] for another
/// version.
pub fn decode<I: Input>(input: &mut I) -> Result<(), DecodeError> {
    let found: [u8; 4] = input.array("magic")?;
    if found != MAGIC {
        return Err(DecodeError::NotAStream {
            found,
            expected: MAGIC,
        });
    }
    let offset = input.offset();
    match input.u32("stream version")? {
        VERSION => Ok(()),
        other => Err(DecodeError::unsupported(
            "stream version",
            offset,
            other,
            "3",
        )),
    }
}
