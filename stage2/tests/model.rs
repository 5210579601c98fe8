//! Random sequences of operations against a map from address to attributes.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

#[derive(Clone, Copy, PartialEq, Debug)]
struct Mapped {
    end: u64,
    pa: u64,
    attributes: Attributes,
    protected: bool,
}

impl Mapped {
    fn writable(&self) -> bool {
        self.attributes.write && !self.protected
    }
}

/// Disjoint intervals by their start, and what the log should say.
#[derive(Default)]
struct Model {
    mapped: BTreeMap<u64, Mapped>,
    region: Range<u64>,
    logging: Option<LogMode>,
    dirty: BTreeSet<u64>,
}

impl Model {
    fn find(&self, ipa: u64) -> Option<(u64, Mapped)> {
        let (start, mapped) = self.mapped.range(..=ipa).next_back()?;
        (ipa < mapped.end).then_some((*start, *mapped))
    }

    /// Cuts intervals so that none crosses `ipa`.
    fn cut(&mut self, ipa: u64) {
        if let Some((start, mapped)) = self.find(ipa).filter(|(start, _)| *start < ipa) {
            self.mapped.insert(start, Mapped { end: ipa, ..mapped });
            self.mapped.insert(
                ipa,
                Mapped {
                    pa: mapped.pa + (ipa - start),
                    ..mapped
                },
            );
        }
    }

    fn within(&mut self, range: &Range<u64>) -> Vec<u64> {
        self.cut(range.start);
        self.cut(range.end);
        self.mapped
            .range(range.clone())
            .map(|(start, _)| *start)
            .collect()
    }

    fn first_overlap(&self, range: &Range<u64>) -> Option<u64> {
        match self.find(range.start) {
            Some(_) => Some(range.start),
            None => self
                .mapped
                .range(range.clone())
                .next()
                .map(|(start, _)| *start),
        }
    }

    fn set_protected(&mut self, range: &Range<u64>, protected: bool) {
        for start in self.within(range) {
            let mapped = self.mapped.get_mut(&start).unwrap();
            mapped.protected = protected && mapped.attributes.write;
        }
    }

    fn mark(&mut self, range: Range<u64>) {
        if self.logging.is_some() {
            let (start, end) = (
                range.start.max(self.region.start),
                range.end.min(self.region.end),
            );
            self.dirty.extend((start..end).step_by(PAGE as usize));
        }
    }

    fn is_logged(&self, range: &Range<u64>) -> bool {
        self.logging.is_some() && self.region.start < range.end && range.start < self.region.end
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        range: Range<u64>,
        pa: u64,
        attributes: Attributes,
    },
    Unmap(Range<u64>),
    Protect(Range<u64>),
    Unprotect(Range<u64>),
    Split(Range<u64>),
    Merge(Range<u64>),
    Access {
        cpu: usize,
        ipa: u64,
        write: bool,
    },
    Start(LogOptions),
    Collect {
        first_word: usize,
        words: usize,
        mask: u64,
    },
    Stop {
        merge: bool,
    },
}

/// Places where trees differ: the bottom, a 1 GiB block, above 4 GiB, the very end.
fn zones(ipa_bits: u8) -> [Range<u64>; 4] {
    let limit = 1 << ipa_bits;
    let third = if ipa_bits > 32 { 5 * GIB } else { 3 * GIB };
    [
        0..2 * MIB_2,
        GIB..2 * GIB,
        third - MIB_2..third + MIB_2,
        limit - 2 * MIB_2..limit,
    ]
}

fn range_in(zone: Range<u64>) -> impl Strategy<Value = Range<u64>> {
    let pages = (zone.end - zone.start) / PAGE;
    let any =
        (0..pages, 1..600u64).prop_map(move |(first, count)| (first, count.min(pages - first)));
    let block = (0..pages / 512).prop_map(|block| (block * 512, 512));
    prop_oneof![3 => any, 2 => block, 1 => Just((0, pages))].prop_map(move |(first, count)| {
        zone.start + first * PAGE..zone.start + (first + count) * PAGE
    })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (any::<bool>(), any::<bool>(), 0..4u8, 0..10u8).prop_map(
        |(contiguous, accessed, software, kind)| {
            let memory = if kind == 0 {
                MemoryType::NON_CACHEABLE
            } else {
                MemoryType::NORMAL
            };
            let execute = if kind == 1 {
                Execute::None
            } else {
                Execute::All
            };
            let write = kind != 2;
            Attributes {
                memory,
                execute,
                write,
                contiguous,
                accessed,
                software,
                ..Attributes::RAM
            }
        },
    )
}

