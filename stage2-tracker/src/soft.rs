//! Tables in software before a guest that is threads.
//!
//! RAM is mapped at its guest addresses, by blocks of 1 GiB and 2 MiB where they fit, to output
//! addresses that stand for places in its mappings. A thread that plays a vCPU has a
//! [`SoftCpu`](paguro_stage2::sim::SoftCpu): it finds each address by its TLB or by the tables, takes
//! the faults that hardware would take, and only then touches memory.

use paguro_ram::GuestRam;
use paguro_stage2::sim::{Arena, Cpus};
use paguro_stage2::{Attributes, Config, PAGE_SIZE, Stage2};

use crate::log::{RamLog, RamLogError, range};

/// Output address of guest address 0. They differ, so that one taken for the other is wrong at once;
/// blocks of every size fit both.
pub const OUTPUT: u64 = 1 << 40;

const BLOCK: u64 = 2 << 20;
/// What a pass or a mapping sets aside, with room to spare.
const IN_HAND: u64 = 64;
/// What a vCPU sets aside for its faults.
const IN_HAND_OF_VCPU: u64 = 4;

/// The log of tables in software.
pub type SoftLog = RamLog<Arena, Cpus>;

/// An input size that reaches all of RAM. Not below 40 bits, KVM's default: tables for 34 and less
/// have no level with blocks of 1 GiB.
pub fn ipa_bits(ram: &GuestRam) -> u8 {
    let last = ram.blocks().iter().map(|block| range(block).end - 1).max();
    (64 - last.unwrap_or(0).leading_zeros() as u8).max(40)
}

/// Maps all of RAM for as many vCPUs as `cpus` was made for, with as many tables as it takes to have
/// all of it in pages.
///
/// # Errors
///
/// [`RamLogError`].
pub fn log(ram: &GuestRam, config: Config, cpus: Cpus, vcpus: u32) -> Result<SoftLog, RamLogError> {
    // A table for each 2 MiB, for each GiB of them, and those of both ends.
    let of_block = |bytes: u64| bytes / BLOCK + bytes / BLOCK / 512 + 6;
    let blocks = ram.blocks().iter();
    let tables: u64 = blocks
        .clone()
        .map(|block| of_block(block.max_pages() as u64 * PAGE_SIZE))
        .sum();
    let arena = Arena::new((tables + IN_HAND + IN_HAND_OF_VCPU * u64::from(vcpus)) as usize);
    let tables = Stage2::new(config, arena, cpus).map_err(RamLogError::Config)?;
    for block in blocks {
        let (range, start) = (range(block), block.guest_address());
        tables
            .map(range, OUTPUT.saturating_add(start), Attributes::RAM)
            .map_err(|source| RamLogError::Map {
                block: block.id().to_owned(),
                source,
            })?;
    }
    RamLog::new(ram.clone(), tables)
}
