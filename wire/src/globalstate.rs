//! The section `globalstate`: was the guest running when its state was taken?
//!
//! QEMU's own section, with QEMU's layout: `u32` length of the text including its NUL, then a
//! buffer of 100 bytes that holds the text, zero-padded. QEMU reads a stream without it as
//! `running`.

use crate::device::name::GLOBAL_STATE;
use crate::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};

/// The section's name.
pub const NAME: &str = GLOBAL_STATE;
/// The section's version.
pub const VERSION: u32 = 1;
/// The bytes that hold the text.
pub const TEXT_BYTES: usize = 100;

/// Run states that paguro writes; a file of QEMU's may have others.
pub const RUNNING: &str = "running";
/// The guest was paused.
pub const PAUSED: &str = "paused";

/// Builds the section. `run_state` is a short word, [`RUNNING`] or [`PAUSED`].
///
/// # Errors
/// [`DeviceError::BadValue`] if the word does not fit or holds a NUL.
pub fn section(run_state: &str) -> Result<DeviceSection, DeviceError> {
    if run_state.len() >= TEXT_BYTES || run_state.contains('\0') {
        return Err(DeviceError::BadValue {
            section: NAME.to_owned(),
            instance: 0,
            field: "runstate".to_owned(),
            offset: 4,
            expected: "at most 99 bytes without NUL".to_owned(),
            found: format!("{run_state:?}"),
        });
    }
    let mut text = [0; TEXT_BYTES];
    text[..run_state.len()].copy_from_slice(run_state.as_bytes());
    SectionWriter::new(NAME, 0, VERSION)
        .u32("size", run_state.len() as u32 + 1)
        .fixed_buffer("runstate", &text)
        .finish()
}

/// Reads the run state back.
///
/// # Errors
/// [`DeviceError`] if the section is another one, too short, too long, or holds no text.
pub fn run_state(section: &DeviceSection) -> Result<String, DeviceError> {
    let mut reader = SectionReader::open(section, NAME, 1..=VERSION)?.undescribed();
    let size = reader.u32("size")?;
    let text = reader.fixed_buffer("runstate", TEXT_BYTES)?;
    // The length counts the NUL in QEMU's files; the text ends at the first NUL in any case.
    let length = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(TEXT_BYTES);
    if size as usize > TEXT_BYTES || length == TEXT_BYTES {
        return Err(reader.bad_value("runstate", "a text of at most 99 bytes", size));
    }
    let run_state = match std::str::from_utf8(&text[..length]) {
        Ok(run_state) if run_state.is_ascii() => run_state.to_owned(),
        _ => return Err(reader.bad_value("runstate", "ASCII", format!("{text:02x?}"))),
    };
    reader.finish()?;
    Ok(run_state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_qemus() {
        let section = section(RUNNING).unwrap();
        assert_eq!(section.body.len(), 104);
        assert_eq!(&section.body[..12], b"\x00\x00\x00\x08running\0");
        assert_eq!(run_state(&section).unwrap(), RUNNING);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(section(&"x".repeat(100)).is_err());
        let mut damaged = section(PAUSED).unwrap();
        damaged.body[5] = 0xff;
        assert!(run_state(&damaged).is_err());
        let mut endless = section(PAUSED).unwrap();
        endless.body[4..].fill(b'x');
        assert!(run_state(&endless).is_err());
        let mut short = section(PAUSED).unwrap();
        short.body.pop();
        assert!(run_state(&short).is_err());
    }
}
