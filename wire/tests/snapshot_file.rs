//! Files that are right: written, parsed, verified, summed up; QEMU's too.

mod common;

use common::{PAGE, PRESENT, RawFile, cpu, facts, page_bytes, put, qemu_like, small_file};
use paguro_wire::device::SectionReader;
use paguro_wire::snapshot::verify::{verify, verify_pages};
use paguro_wire::snapshot::{BlockPlan, Checksums, Layout, SectionKind, SnapshotFile, Summary};
use paguro_wire::{DecodeError, Fault, ReadAt, bitmap, globalstate};

#[test]
fn front_bytes_are_pinned() {
    let plan = [BlockPlan {
        id: "paguro.ram".to_owned(),
        used_length_bytes: 0x40_0000,
    }];
    let layout = Layout::plan("paguro-1", &plan).unwrap();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"QEVM\0\0\0\x03");
    expected.extend_from_slice(b"\x07\0\0\0\x08paguro-1");
    expected.extend_from_slice(b"\x05\x1aconfiguration/capabilities\0\0\0\x01");
    expected.extend_from_slice(b"\0\0\0\x01\x0amapped-ram");
    expected.extend_from_slice(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    expected.extend_from_slice(b"\0\0\0\0\0\x40\0\x04");
    expected.extend_from_slice(b"\x0apaguro.ram\0\0\0\0\0\x40\0\0");
    expected.extend_from_slice(b"\0\0\0\x01\0\0\0\0\0\0\x10\0");
    let bitmap_offset = expected.len() as u64 + 16;
    expected.extend_from_slice(&bitmap_offset.to_be_bytes());
    expected.extend_from_slice(b"\0\0\0\0\0\x10\0\0");
    assert_eq!(layout.pieces.len(), 1);
    assert_eq!(layout.pieces[0].offset, 0);
    assert_eq!(layout.pieces[0].bytes, expected);
    assert_eq!(layout.blocks[0].bitmap_offset, expected.len() as u64);
    assert_eq!(layout.blocks[0].bitmap_bytes(), 128);
    assert_eq!(layout.blocks[0].pages_offset, 0x10_0000);
    assert_eq!(layout.resume_offset, 0x50_0000);
}

#[test]
fn tail_bytes_are_pinned() {
    let plan = [BlockPlan {
        id: "r".to_owned(),
        used_length_bytes: 4096,
    }];
    let layout = Layout::plan("paguro-1", &plan).unwrap();
    let devices = [globalstate::section("paused").unwrap()];
    let tail = layout.tail(&devices, Checksums::Off).unwrap();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01");
    expected.extend_from_slice(b"\x03\0\0\0\x01\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01");
    expected.extend_from_slice(b"\x04\0\0\0\x02\x0bglobalstate\0\0\0\0\0\0\0\x01");
    expected.extend_from_slice(b"\0\0\0\x07paused");
    expected.resize(expected.len() + 94, 0);
    expected.extend_from_slice(b"\x7e\0\0\0\x02\0\x06");
    assert_eq!(tail[..expected.len()], expected);
    let json = &tail[expected.len() + 4..];
    assert_eq!(
        tail[expected.len()..][..4],
        (json.len() as u32).to_be_bytes()
    );
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["devices"][0]["fields"][1]["size"], 100);
    assert!(json.get("paguro").is_none());
}

#[test]
fn a_written_file_reads_back() {
    for checksums in [Checksums::On, Checksums::Off] {
        let small = small_file(checksums);
        let file = SnapshotFile::parse(&small.bytes).unwrap();
        assert_eq!(file.configuration.machine, "paguro-1");
        assert_eq!(file.configuration.capabilities, ["mapped-ram"]);
        assert_eq!(file.blocks, small.layout.blocks);
        for (block, words) in file.blocks.iter().zip(&small.bitmaps) {
            assert_eq!(&block.read_bitmap(&small.bytes).unwrap(), words);
        }
        let names: Vec<_> = file.devices().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["globalstate", "paguro/cpu", "paguro/cpu"]);
        let section = file.device("paguro/cpu", 1).unwrap();
        assert_eq!(section.read(&small.bytes).unwrap(), cpu(1));
        assert_eq!(
            file.run_state(&small.bytes).unwrap().as_deref(),
            Some("running")
        );
        assert_eq!(file.extension.is_some(), checksums == Checksums::On);
        let report = verify(&small.bytes, &file, 2, &|_| ()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.checksums, checksums == Checksums::On);
        assert_eq!(report.zero_pages, 67);
        let checked = if report.checksums { 4 } else { 0 };
        assert_eq!(report.pages_checked, checked);
    }
}