fn op(ipa_bits: u8, hardware: bool) -> impl Strategy<Value = Op> {
    let zone = (0..4usize).prop_map(move |at| zones(ipa_bits)[at].clone());
    let range = zone.prop_flat_map(range_in).boxed();
    // From anywhere, or close to each other, as pages are that share a block or a contiguous set.
    let near = (0..4usize, 0..24u64)
        .prop_map(move |(zone, page)| zones(ipa_bits)[zone].start + page * PAGE);
    let ipa = prop_oneof![
        range
            .clone()
            .prop_map(|range| range.start + (range.end - range.start) / 2 / PAGE * PAGE),
        near
    ];
    // Output addresses that allow blocks, that allow contiguous pages only, and that allow neither.
    let map = (
        range.clone(),
        0..4u64,
        prop_oneof![4 => Just(0), 1 => Just(16), 1 => Just(1)],
        attributes(),
    )
        .prop_map(|(range, gib, shift, attributes)| Op::Map {
            pa: gib * GIB + range.start % GIB + shift * PAGE,
            range,
            attributes,
        });
    let options =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(eager, all, by_hardware)| {
            LogOptions {
                mode: if hardware && by_hardware {
                    LogMode::Hardware
                } else {
                    LogMode::Fault
                },
                split: if eager {
                    SplitPolicy::Eager
                } else {
                    SplitPolicy::Lazy
                },
                initial: if all {
                    InitialLog::AllDirty
                } else {
                    InitialLog::Clean
                },
            }
        });
    prop_oneof![
        6 => map,
        2 => range.clone().prop_map(Op::Unmap),
        2 => range.clone().prop_map(Op::Protect),
        1 => range.clone().prop_map(Op::Unprotect),
        1 => range.clone().prop_map(Op::Split),
        1 => range.prop_map(Op::Merge),
        10 => (0..2usize, ipa, prop::bool::weighted(0.7)).prop_map(|(cpu, ipa, write)| Op::Access { cpu, ipa, write }),
        2 => options.prop_map(Op::Start),
        4 => (0..40usize, 1..20usize, any::<u64>()).prop_map(|(first_word, words, mask)| Op::Collect { first_word, words, mask }),
        1 => any::<bool>().prop_map(|merge| Op::Stop { merge }),
    ]
}

/// The logged region: begins and ends inside of blocks, and crosses from one zone's end into nothing.
fn region(ipa_bits: u8, zone: usize) -> Range<u64> {
    let zone = &zones(ipa_bits)[zone];
    zone.start + 5 * PAGE..(zone.start + 2 * MIB_2 - 7 * PAGE).min(zone.end)
}

fn run(config: Config, logged_zone: usize, ops: Vec<Op>) {
    let tables = machine(config, 3000, 2);
    let mut cpus: Vec<_> = (0..2).map(|at| SoftCpu::new(&tables, at)).collect();
    let mut model = Model {
        region: region(config.ipa_bits, logged_zone),
        ..Model::default()
    };
    let bytes = model.region.end - model.region.start;
    let id = tables
        .add_region(model.region.clone(), bitmap(bytes))
        .unwrap();
    for op in ops {
        apply(&tables, &mut cpus, &mut model, id, &op);
        probe(&tables, &model);
    }
    compare(&tables, &model);
    if model.logging.is_some() {
        collect_all(&tables, &mut model, id);
        tables.stop_logging(Scope::All, true).unwrap();
        model.logging = None;
        compare(&tables, &model);
    }
    drop(cpus);
    assert!(tables.unmap(0..1 << config.ipa_bits).is_ok());
    model.mapped.clear();
    compare(&tables, &model);
    let roots = if tables.memory().used() > 1 {
        1 << (config.ipa_bits - 30).min(4)
    } else {
        1
    };
    assert!(
        tables.memory().used() <= roots,
        "tables are left though nothing is mapped"
    );
}

