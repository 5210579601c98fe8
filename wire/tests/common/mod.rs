//! Small files to test with: one as paguro writes it, one as QEMU does.
#![allow(dead_code)]

pub mod stream;

use std::ops::Range;

use paguro_wire::device::{DeviceSection, SectionWriter};
use paguro_wire::snapshot::extension::{ExtensionPlan, Facts, crc32c};
use paguro_wire::snapshot::{BlockPlan, Checksums, Layout};
use paguro_wire::{bitmap, globalstate};

pub const PAGE: usize = 4096;

/// A file of two RAM blocks: 70 pages, of which 0, 5, 6 and 69 are not zero, and one page that
/// is zero.
pub struct SmallFile {
    pub bytes: Vec<u8>,
    pub layout: Layout,
    pub bitmaps: Vec<Vec<u64>>,
    /// Where the extension begins, or the file ends.
    pub tail_end: usize,
}

pub const PRESENT: [u64; 4] = [0, 5, 6, 69];

pub fn devices() -> Vec<DeviceSection> {
    vec![
        globalstate::section(globalstate::RUNNING).unwrap(),
        cpu(0),
        cpu(1),
    ]
}

pub fn cpu(instance: u32) -> DeviceSection {
    SectionWriter::new("paguro/cpu", instance, 1)
        .u64("rax", 0x1122_3344_5566_7788)
        .buffer("xsave", &[7; 24])
        .array_struct("msrs", [(1u32, 2u64), (3, 4)], |writer, (index, value)| {
            writer.u32("index", index).u64("value", value);
        })
        .finish()
        .unwrap()
}

pub fn page_bytes(page: u64) -> Vec<u8> {
    (0..PAGE)
        .map(|at| (at as u64 * 31 + page * 7 + 1) as u8)
        .collect()
}

pub fn small_file(checksums: Checksums) -> SmallFile {
    let layout = Layout::plan(
        "paguro-1",
        &[
            BlockPlan {
                id: "paguro.ram".to_owned(),
                used_length_bytes: 70 * 4096,
            },
            BlockPlan {
                id: "paguro.ram1".to_owned(),
                used_length_bytes: 4096,
            },
        ],
    )
    .unwrap();
    let tail = layout.tail(&devices(), checksums).unwrap();
    let mut bitmaps = vec![vec![0u64; 2], vec![0]];
    let mut page_crcs = [vec![0u32; 70], vec![0]];
    let mut bytes = vec![0; layout.resume_offset as usize];
    for piece in &layout.pieces {
        put(&mut bytes, piece.offset as usize, &piece.bytes);
    }
    for page in PRESENT {
        let content = page_bytes(page);
        put(
            &mut bytes,
            layout.blocks[0].page_offset(page) as usize,
            &content,
        );
        bitmaps[0][page as usize / 64] |= 1 << (page % 64);
        page_crcs[0][page as usize] = crc32c(&content);
    }
    for (block, words) in layout.blocks.iter().zip(&bitmaps) {
        put(
            &mut bytes,
            block.bitmap_offset as usize,
            &bitmap::to_bytes(words),
        );
    }
    bytes.extend_from_slice(&tail);
    let tail_end = bytes.len();
    if checksums == Checksums::On {
        let plan = ExtensionPlan::new(&layout, tail.len());
        let crc = layout.metadata_crc32c(&bitmaps, &tail);
        bytes.extend_from_slice(&plan.encode(crc, &page_crcs, &facts()));
    }
    SmallFile {
        bytes,
        layout,
        bitmaps,
        tail_end,
    }
}

pub fn facts() -> Facts {
    Facts {
        paguro_version: "0.1.0".to_owned(),
        taken_at_unix_s: 1_700_000_000,
        was_running: true,
        host_page_size_bytes: 4096,
    }
}

pub fn put(bytes: &mut [u8], at: usize, content: &[u8]) {
    bytes[at..at + content.len()].copy_from_slice(content);
}

impl SmallFile {
    /// Where every byte matters: all but pages and holes.
    pub fn metadata_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        for (piece, block) in self.layout.pieces.iter().zip(&self.layout.blocks) {
            let end = block.bitmap_offset + block.bitmap_bytes();
            ranges.push(piece.offset as usize..end as usize);
        }
        ranges.push(self.layout.resume_offset as usize..self.bytes.len());
        ranges
    }
}

/// Writes bytes as QEMU does, without any of this crate's encoders.
#[derive(Default)]
pub struct RawFile {
    pub bytes: Vec<u8>,
}

impl RawFile {
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn str8(&mut self, text: &str) -> &mut Self {
        self.raw(&[text.len() as u8]).raw(text.as_bytes())
    }

