//! Mappings that change under a placement: the page is dropped, the waiter is not.

use std::ops::Range;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use paguro_faults::{Faults, MissingHandler, Outcome, Use};
use paguro_ram::{Backing, Located, Span, Spans};
use paguro_sys::{Advice, RegisterMode};
use paguro_testkit::wait_until;
use rustix::mm::{MapFlags, ProtFlags};

use crate::common::*;

/// Maps fresh memory, which nobody has registered, over pages of the block.
fn map_over(faults: &Faults, pages: Range<usize>) {
    let mapping = faults.block(0).mapping().unwrap();
    let range = mapping.range(pages.start * PAGE, pages.len() * PAGE);
    let (access, flags) = (
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::FIXED,
    );
    // SAFETY: replaces pages of a mapping that is reached by raw copies only.
    let at =
        unsafe { rustix::mm::mmap_anonymous(range.start as *mut _, range.len(), access, flags) };
    assert_eq!(at.unwrap() as usize, range.start);
}

#[test]
fn a_waiter_whose_mapping_changed_is_woken_without_an_error() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        let (heard, asked) = channel();
        faults.register(0, Use::Missing).unwrap();
        faults.barrier().missing = Some(Arc::new(Does(move |_: &Faults, at: Located| {
            heard.send(at.page).unwrap();
        })));
        for zeros in [false, true] {
            let page = 4 + usize::from(zeros);
            let waiter = read(&faults, page);
            assert_eq!(ends(&asked), page);
            map_over(&faults, page..page + 1);
            assert!(waiter.try_recv().is_err(), "mapping over it wakes nobody");
            let outcome = if zeros {
                faults.place_zeros(0, page..page + 1)
            } else {
                faults.place(0, page, &[5; PAGE])
            };
            assert_eq!(outcome.unwrap(), Outcome::MappingChanged);
            assert_eq!(ends(&waiter), 0, "{kind:?}");
        }
    }
}

#[test]
fn around_a_hole_everything_is_placed() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        faults.register(0, Use::Missing).unwrap();
        map_over(&faults, 3..5);
        let content: Vec<u8> = (0..8 * PAGE).map(|at| (at / PAGE) as u8 + 1).collect();
        let outcome = faults.place(0, 0, &content).unwrap();
        assert_eq!(outcome, Outcome::MappingChanged);
        let read: Vec<_> = (0..8).map(|page| ends(&read(&faults, page))).collect();
        assert_eq!(read, [1, 2, 3, 0, 0, 6, 7, 8], "{kind:?}");
    }
}

#[test]
fn a_range_in_two_mappings_is_placed_whole() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        // An advice for a part: the kernel cuts the mapping in three.
        let mapping = faults.block(0).mapping().unwrap();
        mapping.advise(3 * PAGE, PAGE, Advice::Huge).unwrap();
        faults.register(0, Use::Missing).unwrap();
        let outcome = faults.place(0, 0, &[9; 8 * PAGE]).unwrap();
        assert_eq!(outcome, Outcome::There, "{kind:?}");
        faults.barrier().missing =
            Some(Arc::new(Does(|_: &Faults, at| panic!("{at:?} is absent"))));
        assert!(ends(&run(move || faults
            .block(0)
            .mapping()
            .unwrap()
            .is_equal(0, &[9; 8 * PAGE]))));
    }
}

#[test]
fn releasing_what_lost_its_registration_wakes_the_writer() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 1) else {
        return;
    };
    let (heard, asked) = channel();
    faults.register(0, Use::WriteProtect).unwrap();
    ends(&write(&faults, 2, 1));
    faults.protect(0, 0..8).unwrap();
    faults.barrier().protected = Some(Arc::new(Does(move |_: &Faults, at: Located| {
        heard.send(at.page).unwrap();
    })));
    let writer = write(&faults, 2, 5);
    assert_eq!(ends(&asked), 2);
    map_over(&faults, 2..3);
    faults.release(0, 2..3).unwrap();
    ends(&writer);
    assert_eq!(ends(&read(&faults, 2)), 5);
}

/// What is given back, block by block.
#[derive(Default)]
struct Given(Mutex<Vec<(usize, Range<usize>)>>);

impl MissingHandler for Given {
    fn missing(&self, faults: &Faults, at: Located) {
        faults.answer_with_zeros(at);
    }

    fn removed(&self, _: &Faults, block: usize, pages: Range<usize>) {
        self.0.lock().unwrap().push((block, pages));
    }

    fn broken(&self, _: &Faults, at: Located) {
        panic!("nothing panics over {at:?}");
    }
}

/// Of a mapping of eight pages two spans are RAM; what is given back begins before both.
#[test]
fn what_is_given_back_counts_in_every_span_that_it_is_in() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let theirs = block("ram", 8, Backing::Anonymous);
    let (uffd, start) = (host.open_uffd().unwrap(), theirs.mapping().addr());
    uffd.register(start..start + 8 * PAGE, RegisterMode::Missing)
        .unwrap();
    let span = |id, first: usize, pages: usize| {
        let at = start + first * PAGE;
        Span::elsewhere(id, at, pages * PAGE, 1, Backing::Anonymous).unwrap()
    };
    let spans = Spans::elsewhere(vec![span("low", 2, 2), span("high", 4, 4)]).unwrap();
    let faults = Faults::adopt(uffd, spans, 1).unwrap();
    let given = Arc::new(Given::default());
    faults.barrier().missing = Some(given.clone());
    faults.listen().unwrap();
    theirs
        .mapping()
        .advise(0, 6 * PAGE, Advice::DontNeed)
        .unwrap();
    // The call returns when its event is read, which is a moment before it is told.
    wait_until("it is told", || given.0.lock().unwrap().len() == 2);
    assert_eq!(*given.0.lock().unwrap(), [(0, 0..2), (1, 0..2)]);
}