fn apply(
    tables: &Tables,
    cpus: &mut [SoftCpu<'_, sim::Arena, Bits>],
    model: &mut Model,
    id: RegionId,
    op: &Op,
) {
    match op.clone() {
        Op::Map {
            range,
            pa,
            attributes,
        } => {
            let occupied = model.first_overlap(&range);
            model.mark(range.start..occupied.unwrap_or(range.end));
            let result = tables.map(range.clone(), pa, attributes);
            match occupied {
                Some(ipa) => assert_eq!(result, Err(TableError::AlreadyMapped { ipa })),
                None => {
                    result.unwrap();
                    let attributes = Attributes {
                        contiguous: false,
                        ..attributes
                    };
                    let mapped = Mapped {
                        end: range.end,
                        pa,
                        attributes,
                        protected: false,
                    };
                    model.mapped.insert(range.start, mapped);
                }
            }
        }
        Op::Unmap(range) => {
            tables.unmap(range.clone()).unwrap();
            for start in model.within(&range) {
                model.mapped.remove(&start);
            }
        }
        Op::Protect(range) | Op::Unprotect(range) => {
            let protect = matches!(op, Op::Protect(_));
            let result = if protect {
                tables.protect(range.clone())
            } else {
                tables.unprotect(range.clone())
            };
            result.unwrap();
            model.set_protected(&range, protect);
        }
        Op::Split(range) => {
            tables.split(range.clone()).unwrap();
            let mut pages = leaves(tables, range.clone()).into_iter();
            assert!(
                pages.all(|leaf| leaf.level == 3),
                "a block is left in {range:x?}"
            );
        }
        Op::Merge(range) => {
            let logged = model.is_logged(&range);
            assert_eq!(
                tables.merge(range).err(),
                logged.then_some(TableError::Logged)
            );
        }
        Op::Access { cpu, ipa, write } => access(&mut cpus[cpu], model, ipa, write),
        Op::Start(options) => {
            let result = tables.start_logging(Scope::Region(id), options);
            if model.logging.is_some() {
                return assert_eq!(result, Err(LogError::AlreadyLogging));
            }
            result.unwrap();
            model.logging = Some(options.mode);
            model.dirty.clear();
            let region = model.region.clone();
            match options.initial {
                InitialLog::AllDirty => model.mark(region),
                InitialLog::Clean => {
                    // Exactly the region: what shared a block with its edges is as it was.
                    for leaf in leaves(tables, region) {
                        assert!(!leaf.writable, "{leaf:x?} is still writable");
                    }
                }
            }
        }
        Op::Collect {
            first_word,
            words,
            mask,
        } => collect(tables, model, id, first_word, words, mask),
        Op::Stop { merge } => {
            let result = tables.stop_logging(Scope::Region(id), merge);
            if model.logging.is_none() {
                return assert_eq!(result, Err(LogError::NotLogging));
            }
            result.unwrap();
            model.logging = None;
        }
    }
}

fn access(cpu: &mut SoftCpu<'_, sim::Arena, Bits>, model: &mut Model, ipa: u64, write: bool) {
    let result = cpu.access(
        ipa,
        if write { Access::Write } else { Access::Read },
        |pa| pa,
    );
    let result = result.map_err(|stopped| stopped.resolution);
    let Some((start, mapped)) = model.find(ipa) else {
        return assert_eq!(result, Err(Resolution::Unmapped));
    };
    let logged = model.logging.is_some() && model.region.contains(&ipa);
    // The log gives permission back; what `protect` took stays away, in a log and outside.
    let expected = match write {
        true if !mapped.attributes.write => Err(Resolution::Denied),
        true if mapped.protected => Err(Resolution::Protected),
        _ => Ok(mapped.pa + (ipa - start)),
    };
    assert_eq!(result, expected, "at {ipa:#x}");
    if write && result.is_ok() && logged {
        model.dirty.insert(ipa);
    }
    // The access flag is the one attribute that an access changes; page-sized or block-sized, so the
    // comparison leaves it out.
}

fn collect(
    tables: &Tables,
    model: &mut Model,
    id: RegionId,
    first_word: usize,
    words: usize,
    mask: u64,
) {
    let mut out = vec![0; words];
    let masks = vec![mask; words];
    let all_words = words_for((model.region.end - model.region.start) / PAGE);
    let result = tables.collect(id, first_word, Some(&masks), &mut out);
    if model.logging.is_none() {
        return assert_eq!(result, Err(LogError::NotLogging));
    }
    if first_word + words > all_words {
        return assert_eq!(result, Err(LogError::BeyondRegion { words: all_words }));
    }
    result.unwrap();
    let base = model.region.start + first_word as u64 * 64 * PAGE;
    let found: BTreeSet<u64> = set_bits(&out)
        .into_iter()
        .map(|bit| base + bit * PAGE)
        .collect();
    let asked = |ipa: &u64| {
        *ipa >= base
            && *ipa < base + words as u64 * 64 * PAGE
            && mask >> ((ipa - base) / PAGE % 64) & 1 != 0
    };
    let expected: BTreeSet<u64> = model.dirty.iter().copied().filter(asked).collect();
    assert_eq!(found, expected);
    model.dirty.retain(|ipa| !expected.contains(ipa));
}

fn collect_all(tables: &Tables, model: &mut Model, id: RegionId) {
    let words = words_for((model.region.end - model.region.start) / PAGE);
    collect(tables, model, id, 0, words, u64::MAX);
    assert!(model.dirty.is_empty());
}

/// Compares at the edges of all intervals.
fn probe(tables: &Tables, model: &Model) {
    for (start, mapped) in &model.mapped {
        for ipa in [*start, mapped.end - PAGE] {
            check_leaf(
                model,
                &leaf(tables, ipa).unwrap_or_else(|| panic!("{ipa:#x} is not mapped")),
                ipa,
            );
        }
        if model.find(mapped.end).is_none() {
            assert_eq!(
                leaf(tables, mapped.end),
                None,
                "{:#x} is mapped",
                mapped.end
            );
        }
    }
}

fn compare(tables: &Tables, model: &Model) {
    tables.cpu().assert_cleaned();
    let mut mapped_bytes = 0;
    for leaf in leaves(tables, 0..1 << tables.config().ipa_bits) {
        mapped_bytes += leaf.range.end - leaf.range.start;
        let (_, mapped) = check_leaf(model, &leaf, leaf.range.start);
        // A block stands for one interval, or for several that are alike and contiguous.
        assert!(mapped.end >= leaf.range.end || model.find(mapped.end).is_some());
    }
    let expected: u64 = model
        .mapped
        .iter()
        .map(|(start, mapped)| mapped.end - start)
        .sum();
    assert_eq!(mapped_bytes, expected);
}

fn check_leaf(model: &Model, leaf: &Leaf, ipa: u64) -> (u64, Mapped) {
    let (start, mapped) = model
        .find(ipa)
        .unwrap_or_else(|| panic!("{ipa:#x} is mapped"));
    assert_eq!(
        leaf.pa + (ipa - leaf.range.start),
        mapped.pa + (ipa - start)
    );
    let found = Attributes {
        contiguous: false,
        accessed: mapped.attributes.accessed,
        ..leaf.attributes
    };
    assert_eq!(found, mapped.attributes, "at {ipa:#x}");
    assert_eq!(leaf.protected, mapped.protected, "at {ipa:#x}");
    let logged = model.logging.is_some() && model.region.contains(&ipa);
    match logged {
        false => assert_eq!(leaf.writable, mapped.writable(), "at {ipa:#x}"),
        true if leaf.writable && mapped.protected => panic!("{ipa:#x} can be written"),
        true if leaf.level == 3 && leaf.writable => {
            assert!(model.dirty.contains(&ipa), "{ipa:#x} is unlogged")
        }
        true => {}
    }
    (start, mapped)
}

fn config() -> impl Strategy<Value = (Config, usize, Vec<Op>)> {
    let bits = prop_oneof![Just(32), Just(36), Just(40), Just(44), Just(48)];
    (bits, 0..3usize, any::<bool>(), 0..4usize).prop_flat_map(
        |(ipa_bits, change, hardware_dirty, zone)| {
            let config = Config {
                ipa_bits,
                block_change: BLOCK_CHANGES[change],
                hardware_dirty,
            };
            prop::collection::vec(op(ipa_bits, hardware_dirty), 1..40)
                .prop_map(move |ops| (config, zone, ops))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn tables_and_log_agree_with_the_model((config, zone, ops) in config()) {
        run(config, zone, ops);
    }
}
