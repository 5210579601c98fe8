//! Writes the seeds that the fuzz targets start from: `cargo run --example seeds` in this folder.
//!
//! They are real files and sections, as small as they can be. What fuzzing finds goes into
//! `corpus/` and stays out of the repository.

#[path = "../wire/tests/common/mod.rs"]
mod common;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::stream::{self, Parts};
use common::{PAGE, cpu, devices, facts, put, qemu_like};
use paguro_wire::bitmap;
use paguro_wire::device::{DeviceSection, SectionWriter};
use paguro_wire::globalstate;
use paguro_wire::snapshot::extension::{ExtensionPlan, crc32c};
use paguro_wire::snapshot::{BlockPlan, Checksums, Layout};
use paguro_wire::stream::description::Description;
use paguro_wire::stream::order::Order;
use paguro_wire::stream::return_path::{Message, encode_bitmap};
use paguro_wire::stream::section;

fn main() -> io::Result<()> {
    let seeds = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let files = seeds.join("snapshot_file");
    fs::create_dir_all(&files)?;
    for (name, checksums) in [("paguro", Checksums::On), ("paguro-plain", Checksums::Off)] {
        write_file(&files, name, &tiny_file(checksums))?;
    }
    write_file(&files, "qemu", &qemu_like().bytes)?;

    let sections = seeds.join("device_section");
    fs::create_dir_all(&sections)?;
    let state = globalstate::section(globalstate::PAUSED).map_err(io::Error::other)?;
    fs::write(
        sections.join("globalstate"),
        section_input(&[2, 100], &state),
    )?;
    fs::write(
        sections.join("cpu"),
        section_input(&[3, 6, 9, 2, 3], &cpu(0)),
    )?;
    fs::write(sections.join("fields"), section_input(&SCRIPT, &fields()?))?;

    write_streams(&seeds.join("stream"))?;
    write_return_path(&seeds.join("return_path"))?;
    write_multifd(&seeds.join("multifd"))?;
    let deltas = seeds.join("xbzrle");
    fs::create_dir_all(&deltas)?;
    fs::write(deltas.join("runs"), stream::delta())?;
    fs::write(
        deltas.join("qemu"),
        b"\0\x01\x70\xc7\x01\x04\x70\x43\x44\x44",
    )?;
    Ok(())
}

/// Streams as their target takes them: cut at the pages, which are zeros.
fn write_streams(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let begin = || {
        Parts::begin()
            .order(Order::OpenReturnPath)
            .order(Order::Ping(1))
    };
    let migration = begin().start().part(section::PART, |ram, out| {
        ram.zero(0, 69 * PAGE as u64, out);
        ram.page(1, 0, out);
    });
    // The body goes on behind the page, which is not here.
    let back = Parts::new().raw(&migration.out[migration.out.len() - 13..]);
    let front = &migration.out[..migration.out.len() - 13];
    let back = back
        .part(section::END, stream::last_pass)
        .devices()
        .order(Order::Ping(2))
        .eof()
        .description();
    fs::write(folder.join("migration"), stream_input(front, 16, &back.out))?;
    let empty = begin().start().devices().eof();
    fs::write(folder.join("devices"), stream_input(&empty.out, 0, &[]))?;
    let mut postcopy = begin();
    for order in [
        Order::PostcopyAdvise(None),
        Order::PostcopyRamDiscard {
            block: "paguro.ram".to_owned(),
            ranges: vec![(0, PAGE as u64)],
        },
        Order::ReceivedBitmap {
            block: "paguro.ram".to_owned(),
        },
        Order::Packaged { bytes: 9 },
    ] {
        postcopy = postcopy.order(order);
    }
    fs::write(folder.join("postcopy"), stream_input(&postcopy.out, 1, &[]))
}

fn stream_input(front: &[u8], gap_units: u8, back: &[u8]) -> Vec<u8> {
    let [high, low] = (front.len() as u16).to_be_bytes();
    let mut input = vec![high, low, gap_units, 2];
    input.extend_from_slice(front);
    input.extend_from_slice(back);
    input
}