#[test]
fn facts_and_page_checksums_read_back() {
    let small = small_file(Checksums::On);
    let file = SnapshotFile::parse(&small.bytes).unwrap();
    let extension = file.extension.as_ref().unwrap();
    assert_eq!(extension.offset, small.tail_end as u64);
    assert_eq!(extension.offset + extension.length_bytes, file.file_bytes);
    assert_eq!(extension.facts, facts());
    let crcs = extension.tables[0].read(&small.bytes, 4, 3).unwrap();
    let expected = paguro_wire::snapshot::extension::crc32c(&page_bytes(5));
    assert_eq!(crcs[..2], [0, expected]);
}

#[test]
fn verify_names_each_damaged_page() {
    let mut small = small_file(Checksums::On);
    for page in [5, 69] {
        let at = small.layout.blocks[0].page_offset(page) as usize + 77;
        small.bytes[at] ^= 0x10;
    }
    let file = SnapshotFile::parse(&small.bytes).unwrap();
    let report = verify(&small.bytes, &file, 3, &|_| ()).unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.bad_page_count, 2);
    let bad: Vec<_> = report.bad_pages.iter().map(|bad| bad.page).collect();
    assert_eq!(bad, [5, 69]);
    assert_eq!(report.bad_pages[0].block, "paguro.ram");

    // By ranges, the same; a range that begins inside a bitmap word included.
    let check = verify_pages(&small.bytes, &file, 0, 6..70).unwrap();
    assert_eq!((check.pages_checked, check.zero_pages), (2, 62));
    assert_eq!(check.bad_pages[0].page, 69);
    let check = verify_pages(&small.bytes, &file, 0, 0..6).unwrap();
    assert_eq!((check.pages_checked, check.bad_page_count), (2, 1));
    let beyond = verify_pages(&small.bytes, &file, 0, 70..u64::MAX).unwrap();
    assert_eq!(beyond, Default::default());
    assert_eq!(
        verify_pages(&small.bytes, &file, 2, 0..1).unwrap(),
        Default::default()
    );
}

#[test]
fn a_damaged_table_is_told_from_damaged_pages() {
    let mut small = small_file(Checksums::On);
    // The checksum of a page that is zero, which has none.
    small.bytes[small.tail_end + 4 * 3] = 1;
    let file = SnapshotFile::parse(&small.bytes).unwrap();
    let report = verify(&small.bytes, &file, 1, &|_| ()).unwrap();
    assert_eq!(report.damage.len(), 1);
    assert!(report.damage[0].starts_with("page checksums of RAM block \"paguro.ram\""));
    assert_eq!(report.bad_page_count, 0);
    let check = verify_pages(&small.bytes, &file, 0, 0..70).unwrap();
    assert_eq!(check.bad_page_count, 1);
    assert_eq!(check.bad_pages[0].page, 3);
    assert_eq!(check.bad_pages[0].found_crc, None);
}

#[test]
fn verify_reports_every_page_as_progress() {
    let small = small_file(Checksums::On);
    let file = SnapshotFile::parse(&small.bytes).unwrap();
    let most = std::sync::Mutex::new((0, 0));
    verify(&small.bytes, &file, 2, &|progress| {
        let mut most = most.lock().unwrap();
        *most = (most.0.max(progress.pages_done), progress.pages_total);
    })
    .unwrap();
    assert_eq!(*most.lock().unwrap(), (71, 71));
}

