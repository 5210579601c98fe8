use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use paguro_sys::presence::{Pagemap, Which, file_data, hugetlb, shared};
use paguro_sys::{Advice, Fallbacks, HUGE_PAGE_BYTES, Host, Mapping, RegisterMode};
use paguro_testkit::{HugePages, alone, skipped};
use proptest::prelude::*;

/// Pages that a scan reports.
fn pages(
    pagemap: &Pagemap,
    mapping: &Mapping,
    part: std::ops::Range<usize>,
    which: Which,
) -> Vec<usize> {
    let mut found = Vec::new();
    pagemap
        .scan(mapping, part, which, |run| {
            found.extend(run.start / 4096..run.end / 4096);
        })
        .unwrap();
    found
}

fn ways(no_marker_entries: bool) -> Option<[Pagemap; 2]> {
    let [fast, slow] = [false, true].map(|no_pagemap_scan| {
        Host::probe(&Fallbacks {
            no_pagemap_scan,
            no_marker_entries,
            ..Default::default()
        })
    });
    if !fast.pagemap_scan {
        skipped("no PAGEMAP_SCAN on this host");
        return None;
    }
    assert!(!slow.pagemap_scan);
    Some([Pagemap::open(&fast).unwrap(), Pagemap::open(&slow).unwrap()])
}

fn both() -> Option<[Pagemap; 2]> {
    ways(false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_ways_to_ask_agree_and_are_right(
        touched in proptest::collection::btree_set(0usize..1500, 0..600),
        first in 0usize..1500,
        count in 0usize..1500,
        armed in any::<bool>(),
    ) {
        let _alone = alone();
        let Some(ways) = both() else { return Ok(()) };
        let mapping = Mapping::anonymous(1500 * 4096, false).unwrap();
        mapping.advise(0, mapping.len(), Advice::NoHuge).unwrap();
        for &page in &touched {
            mapping.copy_in(page * 4096 + 5, &[1]);
        }
        let end = (first + count).min(1500);
        let part = first * 4096..end * 4096;
        let expect: Vec<usize> = touched.range(first..end).copied().collect();
        let host = Host::probe(&Fallbacks::default());
        let uffd = if armed { host.open_uffd().ok() } else { None };
        if let Some(uffd) = &uffd {
            let range = mapping.range(0, mapping.len());
            uffd.register(range.clone(), RegisterMode::WriteProtect).unwrap();
            uffd.protect(range).unwrap();
        }
        for way in &ways {
            let found = pages(way, &mapping, part.clone(), Which::Existing);
            if uffd.is_none() || way.tells_markers() {
                // A marker of a protected absent page is no content ...
                prop_assert_eq!(&found, &expect);
            } else {
                // ... but looks like a swapped page to some: then nothing with content may be missed.
                prop_assert!(expect.iter().all(|page| found.binary_search(page).is_ok()));
            }
            prop_assert!(found.windows(2).all(|two| two[0] < two[1]));
        }
        let unprotected = pages(&ways[0], &mapping, part, Which::Unprotected);
        prop_assert_eq!(unprotected, if uffd.is_some() { vec![] } else { expect });
    }
}

/// While the kernel moves a page, its entry says that it is somewhere else; a marker's says so, too.
#[test]
fn a_page_that_the_kernel_moves_about_is_present() {
    const PAGES: usize = 32 << 10;
    let _alone = alone();
    let Some(ways) = both() else { return };
    let Ok(compact) = File::options()
        .write(true)
        .open("/proc/sys/vm/compact_memory")
    else {
        return skipped("this process may not have memory compacted");
    };
    let mapping = Mapping::anonymous(PAGES * 4096, false).unwrap();
    mapping.advise(0, mapping.len(), Advice::NoHuge).unwrap();
    for page in 0..PAGES {
        mapping.copy_in(page * 4096, &[1]);
    }
    // Holes that others move into.
    let expected: Vec<usize> = (0..PAGES).step_by(2).collect();
    for page in &expected {
        let hole = (page + 1) * 4096;
        mapping.advise(hole, 4096, Advice::DontNeed).unwrap();
    }
    let uffd = Host::probe(&Fallbacks::default()).open_uffd().ok();
    if let Some(uffd) = &uffd {
        let range = mapping.range(0, mapping.len());
        uffd.register(range.clone(), RegisterMode::WriteProtect)
            .unwrap();
        uffd.protect(range).unwrap();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                rustix::io::write(&compact, b"1").unwrap();
            }
        });
        let all = |way: &Pagemap| {
            let found = pages(way, &mapping, 0..mapping.len(), Which::Existing);
            if way.tells_markers() || uffd.is_none() {
                found == expected
            } else {
                expected
                    .iter()
                    .all(|page| found.binary_search(page).is_ok())
            }
        };
        let end = Instant::now() + Duration::from_secs(3);
        let mut found = true;
        while found && Instant::now() < end {
            found = ways.iter().all(all);
        }
        over.store(true, Relaxed);
        assert!(found, "a page that is there was not found");
    });
}

#[test]
fn asking_makes_nothing_present() {
    let _alone = alone();
    let Some(ways) = both() else { return };
    let mapping = Mapping::anonymous(64 * 4096, false).unwrap();
    for way in &ways {
        for which in [Which::Existing, Which::Huge, Which::Unprotected] {
            assert!(pages(way, &mapping, 0..mapping.len(), which).is_empty());
        }
    }
}

