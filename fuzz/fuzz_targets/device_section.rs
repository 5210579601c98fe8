//! Arbitrary bytes as a device section, read by arbitrary fields, with and without an arbitrary
//! description.
//!
//! The input: a byte for the length of a script of fields, the script, two bytes for the length
//! of a description (JSON), the description, and the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader};
use paguro_wire::globalstate;
use paguro_wire::stream::description::Description;

fuzz_target!(|input: &[u8]| {
    let Some((script, rest)) = split(input, 1) else {
        return;
    };
    let Some((json, body)) = split(rest, 2) else {
        return;
    };
    let described = Description::decode(json, 0).unwrap_or_default().devices;
    for device in &described {
        let _ = device.body_bytes();
    }
    let mut section = DeviceSection {
        name: globalstate::NAME.to_owned(),
        instance: 0,
        version: 1,
        body: body.to_vec(),
        fields: described.into_iter().next().unwrap_or_default().fields,
    };
    let _ = globalstate::run_state(&section);
    let _ = read(script, &mut SectionReader::new(&section), 0);
    section.fields.clear();
    let mut reader = SectionReader::new(&section);
    let result = read(script, &mut reader, 0);
    assert!(reader.position() <= body.len());
    assert_eq!(
        result.is_ok() && reader.finish().is_ok(),
        result.is_ok_and(|position| position == body.len()),
    );
});

/// Reads a field for each byte of the script; all are called `f`, as in the corpus.
fn read(script: &[u8], reader: &mut SectionReader<'_>, depth: u32) -> Result<usize, DeviceError> {
    for (at, step) in script.iter().enumerate() {
        let nested = &script[at + 1..];
        match step % 12 {
            0 => drop(reader.u8("f")?),
            1 => drop(reader.u16("f")?),
            2 => drop(reader.u32("f")?),
            3 => drop(reader.u64("f")?),
            4 => drop(reader.i64("f")?),
            5 => drop(reader.bool("f")?),
            6 => drop(reader.buffer("f")?),
            7 => drop(reader.array_u64("f")?),
            8 if depth < 8 => return reader.structure("f", |r| read(nested, r, depth + 1)),
            9 if depth < 3 => {
                reader.array_struct("f", |r| read(nested, r, depth + 1))?;
            }
            10 => return Ok(reader.position()),
            length => drop(reader.fixed_buffer("f", usize::from(length))?),
        }
    }
    Ok(reader.position())
}

fn split(input: &[u8], length_bytes: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_at_checked(length_bytes)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}
