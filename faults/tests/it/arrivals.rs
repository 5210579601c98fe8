//! Pages land, and are received when they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_faults::{Arrivals, Faults, FaultsError, Use};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::Advice;

use crate::common::*;

const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

fn fresh(pages: usize) -> Arrivals {
    let ram = GuestRam::new(vec![block("ram", pages, Backing::Anonymous)]);
    Arrivals::new(ram.spans().clone())
}

fn received(arrivals: &Arrivals) -> Vec<usize> {
    let set = arrivals.received(0);
    (0..set.pages())
        .filter(|&page| set.contains(page))
        .collect()
}

/// Served, with what asks for pages: it counts, and nothing comes.
fn served(backing: Backing) -> Option<(Arc<Faults>, Arc<Arrivals>, Arc<AtomicUsize>)> {
    let faults = faults(8, backing, 1)?;
    let arrivals = Arc::new(Arrivals::new(faults.spans().clone()));
    let asked = Arc::new(AtomicUsize::new(0));
    let (here, count) = (arrivals.clone(), asked.clone());
    let answer = move |faults: &Faults, at| {
        here.answer(faults, at, || {
            count.fetch_add(1, Ordering::SeqCst);
            false
        });
    };
    arrivals.serve(&faults, Arc::new(Does(answer))).unwrap();
    Some((faults, arrivals, asked))
}

#[test]
fn in_fresh_ground_the_later_page_is_the_newer_one() {
    let arrivals = fresh(4);
    let mapping = arrivals.spans().all()[0].mapping().unwrap().clone();
    let mut noted = Vec::new();
    for (page, value) in [(1, 5), (2, 6), (1, 7)] {
        let content = [value; PAGE];
        arrivals
            .land(0, page * PAGE, &content, |pages| noted.push(pages))
            .unwrap();
        assert!(mapping.is_equal(page * PAGE, &content));
    }
    assert_eq!(noted, [1..2, 2..3], "each counts once");
    // Zeros are content where there was some.
    arrivals.zero(0, 2 * PAGE, PAGE, |_| {}).unwrap();
    assert!(mapping.is_zero(2 * PAGE, PAGE) && mapping.is_equal(PAGE, &[7; PAGE]));
}

#[test]
fn zeros_over_nothing_leave_nothing() {
    let ram = GuestRam::new(vec![block("ram", 512, Backing::Anonymous)]);
    let arrivals = Arrivals::new(ram.spans().clone());
    let mapping = ram.blocks()[0].mapping().clone();
    arrivals.land(0, 3 * PAGE, &[5; PAGE], |_| {}).unwrap();
    arrivals.zero(0, 0, 512 * PAGE, |_| {}).unwrap();
    assert!(mapping.is_zero(3 * PAGE, PAGE));
    let pagemap = paguro_sys::presence::Pagemap::open(&paguro_sys::Host::probe(
        &paguro_sys::Fallbacks::default(),
    ));
    let (block, mut present) = (&ram.blocks()[0], Vec::new());
    paguro_ram::presence::present(block, 0..512, &pagemap.unwrap(), |run| present.extend(run))
        .unwrap();
    assert_eq!(present, [3]);
}

/// Whoever puts pages there by himself may fail half way: nothing is received before he says so.
#[test]
fn places_are_received_when_they_are_filled() {
    let arrivals = fresh(8);
    let at = || [1, 2, 5].map(|page| page * PAGE).into_iter();
    let mut places = arrivals.places(0, at(), PAGE).unwrap();
    places.copy_in(&[9; 3 * PAGE]);
    assert!(received(&arrivals).is_empty());
    arrivals.filled(0, at(), PAGE);
    assert_eq!(received(&arrivals), [1, 2, 5]);
    let mapping = arrivals.spans().all()[0].mapping().unwrap();
    assert!(mapping.is_equal(5 * PAGE, &[9; PAGE]));
}

