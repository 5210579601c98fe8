//! What is done with a page on its way, against copying the same page.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use paguro_sys::page_size;
use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::xbzrle::encode;

use super::figures::{Delta, Scan};
use super::raw::zeros;
use crate::bench::stats::Spread;

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
