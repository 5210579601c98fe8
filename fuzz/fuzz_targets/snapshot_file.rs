//! Arbitrary bytes as a snapshot file: parsed, its bitmaps and devices read, verified, summed up.
//!
//! A file of RAM blocks has pages at multiples of a MiB, on whose zeros a fuzzer would spend its
//! time. So the input is a front and a back with a gap between them: its first two bytes say
//! where to cut it, the next two how many bytes of zeros go there, in units of 16, below 1 MiB.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paguro_wire::ReadAt;
use paguro_wire::device::SectionReader;
use paguro_wire::snapshot::verify::{verify, verify_pages};
use paguro_wire::snapshot::{SnapshotFile, Summary};

fuzz_target!(|input: &[u8]| {
    let [a, b, c, d, rest @ ..] = input else {
        return;
    };
    let cut = usize::from(u16::from_be_bytes([*a, *b])).min(rest.len());
    let gap_bytes = u64::from(u16::from_be_bytes([*c, *d])) * 16;
    let (front, back) = rest.split_at(cut);
    let _ = use_all(&Gapped {
        front,
        gap_bytes,
        back,
    });
});

fn use_all(bytes: &Gapped<'_>) -> Option<()> {
    let file = SnapshotFile::parse(bytes).ok()?;
    for (index, block) in file.blocks.iter().enumerate() {
        let words = block.read_bitmap(bytes).ok()?;
        assert_eq!(words.len() as u64, block.pages().div_ceil(64));
        let present = block.count_present_pages(bytes).ok()?;
        assert!(present <= block.pages());
        let checked = verify_pages(bytes, &file, index, 1..block.pages()).ok()?;
        assert!(checked.pages_checked + checked.zero_pages <= block.pages());
    }
    for device in file.devices() {
        if let Ok(section) = device.read(bytes) {
            let mut reader = SectionReader::new(&section);
            while reader.u8("x").is_ok() {}
        }
    }
    let _ = Summary::new(bytes, &file);
    let _ = verify(bytes, &file, 1, &|_| ());
    Some(())
}

/// A front and a back with zeros between them.
struct Gapped<'a> {
    front: &'a [u8],
    gap_bytes: u64,
    back: &'a [u8],
}

impl ReadAt for Gapped<'_> {
    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok((self.front.len() + self.back.len()) as u64 + self.gap_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes().unwrap_or(0)) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let back_start = self.front.len() as u64 + self.gap_bytes;
        buffer.fill(0);
        copy_part(self.front, 0, offset, buffer);
        copy_part(self.back, back_start, offset, buffer);
        Ok(())
    }
}

/// Copies what `part`, which stands at `start`, has in common with `buffer`, which stands at
/// `offset`.
fn copy_part(part: &[u8], start: u64, offset: u64, buffer: &mut [u8]) {
    let from = start.max(offset);
    let to = (start + part.len() as u64).min(offset + buffer.len() as u64);
    if from < to {
        buffer[(from - offset) as usize..(to - offset) as usize]
            .copy_from_slice(&part[(from - start) as usize..(to - start) as usize]);
    }
}
