//! The arithmetic of streams against plain replay.

use std::collections::{BTreeMap, BTreeSet};

use paguro_workload::area::{DMA, DMA_DIRECT};
use paguro_workload::layout::{AREA_START, PAGE_BYTES};
use paguro_workload::{Params, Pattern, Setup, Spec, Stream, Writer};
use proptest::prelude::*;

const PATTERNS: [Pattern; 4] = [
    Pattern::Sequential,
    Pattern::Random,
    Pattern::Zipf,
    Pattern::HotSet,
];

fn params(
    pattern: Pattern,
    pages: u64,
    hot_pages: u64,
    vcpus: u64,
    devices: bool,
    seed: u64,
) -> Params {
    let spec = Spec {
        pattern,
        seed,
        hot_bytes: Some(hot_pages * PAGE_BYTES),
        ..Spec::default()
    };
    Params::new(&Setup {
        spec,
        vcpus,
        ram: &[(0, AREA_START + pages * PAGE_BYTES)],
        ticks_per_s: 1 << 31,
        gap_threshold_us: 50,
        threads: false,
        dma: devices,
        dma_direct: devices,
    })
    .unwrap()
}

/// Compares every answer about the first `writes` writes with what replaying them finds.
fn check_by_replay(stream: &Stream, all_pages: u64, owned: &BTreeSet<u64>, writes: u64) {
    let replay: Vec<u64> = (0..writes).map(|n| stream.page(n)).collect();
    let mut last = BTreeMap::new();
    for n in 0..=writes {
        for page in 0..all_pages {
            assert_eq!(
                stream.last_write(page, n),
                last.get(&page).copied(),
                "page {page} before {n}"
            );
        }
        if let Some(page) = replay.get(n as usize) {
            assert!(owned.contains(page), "write {n} to page {page}");
            last.insert(*page, n);
        }
    }
    let mut next = BTreeMap::new();
    for n in (0..writes).rev() {
        next.insert(replay[n as usize], n);
        for page in 0..all_pages {
            match next.get(&page) {
                Some(write) => assert_eq!(stream.next_write(page, n), Some(*write)),
                None => assert!(
                    stream
                        .next_write(page, n)
                        .is_none_or(|write| write >= writes)
                ),
            }
        }
    }
}

#[test]
fn small_streams_are_what_replay_finds() {
    for pattern in PATTERNS {
        for pages in 1..=40 {
            for (vcpus, hot_pages) in [(1, 1), (1, pages / 4 + 1), (3, 1), (3, pages)] {
                if pages < vcpus {
                    continue;
                }
                let params = params(pattern, pages, hot_pages, vcpus, false, pages);
                for vcpu in 0..vcpus {
                    let owned = (0..pages).filter(|page| page % vcpus == vcpu).collect();
                    let stream = Stream::vcpu(&params, vcpu);
                    check_by_replay(&stream, pages, &owned, 4 * pages + 25);
                }
            }
        }
    }
}

#[test]
fn devices_write_their_own_pages() {
    for pages in [4, 5, 16, 33, 40] {
        let params = params(Pattern::Zipf, pages, 1, 2, true, 9);
        let mut owners = BTreeMap::new();
        for writer in [
            Writer::Vcpu(0),
            Writer::Vcpu(1),
            Writer::Device(DMA),
            Writer::Device(DMA_DIRECT),
        ] {
            let stream = Stream::of(&params, writer).unwrap();
            let owned: BTreeSet<u64> = (0..pages)
                .filter(|page| params.owner(*page) == writer)
                .collect();
            assert_eq!(owned.len() as u64, stream.page_count());
            check_by_replay(&stream, pages, &owned, 3 * pages);
            owners.extend(owned.into_iter().map(|page| (page, writer)));
        }
        assert_eq!(owners.len() as u64, pages);
        assert_eq!(owners[&(pages - 1)], Writer::Device(DMA));
    }
    assert!(Stream::device(&params(Pattern::Zipf, 16, 1, 1, false, 9), DMA).is_none());
}