#[test]
fn qemus_elements_are_understood() {
    let mut raw = qemu_like();
    let file = SnapshotFile::parse(&raw.bytes).unwrap();
    assert_eq!(file.configuration.machine, "pc-q35-10.0");
    assert_eq!(file.configuration.uuid, Some([9; 16]));
    assert_eq!(file.blocks[0].pages(), 2);
    assert_eq!(file.block("pc.bios").unwrap().0, 1);
    let kinds: Vec<_> = file
        .sections
        .iter()
        .map(|section| (section.id, section.kind, section.body_bytes))
        .collect();
    assert_eq!(kinds[0], (40, SectionKind::Device, 4));
    assert_eq!(kinds[1].1, SectionKind::Ram);
    assert_eq!(kinds[2], (0, SectionKind::Device, 24));
    assert_eq!(kinds[3], (7, SectionKind::Device, 16 + 2 + 7 + 4 + 8));
    assert_eq!(
        file.run_state(&raw.bytes).unwrap().as_deref(),
        Some("paused")
    );
    let device = file.device("0000:00:01.0/dev", 0).unwrap();
    assert_eq!(device.subsections.len(), 1);
    let section = device.read(&raw.bytes).unwrap();
    let mut reader = SectionReader::new(&section);
    assert_eq!(reader.u32("a").unwrap(), 0x0202_0202);

    // A bitmap elsewhere is fine: here in the hole in front of the second block's pages.
    let entry = file.blocks[0].bitmap_offset as usize - 16;
    let elsewhere = file.blocks[1].bitmap_offset + 8;
    put(&mut raw.bytes, entry, &elsewhere.to_be_bytes());
    raw.bytes[elsewhere as usize] = 2;
    let file = SnapshotFile::parse(&raw.bytes).unwrap();
    assert_eq!(file.blocks[0].read_bitmap(&raw.bytes).unwrap(), [2]);

    let report = verify(&raw.bytes, &file, 1, &|_| ()).unwrap();
    assert!(report.is_clean() && !report.checksums);
    assert_eq!((report.pages_checked, report.zero_pages), (0, 2));
}

#[test]
fn summary_says_what_is_in_the_file() {
    let small = small_file(Checksums::On);
    let file = SnapshotFile::parse(&small.bytes).unwrap();
    let summary = Summary::new(&small.bytes, &file).unwrap();
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["format"], "qemu-mapped-ram");
    assert_eq!(json["machine"], "paguro-1");
    assert_eq!(json["run_state"], "running");
    assert_eq!(json["pages"], 71);
    assert_eq!(json["present_pages"], PRESENT.len());
    assert_eq!(json["blocks"][0]["zero_pages"], 66);
    assert_eq!(json["blocks"][1]["name"], "paguro.ram1");
    assert_eq!(json["sections"][0]["kind"], "ram");
    assert_eq!(json["devices"][1]["fields"], 5);
    assert_eq!(json["checksums"]["algorithm"], "crc32c");
    assert_eq!(json["facts"]["was_running"], true);
    assert_eq!(json["notes"].as_array().unwrap().len(), 0);

    let raw = qemu_like();
    let file = SnapshotFile::parse(&raw.bytes).unwrap();
    let summary = Summary::new(&raw.bytes, &file).unwrap();
    assert_eq!(summary.run_state.as_deref(), Some("paused"));
    assert!(!summary.checksums.present);
    assert_eq!(summary.notes.len(), 1);
}

/// A file too large to exist here, with nothing but its metadata.
struct Sparse {
    pieces: Vec<(u64, Vec<u8>)>,
    len_bytes: u64,
}

