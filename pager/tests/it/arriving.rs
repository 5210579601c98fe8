//! Pages that come, in whatever order.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::time::Duration;

use paguro_faults::{Supply, Use};
use paguro_pager::Prefetch;
use paguro_ram::{Backing, PageKind};
use paguro_sys::Advice;

use crate::rig::*;

const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

#[test]
fn every_page_arrives_once_and_right_while_many_ask() {
    let _alone = alone();
    for kind in KINDS {
        // Not a multiple of anything; some pages the source does not have.
        let source = Source::new(1613, (0..1613).filter(|page| page % 5 != 2));
        let Some(rig) = Rig::start(1613, kind, &source, Prefetch::Unlimited) else {
            return;
        };
        let readers: Vec<_> = (0..4)
            .map(|index: usize| {
                let mapping = rig.faults.block(0).mapping().unwrap().clone();
                run(move || {
                    (0..1613usize)
                        .map(|step| {
                            let page = (step * 1009 + index * 401) % 1613;
                            let expect = if page % 5 == 2 { 0 } else { content(page) };
                            usize::from(!mapping.is_equal(page * PAGE, &[expect; PAGE]))
                        })
                        .sum::<usize>()
                })
            })
            .collect();
        assert_eq!(readers.iter().map(ends).sum::<usize>(), 0, "{kind:?}");
        assert!(rig.pager.wait_done(Duration::from_secs(30)));
        assert_eq!(rig.pager.left_pages(), 0);
        assert_eq!(rig.pager.arrivals().received(0).count(), source.has.count());
        // Nothing is registered any more: what is given back is simply zero.
        assert!(!rig.faults.is_registered(0, Use::Missing));
    }
}

#[test]
fn ram_that_is_being_filled_stays_in_one_piece() {
    const PAGES: usize = 64 * 512;
    let _alone = alone();
    for kind in KINDS {
        // Here and there, so that nothing that is done for what came can be done for all at once.
        let source = Source::new(PAGES, (0..PAGES).filter(|page| page / 512 % 2 == 0));
        let Some(rig) = Rig::start(PAGES, kind, &source, Prefetch::Unlimited) else {
            return;
        };
        let pieces = || mappings(rig.faults.block(0).addresses_of(&(0..PAGES)));
        wait_until("all pages", || {
            // What is registered still, and what is not any more. Where they meet moves while it is
            // read, which may show it twice.
            let now = pieces();
            assert!(now <= 4, "{kind:?}: {now}");
            rig.pager.is_done()
        });
        assert_eq!(pieces(), 1, "{kind:?}");
    }
}

#[test]
fn without_prefetch_comes_what_is_wanted_and_its_neighbours() {
    let _alone = alone();
    for kind in KINDS {
        let source = Source::new(1000, 0..1000);
        let Some(rig) = Rig::start(1000, kind, &source, Prefetch::Off) else {
            return;
        };
        assert_eq!(ends(&rig.read(500)), content(500));
        assert_eq!(ends(&rig.read(999)), content(999));
        let mut read = source.reads.lock().unwrap().clone();
        read.sort_unstable();
        assert_eq!(read, (496..512).chain(992..1000).collect::<Vec<_>>());
        // Counted a moment after they were placed.
        let pager = rig.pager.clone();
        until(move || pager.left_pages() == 1000 - 24 && pager.faults_served() == 2);
        assert!(!rig.pager.is_done());
        // The last one ends it, however late it is wanted.
        for page in (0..1000).step_by(16) {
            assert_eq!(ends(&rig.read(page)), content(page));
        }
        assert!(rig.pager.wait_done(Duration::from_secs(30)));
        assert_eq!(source.most_reads(), 1);
    }
}