#[test]
fn each_pass_takes_every_page_once_in_another_order() {
    let params = params(Pattern::Random, 37, 1, 1, false, 3);
    let stream = Stream::vcpu(&params, 0);
    let passes: Vec<Vec<u64>> = (0..20)
        .map(|pass| (0..37).map(|i| stream.page(pass * 37 + i)).collect())
        .collect();
    for pass in &passes {
        assert_eq!(pass.iter().collect::<BTreeSet<_>>().len(), 37);
    }
    assert_eq!(passes.iter().collect::<BTreeSet<_>>().len(), 20);
}

#[test]
fn seeds_and_vcpus_differ() {
    let order = |seed, vcpu| {
        let stream = Stream::vcpu(&params(Pattern::HotSet, 4000, 500, 2, false, seed), vcpu);
        (0..100).map(|n| stream.page(n) / 2).collect::<Vec<_>>()
    };
    let orders: BTreeSet<_> = [(1, 0), (1, 1), (2, 0), (2, 1)]
        .map(|(s, v)| order(s, v))
        .into();
    assert_eq!(orders.len(), 4);
}

#[test]
fn nine_of_ten_writes_go_to_the_hot_set() {
    let stream = Stream::vcpu(&params(Pattern::HotSet, 8000, 1000, 1, false, 5), 0);
    let mut counts = vec![0u64; 8000];
    for n in 0..200_000 {
        counts[stream.page(n) as usize] += 1;
    }
    counts.sort_unstable();
    let hot: u64 = counts[7000..].iter().sum();
    assert!((180_000..184_000).contains(&hot), "{hot}");
    assert!(counts[0] > 0);
}

#[test]
fn zipf_falls_with_the_rank() {
    let stream = Stream::vcpu(&params(Pattern::Zipf, 4096, 1, 1, false, 5), 0);
    let mut counts = vec![0u64; 4096];
    for n in 0..7 * 40_960 {
        counts[stream.page(n) as usize] += 1;
    }
    counts.sort_unstable_by(|a, b| b.cmp(a));
    // A level of s pages adds 40960/s writes to each of its pages: 4096, 1024, ... 1 pages.
    let share = |levels: &[u64]| levels.iter().map(|size| 40_960 / size).sum::<u64>();
    assert_eq!(counts[0], share(&[4096, 1024, 256, 64, 16, 4, 1]));
    assert_eq!(counts[3], share(&[4096, 1024, 256, 64, 16, 4]));
    assert_eq!(counts[15], share(&[4096, 1024, 256, 64, 16]));
    assert_eq!(counts[1023], share(&[4096, 1024]));
    assert_eq!(counts[4095], share(&[4096]));
}

proptest! {
    #[test]
    fn large_streams_agree_forward_and_backward(
        pattern in prop::sample::select(PATTERNS.to_vec()),
        pages in 3u64..50_000_000, hot in 1u64..50_000_000, vcpus in 1u64..=3, devices: bool,
        seed: u64, n in 0u64..1 << 48, back in 1u64..100,
    ) {
        let pages = if pages > 700_000 { pages % (44 << 18) + 64 } else { pages.max(8) };
        // RAM of one part ends at 3 GiB: describe the area itself beyond that.
        let mut params = params(pattern, pages.min(700_000), hot, vcpus, devices, seed);
        if pages > 700_000 {
            params.area.segments[0].pages = pages;
            params.mapped_gib = 190;
        }
        for writer in [Writer::Vcpu(0), Writer::Vcpu(vcpus - 1), Writer::Device(DMA)] {
            let Some(stream) = Stream::of(&params, writer) else { continue };
            let page = stream.page(n);
            prop_assert_eq!(params.owner(page), writer);
            prop_assert_eq!(stream.last_write(page, n + 1), Some(n));
            prop_assert_eq!(stream.next_write(page, n), Some(n));
            // Between a write and the next one to its page there is none.
            let next = stream.next_write(page, n + 1).unwrap();
            prop_assert!(next > n);
            prop_assert_eq!(stream.page(next), page);
            prop_assert_eq!(stream.last_write(page, next), Some(n));
            if let Some(before) = stream.last_write(page, n) {
                prop_assert!(before < n);
                prop_assert_eq!(stream.page(before), page);
                prop_assert_eq!(stream.next_write(page, before + 1), Some(n));
                for m in (before + 1..n).take(back as usize) {
                    prop_assert_ne!(stream.page(m), page);
                }
            }
        }
    }
}