#[test]
fn in_served_ground_the_first_page_stays_and_is_noted_when_it_is_there() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, arrivals, _)) = served(kind) else {
            return;
        };
        assert!(arrivals.places(0, 0..1, PAGE).is_none(), "somebody may run");
        let look = |pages: std::ops::Range<usize>| {
            assert_eq!(
                ends(&read(&faults, pages.start)),
                5,
                "noted before it was there"
            );
        };
        arrivals.land(0, PAGE, &[5; 2 * PAGE], look).unwrap();
        let nothing = |pages| panic!("{pages:?} came twice");
        arrivals.land(0, 2 * PAGE, &[6; PAGE], nothing).unwrap();
        arrivals.zero(0, 2 * PAGE, PAGE, nothing).unwrap();
        assert_eq!(ends(&read(&faults, 2)), 5);
        let mut noted = Vec::new();
        arrivals
            .land(0, 0, &[7; 4 * PAGE], |pages| noted.push(pages))
            .unwrap();
        assert_eq!(noted, [0..1, 3..4], "{kind:?}");
        let read: Vec<_> = (0..4).map(|page| ends(&read(&faults, page))).collect();
        assert_eq!(read, [7, 5, 5, 7], "{kind:?}");
    }
}

#[test]
fn what_was_received_and_is_absent_is_zero_and_nobody_is_asked() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, arrivals, asked)) = served(kind) else {
            return;
        };
        arrivals.land(0, 0, &[5; 2 * PAGE], |_| {}).unwrap();
        let advice = match kind {
            Backing::Anonymous => Advice::DontNeed,
            _ => Advice::Remove,
        };
        faults
            .block(0)
            .mapping()
            .unwrap()
            .advise(0, PAGE, advice)
            .unwrap();
        assert_eq!(ends(&read(&faults, 0)), 0, "{kind:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "{kind:?}");
        // All else is asked for.
        assert_eq!(ends(&read(&faults, 7)), 0);
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{kind:?}");
    }
}

#[test]
fn what_is_given_back_before_it_comes_stays_zero() {
    let _alone = alone();
    for (kind, comes) in [(Backing::Anonymous, 0), (Backing::Memfd, 5)] {
        let Some((faults, arrivals, _)) = served(kind) else {
            return;
        };
        arrivals.given_back(0, 2..4, |_| {});
        arrivals.land(0, 0, &[5; 8 * PAGE], |_| {}).unwrap();
        let read: Vec<_> = (1..5).map(|page| ends(&read(&faults, page))).collect();
        assert_eq!(read, [5, comes, comes, 5], "{kind:?}");
    }
}

#[test]
fn nothing_is_registered_behind_the_end() {
    let _alone = alone();
    let Some((faults, arrivals, asked)) = served(Backing::Anonymous) else {
        return;
    };
    arrivals.end(&faults);
    assert!(!faults.is_registered(0, Use::Missing));
    assert_eq!(ends(&read(&faults, 1)), 0);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // What comes to a machine that is gone is nobody's.
    drop(faults);
    arrivals.land(0, 0, &[5; PAGE], |_| {}).unwrap();
}

#[test]
fn huge_pages_that_come_together_land_one_by_one() {
    let _alone = alone();
    let Some(_pool) = HugePages::take(2) else {
        return;
    };
    let Some(host) = host() else { return };
    let block = RamBlock::new(BlockConfig {
        id: "ram".into(),
        guest_address: 0,
        bytes: 4 << 20,
        backing: Backing::Memfd,
        pages: PageKind::Huge,
    });
    let ram = GuestRam::new(vec![block.unwrap()]);
    let faults = Faults::open(&host, ram.clone(), 1).unwrap();
    let arrivals = Arc::new(Arrivals::new(ram.spans().clone()));
    let handler = Arc::new(Does(|_: &Faults, at| panic!("{at:?} is wanted")));
    arrivals.serve(&faults, handler.clone()).unwrap();
    arrivals.land(0, 0, &[5; 2 << 20], |_| {}).unwrap();
    let mut noted = 0..0;
    arrivals
        .land(0, 0, &[6; 4 << 20], |pages| noted = pages)
        .unwrap();
    assert_eq!(noted, 512..1024);
    let mapping = ram.blocks()[0].mapping();
    assert!(mapping.is_equal(0, &[5; PAGE]) && mapping.is_equal(2 << 20, &[6; PAGE]));
    // Nor is it served by two.
    let twice = arrivals.serve(&faults, handler);
    assert!(matches!(twice, Err(FaultsError::Served)));
}
