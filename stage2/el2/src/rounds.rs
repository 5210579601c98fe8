//! One vCPU: writes known pages of blocks, over several collect rounds; then the log stops, the blocks
//! merge, and the guest runs on.

use crate::Vm;
use crate::features::Features;
use crate::memory::{self, GIB_HIGH, GIB_LOW, PoolMemory, SMALL};
use crate::vcpu::Vcpu;
use paguro_stage2::el2::El2;
use paguro_stage2::{Attributes, Config, Cpu, InitialLog, LogMode, LogOptions, Lookup, RegionId};
use paguro_stage2::{Scope, SplitPolicy, Stage2, words_for};

pub const PAGE: u64 = 4096;
const MIB_2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// The program, which holds the guest's code and its lists.
const IMAGE: core::ops::Range<u64> = 0x4020_0000..0x4060_0000;
const VMID: u16 = 7;
const ROUNDS: u64 = 4;
const PAGES_A_ROUND: u64 = 40;

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// A part of the guest's RAM: a mapping, and the region in it that is logged.
struct Part {
    ipa: u64,
    pa: u64,
    bytes: u64,
    /// Pages at both ends that are not logged, so that the region ends inside of a block.
    margin_pages: u64,
    bitmap: usize,
}

impl Part {
    fn region(&self) -> core::ops::Range<u64> {
        self.ipa + self.margin_pages * PAGE..self.ipa + self.bytes - self.margin_pages * PAGE
    }

    fn pages(&self) -> u64 {
        self.bytes / PAGE - 2 * self.margin_pages
    }

    fn pa_of(&self, page: u64) -> u64 {
        self.pa + (page + self.margin_pages) * PAGE
    }
}

pub fn vm<C: Cpu>(config: Config, cpu: C) -> Vm<C> {
    let vm = Stage2::new(config, PoolMemory, cpu).unwrap();
    vm.map(IMAGE, IMAGE.start, Attributes::ROM).unwrap();
    vm
}

pub fn registers<C: Cpu>(vm: &Vm<C>, features: &Features) -> (u64, u64) {
    (
        vm.vttbr(VMID),
        vm.vtcr(features.pa_range, features.vmid_16_bits),
    )
}

pub fn run(features: &Features, config: Config, options: LogOptions) {
    let tables_before = memory::free_tables();
    {
        let limit = 1u64 << config.ipa_bits;
        let low = Part {
            ipa: 2 * GIB,
            pa: GIB_LOW,
            bytes: GIB,
            margin_pages: 0,
            bitmap: 0,
        };
        let small = Part {
            ipa: 0x1000_0000,
            pa: SMALL,
            bytes: 2 * MIB_2,
            margin_pages: 5,
            bitmap: 1,
        };
        let top = Part {
            ipa: limit - 2 * MIB_2,
            pa: SMALL + 4 * MIB_2,
            bytes: 2 * MIB_2,
            margin_pages: 0,
            bitmap: 2,
        };
        // With 32 bits there is nothing above 4 GiB.
        let high = Part {
            ipa: 6 * GIB,
            pa: GIB_HIGH,
            bytes: GIB,
            margin_pages: 3,
            bitmap: 3,
        };
        let parts = [low, small, top, high];
        let parts = if config.ipa_bits > 32 {
            &parts[..]
        } else {
            &parts[..3]
        };
        scenario(features, config, options, parts);
    }
    assert_eq!(memory::free_tables(), tables_before, "tables leaked");
    println!("ok: {config:?} {options:?}");
}