fn write_return_path(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let block = "paguro.ram".to_owned();
    let mut out = Vec::new();
    for message in [
        Message::SwitchoverAck,
        Message::Pong(1),
        Message::RequestPages {
            block: Some(block.clone()),
            start: 0x3000,
            length_bytes: 0x1000,
        },
        Message::RequestPages {
            block: None,
            start: 0x5000,
            length_bytes: 0x2000,
        },
        Message::ResumeAck(1),
        Message::ReceivedBitmap { block },
    ] {
        message.encode(&mut out);
    }
    encode_bitmap(&[5, 1], &mut out);
    Message::Shut(0).encode(&mut out);
    fs::write(folder.join("messages"), out)
}

/// The script that the target makes packets of.
fn write_multifd(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut input = vec![0];
    input.extend_from_slice(b"\0\x80\x02\x01\0\0\x20\0\x01a\0\x03\0\0\x01\0\0\x45\0");
    input.extend_from_slice(b"\x01\0\0\0\0\0\0\0\0");
    fs::write(folder.join("plain"), input)?;
    fs::write(
        folder.join("zstd"),
        b"\x02\x04\x80\x01\0\0\0\0\x09\x01b\0\0\0",
    )
}

/// One block of two pages, one of them zero.
fn tiny_file(checksums: Checksums) -> Vec<u8> {
    let plan = [BlockPlan {
        id: "paguro.ram".to_owned(),
        used_length_bytes: 2 * PAGE as u64,
    }];
    let layout = Layout::plan("paguro-1", &plan).expect("a sound plan");
    let tail = layout.tail(&devices(), checksums).expect("sound devices");
    let content = [0x5a; PAGE];
    let bitmaps = [vec![2]];
    let block = &layout.blocks[0];
    let mut bytes = vec![0; layout.resume_offset as usize];
    put(&mut bytes, 0, &layout.pieces[0].bytes);
    put(
        &mut bytes,
        block.bitmap_offset as usize,
        &bitmap::to_bytes(&bitmaps[0]),
    );
    put(&mut bytes, block.page_offset(1) as usize, &content);
    bytes.extend_from_slice(&tail);
    if checksums == Checksums::On {
        let crc = layout.metadata_crc32c(&bitmaps, &tail);
        let extension = ExtensionPlan::new(&layout, tail.len());
        bytes.extend(extension.encode(crc, &[[0, crc32c(&content)]], &facts()));
    }
    bytes
}

/// Writes a file as its target takes it: with its longest run of zeros as the gap.
fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (mut best, mut start) = (0..0, 0);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0 if at + 1 - start > best.len() => best = start..at + 1,
            0 => {}
            _ => start = at + 1,
        }
    }
    let gap_units = (best.len() / 16).min(usize::from(u16::MAX));
    let mut input = Vec::new();
    input.extend_from_slice(&(best.start as u16).to_be_bytes());
    input.extend_from_slice(&(gap_units as u16).to_be_bytes());
    input.extend_from_slice(&bytes[..best.start]);
    input.extend_from_slice(&bytes[best.start + gap_units * 16..]);
    fs::write(folder.join(name), input)
}

/// The numbers of the fields that [`fields`] has.
const SCRIPT: [u8; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 9, 3];

fn fields() -> io::Result<DeviceSection> {
    SectionWriter::new("s", 0, 1)
        .u8("f", 1)
        .u16("f", 2)
        .u32("f", 3)
        .u64("f", 4)
        .i64("f", -5)
        .bool("f", true)
        .buffer("f", b"seven")
        .array_u64("f", &[8, 9])
        .fixed_buffer("f", b"eleven bytes"[..11].as_ref())
        .array_struct("f", [1, 2], |writer, value| {
            writer.u64("f", value);
        })
        .u64("f", 12)
        .finish()
        .map_err(io::Error::other)
}

fn section_input(script: &[u8], section: &DeviceSection) -> Vec<u8> {
    let description = Description {
        devices: vec![section.describe()],
        ..Default::default()
    };
    let json = serde_json::to_vec(&description).expect("plain values");
    let mut input = vec![script.len() as u8];
    input.extend_from_slice(script);
    input.extend_from_slice(&(json.len() as u16).to_be_bytes());
    input.extend_from_slice(&json);
    input.extend_from_slice(&section.body);
    input
}
