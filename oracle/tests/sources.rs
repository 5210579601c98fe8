//! RAM read from a file and from a process.

mod common;

use std::io::Write;

use common::{Machine, Ram};
use paguro_oracle::{Memory, Process, ProcessBlock, SnapshotFile, SnapshotFileError, check};

/// A file in the layout of a snapshot, written here once more from its description.
fn file_of(ram: &Ram) -> Vec<u8> {
    let mut file = b"QEVM\0\0\0\x03\x07\0\0\0\x08paguro-1".to_vec();
    file.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0amapped-ram");
    file.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    file.extend((ram.bytes.len() as u64 | 4).to_be_bytes());
    for (&(gpa, len), name) in ram.parts.iter().zip(["paguro.ram", "paguro.ram1"]) {
        file.push(name.len() as u8);
        file.extend(name.as_bytes());
        file.extend(len.to_be_bytes());
        file.extend(1u32.to_be_bytes());
        file.extend(4096u64.to_be_bytes());
        let bitmap_offset = file.len() + 16;
        let bitmap_bytes = len.div_ceil(4096 * 64) as usize * 8;
        let pages_offset = (bitmap_offset + bitmap_bytes).next_multiple_of(1 << 20);
        file.extend((bitmap_offset as u64).to_be_bytes());
        file.extend((pages_offset as u64).to_be_bytes());
        file.resize(pages_offset + len as usize, 0);
        let at = ram.index(gpa);
        for (i, page) in ram.bytes[at..at + len as usize].chunks(4096).enumerate() {
            let place = &mut file[pages_offset + i * 4096..][..4096];
            if page.iter().all(|byte| *byte == 0) {
                // Stale bytes under a clear bit must not be believed.
                place.fill(0xee);
            } else {
                place.copy_from_slice(page);
                file[bitmap_offset + i / 8] |= 1 << (i % 8);
            }
        }
    }
    file.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    if !ram.devices.is_empty() {
        file.extend(b"\x04\0\0\0\x09\x0cpaguro/x-dma\0\0\0\0\0\0\0\x01");
        file.extend((ram.devices.len() as u32).to_be_bytes());
        for device in &ram.devices {
            file.extend(device.writer.to_be_bytes());
            file.extend(device.done.to_be_bytes());
        }
        file.extend(b"\x7e\0\0\0\x09");
    }
    file.push(0);
    file.extend(b"\x06\0\0\0\x02{}");
    file
}

fn open(bytes: &[u8]) -> Result<SnapshotFile, SnapshotFileError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    SnapshotFile::open(file.path())
}

fn machine() -> Machine {
    Machine {
        dma: true,
        dma_direct: true,
        ..Machine::new("bytes=64,pattern=zipf", 2)
    }
}

#[test]
fn a_file_of_right_ram_is_right() {
    let ram = machine().after(&[100, 120], 7);
    let file = open(&file_of(&ram)).unwrap();
    assert_eq!(
        (file.ram(), file.device_writers()),
        (&ram.parts[..], &ram.devices[..])
    );
    let report = check(&file, file.device_writers()).unwrap();
    assert_eq!(report.wrong, []);
    assert_eq!(report, check(&ram, &ram.devices).unwrap());
    assert_eq!(
        file.present_pages(),
        report.pages_checked - report.zero_pages
    );
}

#[test]
fn odd_ranges_of_a_file_are_read_as_they_are() {
    let ram = machine().after(&[100, 120], 7);
    let file = open(&file_of(&ram)).unwrap();
    for (gpa, len) in [
        (0x1ffe, 5),
        (0x0f_ffff, 70_000),
        (0x20_0123, 9_000),
        (4 << 30, 25 * 4096),
    ] {
        let (mut found, mut expected) = (vec![1; len], vec![2; len]);
        file.read(gpa, &mut found).unwrap();
        ram.read(gpa, &mut expected).unwrap();
        assert_eq!(found, expected);
    }
    assert!(file.read(ram.parts[0].1 - 1, &mut [0; 2]).is_err());
    assert!(file.read(3 << 30, &mut [0; 1]).is_err());
}

#[test]
fn a_page_under_a_clear_bit_is_lost() {
    let ram = machine().after(&[100, 120], 7);
    let mut bytes = file_of(&ram);
    let name = b"paguro.ram\0\0";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let bitmap = at + 10 + 8 + 4 + 8 + 8 + 8;
    // The first page of the program.
    bytes[bitmap + 0x100 / 8] &= !1;
    let report = check(&open(&bytes).unwrap(), &ram.devices).unwrap();
    assert_eq!((report.wrong_count, report.wrong[0].gpa), (1, 0x10_0000));
}

#[test]
fn every_truncation_and_damage_of_the_front_is_an_answer() {
    let ram = machine().after(&[10, 12], 7);
    let bytes = file_of(&ram);
    for len in (0..300).chain([4096, 1 << 20, bytes.len() / 2, bytes.len() - 200]) {
        if let Ok(file) = open(&bytes[..len]) {
            check(&file, file.device_writers()).unwrap_err();
        }
    }
    for i in 0..200 {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[i] ^= flip;
            if let Ok(file) = open(&damaged) {
                let _ = check(&file, file.device_writers());
            }
        }
    }
}

#[test]
fn ram_of_a_process_is_read_where_it_is_mapped() {
    let ram = machine().after(&[100, 120], 7);
    let blocks = ram.parts.iter().map(|&(gpa, len)| ProcessBlock {
        gpa,
        host_address: ram.bytes[ram.index(gpa)..].as_ptr() as u64,
        len,
    });
    let process = Process::open(std::process::id(), blocks.collect()).unwrap();
    assert_eq!(
        check(&process, &ram.devices).unwrap(),
        check(&ram, &ram.devices).unwrap()
    );
    assert!(process.read(3 << 30, &mut [0; 1]).is_err());
}