fn scenario(features: &Features, config: Config, options: LogOptions, parts: &[Part]) {
    let vm = vm(config, features.el2());
    let (vttbr, vtcr) = registers(&vm, features);
    vm.cpu().bind(vttbr);
    vm.cpu().invalidate_vm();
    let mut ids = [None; 4];
    for (part, id) in parts.iter().zip(&mut ids) {
        vm.map(part.ipa..part.ipa + part.bytes, part.pa, Attributes::RAM)
            .unwrap();
        let region = part.region();
        *id = Some(
            vm.add_region(region, memory::bitmap(part.bitmap, words_for(part.pages())))
                .unwrap(),
        );
    }
    let mut vcpu = Vcpu::new(&vm, 0, vttbr, vtcr);
    let mut random = Random(u64::from(config.ipa_bits) << 8 | options.split as u64);

    // Before the log nothing faults, and TLBs fill with writable blocks.
    for part in parts {
        for page in 0..8 {
            vcpu.store(part.region().start + page * PAGE, page);
        }
    }
    vcpu.run();
    assert_eq!(vcpu.faults, 0);

    let report = vm.start_logging(Scope::All, options).unwrap();
    let eager = options.split == SplitPolicy::Eager;
    let all_dirty = options.initial == InitialLog::AllDirty;
    assert!(all_dirty || report.entries_changed > 0 && report.invalidations > 0);
    if all_dirty {
        assert_eq!(report.entries_changed, 0);
        parts
            .iter()
            .zip(&ids)
            .for_each(|(part, id)| collect(&vm, part, *id, |_| true));
    }

    for round in 0..ROUNDS {
        let (faults, logged) = (vcpu.faults, vcpu.pages_logged);
        // 4 parts, at most 42 pages each, sorted and without doubles at the end.
        let mut written = [[u64::MAX; PAGES_A_ROUND as usize + 2]; 4];
        let mut distinct = 0;
        for (part, pages) in parts.iter().zip(&mut written) {
            let value = |page: u64| round << 32 | page << 4 | 1;
            for (at, page) in pages.iter_mut().enumerate() {
                *page = match at {
                    // Both ends of the region, pages of one block, and pages from anywhere.
                    0 => 0,
                    1 => part.pages() - 1,
                    2..=9 => (9000 + at as u64 * 3 + round) % part.pages(),
                    _ => random.below(part.pages()),
                };
                let ipa = part.region().start + *page * PAGE;
                vcpu.store(ipa + 8 * (*page % 512), 3);
                vcpu.store(ipa, value(*page));
                vcpu.expect(ipa, value(*page));
                // Reading is not writing.
                vcpu.load(part.region().start + random.below(part.pages()) * PAGE);
            }
            // What is outside of the region is written, too, and is in no log.
            vcpu.store(
                part.region().end.min(part.ipa + part.bytes - PAGE),
                value(part.pages() - 1),
            );
            pages.sort_unstable();
            distinct += 1 + pages.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
        }
        vcpu.run();
        for ((part, pages), id) in parts.iter().zip(&written).zip(&ids) {
            collect(&vm, part, *id, |page| pages.binary_search(&page).is_ok());
            for page in pages
                .iter()
                .filter(|page| **page != part.pages() - 1 || part.margin_pages > 0)
            {
                assert_eq!(
                    memory::guest_word(part.pa_of(*page)),
                    round << 32 | page << 4 | 1
                );
            }
        }
        match (options.mode, eager) {
            (LogMode::Hardware, true) => {
                assert_eq!(vcpu.faults, faults, "hardware logs without faults")
            }
            (LogMode::Fault, _) => {
                assert_eq!(vcpu.pages_logged - logged, distinct, "one fault a page")
            }
            _ => {}
        }
    }

    let report = vm.stop_logging(Scope::All, true).unwrap();
    assert!(report.merges > 0);
    let faults = vcpu.faults;
    for part in parts {
        // What was inside of the region is blocks again; at its ends other pages keep the tables.
        let middle = part.region().start + part.pages() / 2 * PAGE;
        let Some(Lookup::Leaf(leaf)) = vm.lookup(middle) else {
            panic!("{middle:#x} is not mapped")
        };
        let expected = if part.bytes == GIB && part.margin_pages == 0 && config.ipa_bits > 34 {
            1
        } else {
            2
        };
        if part.bytes == GIB || part.margin_pages == 0 {
            assert_eq!(leaf.level, expected, "{leaf:x?}");
        }
        assert!(leaf.writable && leaf.attributes == Attributes::RAM);
        vm.merge(part.ipa..part.ipa + part.bytes).unwrap();
        for page in [0, part.pages() / 2, part.pages() - 1] {
            vcpu.store(part.region().start + page * PAGE, page + 77);
            vcpu.expect(part.region().start + page * PAGE, page + 77);
        }
    }
    vcpu.run();
    assert_eq!(vcpu.faults, faults, "a fault after the log was stopped");
    drop(vcpu);
    vm.cpu().invalidate_vm();
}

/// Collects a whole region in chunks of different lengths, and compares every bit.
fn collect(vm: &Vm<El2>, part: &Part, id: Option<RegionId>, expected: impl Fn(u64) -> bool) {
    let id = id.expect("every part has a region");
    let words = words_for(part.pages());
    let mut first = 0;
    let mut chunk = 1;
    while first < words {
        let mut bits = [0; 256];
        let len = chunk.min(words - first).min(bits.len());
        vm.collect(id, first, None, &mut bits[..len]).unwrap();
        for (at, word) in bits[..len].iter().enumerate() {
            for bit in 0..64 {
                let page = (first + at) as u64 * 64 + bit;
                let wanted = page < part.pages() && expected(page);
                assert_eq!(
                    word >> bit & 1 != 0,
                    wanted,
                    "page {page} of the part at {:#x}",
                    part.ipa
                );
            }
        }
        first += len;
        chunk = chunk * 2 + 1;
    }
}
