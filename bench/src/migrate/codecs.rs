//! What is done with a page on its way, against copying the same page.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use paguro_migration::multifd::{Packer, Unpacker};
use paguro_sys::page_size;
use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::multifd::PAGES_MAX;
use paguro_wire::stream::xbzrle::encode;

use super::figures::{Delta, Scan, Zstd};
use super::raw::zeros;
use crate::stats::Spread;

const PAGE: usize = PAGE_BYTES as usize;

/// Zero pages are looked for in memory far larger than any cache, and as much is read there by a
/// plain sum of words.
pub fn zero_scan(bytes: usize, runs: usize) -> Result<Scan> {
    let memory = zeros(bytes)?;
    let plain: Vec<u64> = vec![1; bytes / 8];
    let scan = |_| {
        let start = Instant::now();
        let all = (0..bytes).step_by(page_size());
        let found = all.filter(|&at| memory.is_zero(at, page_size())).count();
        black_box(found);
        start.elapsed().as_secs_f64() * 1e6
    };
    let read = |_| {
        let start = Instant::now();
        black_box(plain.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
        start.elapsed().as_secs_f64() * 1e6
    };
    Ok(Scan {
        bytes: bytes as u64,
        scan_us: Spread::of((0..runs).map(scan)),
        read_us: Spread::of((0..runs).map(read)),
    })
}

/// Pages of which `changed` bytes in a row differ from what they were.
pub fn delta(changed: usize, pages: usize, runs: usize) -> Delta {
    let content = |seed: usize| -> Vec<[u8; PAGE]> {
        let byte = |page: usize, at: usize| (page * 31 + at * 7 + seed) as u8;
        (0..pages)
            .map(|page| std::array::from_fn(|at| byte(page, at)))
            .collect()
    };
    let old = content(1);
    let mut new = old.clone();
    for (number, page) in new.iter_mut().enumerate() {
        let from = number * 64 % (PAGE - changed + 1);
        page[from..from + changed]
            .iter_mut()
            .for_each(|byte| *byte ^= 0x55);
    }
    let mut copy = content(2);
    let mut out = Vec::with_capacity(pages * PAGE);
    let mut encode_us = Vec::new();
    let mut copy_us = Vec::new();
    for _ in 0..runs {
        out.clear();
        let start = Instant::now();
        for (old, new) in old.iter().zip(&new) {
            black_box(encode(old, new, PAGE, &mut out));
        }
        encode_us.push(start.elapsed().as_secs_f64() * 1e6);
        let start = Instant::now();
        copy.copy_from_slice(black_box(&new));
        black_box(&copy);
        copy_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Delta {
        changed_bytes: changed as u64,
        pages: pages as u64,
        encoded_bytes: out.len() as u64,
        encode_us: Spread::of(encode_us),
        copy_us: Spread::of(copy_us),
    }
}

/// So many packets of pages of which a third is noise, as a channel packs and unpacks them, and as
/// the library does with a lot of pages at a time.
pub fn zstd(level: u8, packets: usize, runs: usize) -> Result<Zstd> {
    let packet_bytes = PAGES_MAX * PAGE;
    let pages = partly_noise(packets * packet_bytes);
    let mut place = vec![0; packet_bytes];
    let mut times = [(); 4].map(|()| Vec::new());
    let (mut packed_bytes, mut library_bytes) = (0, 0);
    for _ in 0..runs {
        let mut packer = Packer::new(level)?;
        let mut packed = Vec::with_capacity(packets);
        let mut us = [0.0; 4];
        for lot in pages.chunks(packet_bytes) {
            let start = Instant::now();
            let made = packer.pack(lot)?;
            us[0] += micros(start);
            packed.push(made.to_vec());
        }
        packed_bytes = packed.iter().map(Vec::len).sum();
        let mut unpacker = Unpacker::new()?;
        for (payload, lot) in packed.iter().zip(pages.chunks(packet_bytes)) {
            let start = Instant::now();
            unpacker.begin(PAGES_MAX);
            let fed = unpacker.feed(payload);
            let found = fed.and_then(|()| unpacker.end());
            let is_same = found.is_ok_and(|found| {
                us[2] += micros(start);
                found == lot
            });
            ensure!(is_same, "pages come out of zstd as others");
        }
        let mut library = zstd::bulk::Compressor::new(i32::from(level))?;
        let mut reverse = zstd::bulk::Decompressor::new()?;
        let mut out = vec![0; zstd::zstd_safe::compress_bound(packet_bytes)];
        library_bytes = 0;
        for lot in pages.chunks(packet_bytes) {
            let start = Instant::now();
            let made = library.compress_to_buffer(lot, &mut out[..])?;
            us[1] += micros(start);
            library_bytes += made;
            let start = Instant::now();
            reverse.decompress_to_buffer(&out[..made], &mut place[..])?;
            us[3] += micros(start);
        }
        times.iter_mut().zip(us).for_each(|(all, us)| all.push(us));
    }
    let [pack_us, library_pack_us, unpack_us, library_unpack_us] = times.map(Spread::of);
    Ok(Zstd {
        level,
        bytes: pages.len() as u64,
        packed_bytes: packed_bytes as u64,
        library_bytes: library_bytes as u64,
        pack_us,
        library_pack_us,
        unpack_us,
        library_unpack_us,
    })
}

fn partly_noise(bytes: usize) -> Vec<u8> {
    let word = |at: usize| {
        let noise = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let noise = noise ^ noise >> 29;
        let word = if at.is_multiple_of(3) { noise } else { 7 };
        word.to_le_bytes()
    };
    (0..bytes / 8).flat_map(word).collect()
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zstd_packs_is_smaller_and_comes_back() {
        let zstd = zstd(1, 2, 1).unwrap();
        assert!(zstd.packed_bytes < zstd.bytes && zstd.library_bytes < zstd.bytes);
        assert!(zstd.pack_us.min > 0.0 && zstd.unpack_us.min > 0.0);
    }
}