#[test]
fn a_page_that_the_guest_wrote_first_stays_as_he_wrote_it() {
    let _alone = alone();
    for kind in KINDS {
        // The guest writes where the source has nothing, so the zeros come first; then where it
        // has something, so the page comes first. Nothing that comes later changes either.
        let source = Source::new(600, (0..600).filter(|page| page % 2 == 0));
        let Some(rig) = Rig::start(600, kind, &source, Prefetch::Off) else {
            return;
        };
        for page in 100..120 {
            ends(&rig.write(page, 250));
            // All that is fetched along with it; meanwhile the next one would be fetched twice.
            let (pager, around) = (rig.pager.clone(), page / 16 * 16..page / 16 * 16 + 16);
            until(move || {
                let arrived = pager.arrivals().received(0);
                let mut even = around.clone().filter(|page| page % 2 == 0);
                even.all(|page| arrived.contains(page))
            });
        }
        // What is placed late, by whoever it may be, loses.
        rig.faults.place(0, 90, &[9; 40 * PAGE]).unwrap();
        for page in 100..120 {
            assert_eq!(ends(&rig.read(page)), 250, "{kind:?} {page}");
        }
        assert_eq!(source.most_reads(), 1);
    }
}

#[test]
fn what_came_and_was_given_back_is_zero_and_is_not_asked_for_again() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let Some(rig) = Rig::start(600, Backing::Anonymous, &source, Prefetch::Off) else {
        return;
    };
    assert_eq!(ends(&rig.read(100)), content(100));
    let asked = source.asked.load(SeqCst);
    let mapping = rig.faults.block(0).mapping().unwrap();
    mapping
        .advise(100 * PAGE, 2 * PAGE, Advice::DontNeed)
        .unwrap();
    assert_eq!(ends(&rig.read(100)), 0);
    ends(&rig.write(101, 5));
    assert_eq!(ends(&rig.read(101)), 5);
    assert_eq!(source.asked.load(SeqCst), asked);
}

#[test]
fn what_was_given_back_before_it_came_is_zero() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let Some(rig) = Rig::start(600, Backing::Anonymous, &source, Prefetch::Off) else {
        return;
    };
    let mapping = rig.faults.block(0).mapping().unwrap();
    mapping
        .advise(300 * PAGE, 10 * PAGE, Advice::DontNeed)
        .unwrap();
    // Noted by the reader of the event, which is read before the call returns.
    let pager = rig.pager.clone();
    until(move || pager.left_pages() == 590);
    assert_eq!(ends(&rig.read(299)), content(299));
    for page in [300, 305, 309] {
        assert_eq!(ends(&rig.read(page)), 0, "old content came back");
    }
    assert_eq!(ends(&rig.read(310)), content(310));
    assert!(!(300..310).any(|page| source.was_read(page)));
}

#[test]
fn what_is_given_back_while_it_is_read_is_zero() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let Some(rig) = Rig::start(600, Backing::Anonymous, &source, Prefetch::Off) else {
        return;
    };
    let slow = source.slow.lock().unwrap();
    let (waited_for, given_back) = (rig.read(300), rig.read(291));
    let (asked, pager) = (source.clone(), rig.pager.clone());
    until(move || asked.asked.load(SeqCst) > 0);
    let mapping = rig.faults.block(0).mapping().unwrap();
    mapping
        .advise(290 * PAGE, 3 * PAGE, Advice::DontNeed)
        .unwrap();
    // Noted by the reader of the event, which is read before the call returns.
    until(move || pager.left_pages() == 597);
    drop(slow);
    assert_eq!(ends(&waited_for), content(300));
    assert_eq!(ends(&given_back), 0, "old content came back");
    for page in 290..293 {
        assert_eq!(ends(&rig.read(page)), 0, "old content came back");
    }
    for page in [289, 293] {
        assert_eq!(ends(&rig.read(page)), content(page));
    }
}