    pub fn front(&mut self, machine: &str) -> &mut Self {
        self.raw(b"QEVM").u32(3);
        self.raw(&[7])
            .u32(machine.len() as u32)
            .raw(machine.as_bytes());
        self.raw(&[5]).str8("configuration/capabilities").u32(1);
        self.u32(1).str8("mapped-ram")
    }

    pub fn start_ram(&mut self, id: u32, total_bytes: u64) -> &mut Self {
        self.raw(&[1]).u32(id).str8("ram").u32(0).u32(4);
        self.u64(total_bytes | 4)
    }

    /// An entry whose bitmap follows it and whose pages stand at the next page boundary.
    pub fn block(&mut self, id: &str, length_bytes: u64) -> &mut Self {
        let bitmap_bytes = length_bytes.div_ceil(4096).div_ceil(64) * 8;
        let bitmap_offset = self.bytes.len() as u64 + 1 + id.len() as u64 + 8 + 28;
        let pages_offset = (bitmap_offset + bitmap_bytes).next_multiple_of(4096);
        self.str8(id).u64(length_bytes);
        self.u32(1).u64(4096).u64(bitmap_offset).u64(pages_offset);
        self.bytes.resize((pages_offset + length_bytes) as usize, 0);
        self
    }

    pub fn eos_footer(&mut self, id: u32) -> &mut Self {
        self.u64(0x10).footer(id)
    }

    pub fn footer(&mut self, id: u32) -> &mut Self {
        self.raw(&[0x7e]).u32(id)
    }

    pub fn full(&mut self, id: u32, name: &str, instance: u32, version: u32) -> &mut Self {
        self.raw(&[4]).u32(id).str8(name).u32(instance).u32(version)
    }

    pub fn end_ram(&mut self, id: u32) -> &mut Self {
        self.raw(&[3]).u32(id).eos_footer(id)
    }

    pub fn close(&mut self, json: &str) -> &mut Self {
        self.raw(&[0, 6])
            .u32(json.len() as u32)
            .raw(json.as_bytes())
    }
}

/// A file with what QEMU's have and paguro's do not: an early device, a command, parts of `ram`,
/// old-style devices, arrays, structures, subsections.
pub fn qemu_like() -> RawFile {
    let mut file = RawFile::default();
    file.front("pc-q35-10.0");
    file.raw(&[5])
        .str8("configuration/uuid")
        .u32(1)
        .raw(&[9; 16]);
    file.full(40, "early", 0, 1).u32(5).footer(40);
    file.start_ram(2, 3 * 4096)
        .block("pc.ram", 2 * 4096)
        .block("pc.bios", 4096);
    file.eos_footer(2);
    file.raw(&[2]).u32(2).u64(0x200).eos_footer(2);
    file.raw(&[8]).u16(11).u16(0);
    file.end_ram(2);
    file.full(0, "timer", 0, 2).raw(&[1; 24]).footer(0);
    file.full(7, "0000:00:01.0/dev", 0, 3)
        .raw(&[2; 4 + 3 * 2 + 6]);
    file.raw(&[5]).str8("dev/sub").u32(1).raw(&[3; 8]).footer(7);
    file.full(9, "globalstate", 0, 1).u32(7);
    let mut text = [0; 100];
    text[..6].copy_from_slice(b"paused");
    file.raw(&text).footer(9);
    file.close(
        r#"{"page_size": 4096, "configuration": {"vmsd_name": "configuration", "version": 1,
        "fields": [{"name": "len", "type": "uint32", "size": 4}]}, "devices": [
        {"name": "early", "instance_id": 0, "vmsd_name": "early", "version": 1,
         "fields": [{"name": "x", "type": "uint32", "size": 4}]},
        {"name": "timer", "instance_id": 0, "size": 24,
         "fields": [{"name": "data", "size": 24, "type": "buffer"}]},
        {"name": "0000:00:01.0/dev", "instance_id": 0, "vmsd_name": "dev", "version": 3,
         "fields": [{"name": "a", "type": "uint32", "size": 4},
            {"name": "b", "array_len": 3, "type": "uint16", "size": 2},
            {"name": "c", "index": 0, "type": "struct", "struct": {"vmsd_name": "c",
             "version": 1, "fields": [{"name": "d", "type": "uint8", "size": 6}]}, "size": 6}],
         "subsections": [{"vmsd_name": "dev/sub", "version": 1,
            "fields": [{"name": "e", "type": "uint64", "size": 8}]}]},
        {"name": "globalstate", "instance_id": 0, "vmsd_name": "globalstate", "version": 1,
         "fields": [{"name": "size", "type": "uint32", "size": 4},
            {"name": "runstate", "type": "buffer", "size": 100}]}]}"#,
    );
    file
}
