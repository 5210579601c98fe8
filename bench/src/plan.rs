//! How much is measured: all of it, or what fits into a minute.

use paguro_lab::Pages;
use paguro_workload::spec::Op;

/// How much is measured.
pub struct Plan {
    /// Runs of what the aims are about.
    pub runs: usize,
    /// Runs of what is there to compare with.
    pub other_runs: usize,
    /// RAM for the gaps, and the loads and pages for each.
    pub gaps: Vec<(u64, Pages, GuestLoad)>,
    /// RAM of the machine on which the gaps of variants are compared, if they are.
    pub variants_bytes: Option<u64>,
    /// Whether the time lost with variants is compared on THP too.
    pub thp_variants: bool,
    /// RAM of the idle guests whose resident memory is looked at.
    pub resident_bytes: u64,
    /// Busy threads a core beside which snapshots are taken.
    pub beside: Vec<usize>,
    /// RAM of the guest whose snapshots are timed.
    pub throughput_bytes: u64,
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestLoad {
    /// Nothing to its memory.
    Idle,
    /// Writes all of it, at random, as fast as it goes.
    Full,
}

/// Bytes.
pub const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Plan {
    /// Some minutes.
    pub fn full() -> Self {
        let sizes = [256 * MIB, GIB, 4 * GIB];
        let both = [Pages::Small, Pages::Thp];
        let gaps = sizes.into_iter().flat_map(|bytes| {
            let of_pages =
                move |pages| [GuestLoad::Idle, GuestLoad::Full].map(|load| (bytes, pages, load));
            both.into_iter().flat_map(of_pages)
        });
        Self {
            runs: 7,
            other_runs: 5,
            gaps: gaps.collect(),
            variants_bytes: Some(GIB),
            thp_variants: true,
            beside: vec![1, 4],
            resident_bytes: GIB,
            throughput_bytes: GIB,
        }
    }

    /// Less than one.
    pub fn quick() -> Self {
        let small = (256 * MIB, Pages::Small, GuestLoad::Idle);
        let full = |bytes, pages| (bytes, pages, GuestLoad::Full);
        Self {
            runs: 3,
            other_runs: 2,
            gaps: vec![
                small,
                full(256 * MIB, Pages::Small),
                full(256 * MIB, Pages::Thp),
                full(GIB, Pages::Small),
            ],
            variants_bytes: None,
            thp_variants: false,
            beside: vec![1],
            resident_bytes: 256 * MIB,
            throughput_bytes: 512 * MIB,
        }
    }

    /// Whether the gaps of variants are compared on this machine.
    pub fn has_variants(&self, case: (u64, Pages, GuestLoad)) -> bool {
        let (bytes, pages, load) = case;
        Some(bytes) == self.variants_bytes && pages == Pages::Small && load == GuestLoad::Full
    }

    /// Whether the time lost with variants is compared on this machine.
    pub fn loses_variants(&self, pages: Pages, op: Op) -> bool {
        op == Op::Write && (pages == Pages::Small || self.thp_variants)
    }

    /// Snapshots and things that take about as long.
    pub fn steps(&self) -> u64 {
        let gaps = self.gaps.iter().map(|&case| {
            let variants = if self.has_variants(case) { 2 } else { 0 };
            self.runs + variants * self.other_runs
        });
        let ruler = 2 * self.other_runs;
        let variants = if self.thp_variants { 4 } else { 2 };
        let lost = 4 * (self.runs + self.other_runs) + variants * self.other_runs;
        let beside = (1 + self.beside.len()) * self.other_runs;
        let rest = 2 + 4 + 2 * self.other_runs + 2 * self.runs;
        (gaps.sum::<usize>() + ruler + lost + beside + rest) as u64
    }
}
