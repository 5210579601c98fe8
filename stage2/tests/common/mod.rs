//! What the tests share: a machine in software, and short names for its parts.
#![allow(dead_code)]

use paguro_stage2::sim::{Arena, Cpus};
use paguro_stage2::{AtomicU64, BlockChange, Config, Leaf, Lookup, Stage2, words_for};

pub type Bits = Vec<AtomicU64>;
pub type Tables = Stage2<Arena, Cpus, Bits>;

pub const PAGE: u64 = 4096;
pub const MIB_2: u64 = 2 << 20;
pub const GIB: u64 = 1 << 30;

pub const BLOCK_CHANGES: [BlockChange; 3] = [
    BlockChange::BreakBeforeMake,
    BlockChange::NoTranslate,
    BlockChange::Direct,
];

pub fn machine(config: Config, tables: usize, cpus: usize) -> Tables {
    let arena = Arena::new(tables);
    let cpus = Cpus::new(cpus).strict(&arena, &config);
    Stage2::new(config, arena, cpus).unwrap()
}

pub fn bitmap(bytes: u64) -> Bits {
    (0..words_for(bytes / PAGE))
        .map(|_| AtomicU64::new(0))
        .collect()
}

pub fn leaf(tables: &Tables, ipa: u64) -> Option<Leaf> {
    match tables.lookup(ipa)? {
        Lookup::Leaf(leaf) => Some(leaf),
        Lookup::Absent(_) => None,
    }
}

/// All leaves of a range, in order.
pub fn leaves(tables: &Tables, range: std::ops::Range<u64>) -> Vec<Leaf> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        match tables.lookup(at).unwrap() {
            Lookup::Leaf(leaf) => {
                at = leaf.range.end;
                found.push(leaf);
            }
            Lookup::Absent(hole) => at = hole.end,
        }
    }
    found
}

/// The numbers of the bits that are set.
pub fn set_bits(words: &[u64]) -> Vec<u64> {
    let bit = |at: &u64| words[(at / 64) as usize] >> (at % 64) & 1 != 0;
    (0..words.len() as u64 * 64).filter(bit).collect()
}