/// The guest has it by then, and writes it.
#[test]
fn whoever_settles_waits_for_what_is_placed_and_not_counted() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let Some(rig) = Rig::start(600, Backing::Anonymous, &source, Prefetch::Off) else {
        return;
    };
    let counting = source.counting.lock().unwrap();
    assert_eq!(ends(&rig.read(100)), content(100));
    let counts = source.clone();
    until(move || counts.counts.load(SeqCst) > 0);
    let (begins, has_begun) = channel();
    let (pager, is_settled) = (rig.pager.clone(), Arc::new(AtomicBool::new(false)));
    let settled = is_settled.clone();
    let settler = run(move || {
        begins.send(rustix::thread::gettid()).unwrap();
        pager.arrivals().settle();
        settled.store(true, SeqCst);
    });
    // Until he sleeps, in whatever lock, or does not wait.
    let thread = ends(&has_begun);
    let (path, settled) = (
        format!("/proc/self/task/{}/stat", thread.as_raw_nonzero()),
        is_settled.clone(),
    );
    until(move || {
        let sleeps = || std::fs::read_to_string(&path).is_ok_and(|stat| stat.contains(") S "));
        settled.load(SeqCst) || sleeps()
    });
    assert!(!is_settled.load(SeqCst), "nobody waited");
    drop(counting);
    ends(&settler);
    assert!(rig.pager.arrivals().received(0).contains(100));
}

#[test]
fn shared_memory_that_is_let_go_of_before_it_came_still_comes() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let Some(rig) = Rig::start(600, Backing::Memfd, &source, Prefetch::Off) else {
        return;
    };
    // This drops what is mapped here, not what is in the file.
    let mapping = rig.faults.block(0).mapping().unwrap();
    mapping
        .advise(300 * PAGE, 10 * PAGE, Advice::DontNeed)
        .unwrap();
    assert_eq!(ends(&rig.read(305)), content(305));
}

#[test]
fn a_slow_prefetch_does_not_slow_down_who_waits() {
    let _alone = alone();
    let source = Source::new(4096, 0..4096);
    let Some(rig) = Rig::start(4096, Backing::Anonymous, &source, Prefetch::Limited(1)) else {
        return;
    };
    for page in (0..4096).step_by(300).rev() {
        assert_eq!(ends(&rig.read(page)), content(page));
    }
    // One stride, and then nothing for days.
    assert!(rig.pager.left_pages() > 3000);
    assert!(!rig.pager.wait_done(Duration::ZERO));
}

#[test]
fn a_pager_whose_memory_is_gone_ends_however_slow_it_was_to_be() {
    let _alone = alone();
    for prefetch in [Prefetch::Off, Prefetch::Limited(1)] {
        let source = Source::new(4096, 0..4096);
        let Some(rig) = Rig::start(4096, Backing::Anonymous, &source, prefetch) else {
            return;
        };
        assert_eq!(ends(&rig.read(4000)), content(4000));
        // Not stopped: forgotten.
        let alive = Arc::downgrade(&source);
        let Rig { faults, pager } = rig;
        drop((faults, pager, source));
        until(move || alive.strong_count() == 0);
    }
}

#[test]
fn a_block_that_is_longer_than_the_sources_is_zero_behind_it() {
    let _alone = alone();
    for kind in KINDS {
        let source = Source::new(605, 0..605);
        let Some(rig) = Rig::start(1000, kind, &source, Prefetch::Off) else {
            return;
        };
        assert_eq!(ends(&rig.read(606)), 0, "{kind:?}");
        assert_eq!(ends(&rig.read(604)), content(604));
        assert_eq!(ends(&rig.read(999)), 0);
        ends(&rig.write(700, 1));
    }
}

#[test]
fn huge_pages_arrive_whole_with_zeros_between() {
    let _alone = alone();
    // For both kinds: threads that end may keep the first a moment longer.
    let Some(_huge_pages) = HugePages::take(8) else {
        return;
    };
    for kind in KINDS {
        let has = (0..4 * 512).filter(|page| page / 512 != 2 && page % 3 == 0);
        let source = Source::new(4 * 512, has);
        let block = block(4 * 512, kind, PageKind::Huge);
        let failure = Box::new(|error: &_| panic!("{error}"));
        let Some(rig) = Rig::of(block, &source, Prefetch::Off, failure) else {
            return;
        };
        let expect = |page: usize| match page {
            _ if page / 512 == 2 || !page.is_multiple_of(3) => 0,
            _ => content(page),
        };
        for page in [1026, 3, 4, 1000, 1200, 1700, 1701] {
            assert_eq!(ends(&rig.read(page)), expect(page), "{kind:?} {page}");
        }
        assert!(rig.pager.wait_done(Duration::from_secs(30)));
        assert_eq!(source.most_reads(), 1);
    }
}