#[test]
fn a_memfd_tells_what_was_written_also_by_others() {
    let _alone = alone();
    let file = rustix::fs::memfd_create("presence", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 100 * 4096).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 100 * 4096, false).unwrap();
    mapping.copy_in(3 * 4096, &[1]);
    // Not through the mapping: its page tables know nothing of it.
    rustix::io::pwrite(&file, &[1], 50 * 4096).unwrap();
    rustix::io::pwrite(&file, &[1], 51 * 4096 + 9).unwrap();
    let data = |part: std::ops::Range<u64>| {
        let (mut found, mut too) = (Vec::new(), Vec::new());
        file_data(file.as_fd(), part.clone(), |run| {
            found.extend(run.start / 4096..run.end.div_ceil(4096));
        })
        .unwrap();
        let bytes = part.start as usize..part.end as usize;
        shared(&mapping, file.as_fd(), 0, bytes, |run| {
            too.extend((run.start / 4096) as u64..(run.end / 4096) as u64);
        })
        .unwrap();
        assert_eq!(found, too, "of {part:?}");
        found
    };
    assert_eq!(data(0..100 * 4096), [3, 50, 51]);
    assert_eq!(data(4 * 4096..51 * 4096), [50]);
    assert!(data(52 * 4096..100 * 4096).is_empty());
    assert!(data(7 * 4096..7 * 4096).is_empty());
    assert_eq!(
        data(0..100 * 4096),
        [3, 50, 51],
        "asking made holes resident"
    );
}

#[test]
fn huge_pages_are_told_apart_one_by_one() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(4) else {
        return;
    };
    let mapping = Mapping::anonymous(4 * HUGE_PAGE_BYTES, true).unwrap();
    assert_eq!(mapping.page_bytes(), HUGE_PAGE_BYTES);
    mapping.copy_in(HUGE_PAGE_BYTES + 77, &[1]);
    mapping.copy_in(3 * HUGE_PAGE_BYTES, &[1]);
    let mut found = Vec::new();
    hugetlb(&mapping, None, 0..mapping.len(), |run| found.push(run)).unwrap();
    let page = |number: usize| number * HUGE_PAGE_BYTES..(number + 1) * HUGE_PAGE_BYTES;
    assert_eq!(found, [page(1), page(3)]);
    // More than any pool has: that is an answer, not a bus error later.
    assert!(Mapping::anonymous(1 << 46, true).is_err());
}

/// Memory that another process has handed over: nothing of it is in the page tables here.
#[test]
fn huge_pages_that_others_wrote_are_told_by_their_file() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(8) else {
        return;
    };
    use rustix::fs::MemfdFlags;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = rustix::fs::memfd_create("presence", flags).unwrap();
    rustix::fs::ftruncate(&file, 4 * HUGE_PAGE_BYTES as u64).unwrap();
    let theirs = Mapping::shared(file.as_fd(), 4 * HUGE_PAGE_BYTES, true).unwrap();
    let ours = Mapping::shared(file.as_fd(), 4 * HUGE_PAGE_BYTES, true).unwrap();
    let found = || {
        let mut found = Vec::new();
        hugetlb(&ours, Some((file.as_fd(), 0)), 0..ours.len(), |run| {
            found.push(run.start / HUGE_PAGE_BYTES);
        })
        .unwrap();
        found
    };
    assert!(found().is_empty());
    // The last byte, and the first.
    theirs.copy_in(2 * HUGE_PAGE_BYTES - 1, &[1]);
    theirs.copy_in(3 * HUGE_PAGE_BYTES, &[1]);
    assert_eq!(found(), [1, 3]);
    let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
    assert_eq!(
        blocks as usize * 512,
        2 * HUGE_PAGE_BYTES,
        "asking made pages"
    );
    for page in [0, 2] {
        theirs.copy_in(page * HUGE_PAGE_BYTES, &[1]);
    }
    assert_eq!(found(), [0, 1, 2, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A mapping that begins anywhere in its file, protected or not: what it is asked about is told by
    /// the file, and asking changes nothing.
    #[test]
    fn shared_memory_is_told_as_the_file_has_it(
        touched in proptest::collection::btree_set(0usize..1500, 0..600),
        outside in proptest::collection::btree_set(0u64..20, 0..5),
        first in 0usize..1500,
        count in 0usize..1500,
        armed in any::<bool>(),
    ) {
        const BASE: u64 = 10 * 4096;
        let _alone = alone();
        let file = rustix::fs::memfd_create("presence", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, BASE + 1500 * 4096).unwrap();
        let mapping = Mapping::shared_at(file.as_fd(), BASE, 1500 * 4096).unwrap();
        let uffd = if armed { Host::probe(&Fallbacks::default()).open_uffd().ok() } else { None };
        let watched = uffd.filter(|uffd| {
            let range = mapping.range(0, mapping.len());
            uffd.register(range.clone(), RegisterMode::WriteProtect).is_ok()
                && uffd.protect(range).is_ok()
        });
        for &page in &touched {
            // Partly through the mapping, where nothing waits; partly not.
            if watched.is_none() && page % 3 > 0 { mapping.copy_in(page * 4096 + 5, &[1]) } else {
                    rustix::io::pwrite(&file, &[1], BASE + page as u64 * 4096).unwrap();
                }
        }
        for page in outside {
            rustix::io::pwrite(&file, &[1], page.min(9) * 4096).unwrap();
        }
        let end = (first + count).min(1500);
        let expect: Vec<usize> = touched.range(first..end).copied().collect();
        for _ in 0..2 {
            let mut found = Vec::new();
            shared(&mapping, file.as_fd(), BASE, first * 4096..end * 4096, |run| {
                found.extend(run.start / 4096..run.end / 4096);
            })
            .unwrap();
            prop_assert_eq!(&found, &expect);
        }
    }
}