impl ReadAt for Sparse {
    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        assert!(buffer.len() <= 1 << 20, "a read of {} bytes", buffer.len());
        buffer.fill(0);
        for (start, bytes) in &self.pieces {
            let from = (*start).max(offset);
            let to = (start + bytes.len() as u64).min(offset + buffer.len() as u64);
            if from < to {
                buffer[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }
}

#[test]
fn large_ram_is_planned_and_parsed_without_large_memory() {
    let used_length_bytes = 1 << 40;
    let plan = ["a", "b"].map(|id| BlockPlan {
        id: id.to_owned(),
        used_length_bytes,
    });
    let layout = Layout::plan("paguro-1", &plan).unwrap();
    let tail = layout.tail(&common::devices(), Checksums::Off).unwrap();
    let mut pieces: Vec<_> = layout
        .pieces
        .iter()
        .map(|piece| (piece.offset, piece.bytes.clone()))
        .collect();
    let len_bytes = layout.resume_offset + tail.len() as u64;
    pieces.push((layout.resume_offset, tail));
    let last_word = layout.blocks[1].bitmap_offset + layout.blocks[1].bitmap_bytes() - 8;
    pieces.push((last_word, vec![0, 0, 0, 0, 0, 0, 0, 0x80]));
    let sparse = Sparse { pieces, len_bytes };
    let file = SnapshotFile::parse(&sparse).unwrap();
    assert_eq!(file.blocks, layout.blocks);
    assert_eq!(file.blocks[1].count_present_pages(&sparse).unwrap(), 1);
    let words = file.blocks[1].read_bitmap(&sparse).unwrap();
    assert!(bitmap::is_set(&words, (1 << 28) - 1));
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let block = |id: &str, used_length_bytes| BlockPlan {
        id: id.to_owned(),
        used_length_bytes,
    };
    let long = "x".repeat(256);
    for blocks in [
        vec![],
        vec![block("r", 0)],
        vec![block("r", 4095)],
        vec![block("r", 4097)],
        vec![block("", 4096)],
        vec![block(&long, 4096)],
        vec![block("r", 4096), block("r", 4096)],
        vec![block("r", u64::MAX - 4095), block("s", 1 << 20)],
        (0..4097).map(|at| block(&at.to_string(), 4096)).collect(),
    ] {
        assert!(Layout::plan("paguro-1", &blocks).is_err());
    }
    assert!(Layout::plan("", &[block("r", 4096)]).is_err());
    let layout = Layout::plan("paguro-1", &[block(&long[1..], 4096)]).unwrap();
    assert!(layout.tail(&[cpu(0), cpu(0)], Checksums::Off).is_err());
    assert!(layout.tail(&[cpu(0), cpu(1)], Checksums::Off).is_ok());
    let mut undescribed = cpu(0);
    undescribed.fields.pop();
    assert!(layout.tail(&[undescribed], Checksums::Off).is_err());
}

#[test]
fn the_page_size_of_the_target_is_the_blocks() {
    let mut raw = RawFile::default();
    raw.front("virt-10.0");
    raw.raw(&[5])
        .str8("configuration/target-page-bits")
        .u32(1)
        .u32(16);
    raw.start_ram(0, 65536).str8("mach-virt.ram").u64(65536);
    let bitmap_offset = raw.bytes.len() as u64 + 28;
    raw.u32(0).u64(65536).u64(bitmap_offset).u64(65536);
    raw.bytes.resize(2 * 65536, 0);
    raw.eos_footer(0).end_ram(0).close(r#"{"devices":[]}"#);
    raw.bytes[bitmap_offset as usize] = 1;
    let file = SnapshotFile::parse(&raw.bytes).unwrap();
    assert_eq!(file.blocks[0].pages(), 1);
    assert_eq!(file.configuration.target_page_bits, Some(16));
    assert_eq!(file.run_state(&raw.bytes).unwrap(), None);
    let summary = Summary::new(&raw.bytes, &file).unwrap();
    assert_eq!(summary.notes.len(), 3);

    // Two bits for one page.
    raw.bytes[bitmap_offset as usize] = 3;
    let error = file.blocks[0].read_bitmap(&raw.bytes).unwrap_err();
    assert!(matches!(error, DecodeError::Corrupt { .. }));
    assert_eq!(error.fault(), Fault::Corrupt);
    assert_eq!(PAGE, 4096);
}
