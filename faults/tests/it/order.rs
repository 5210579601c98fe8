//! The gate, and what nobody may wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use paguro_faults::{Faults, Use};
use paguro_ram::{Backing, Located};
use paguro_sys::Advice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::common::*;

/// Gives pages back in a thread of its own.
fn give_back(faults: &Faults, page: usize) -> Receiver<()> {
    let mapping = faults.block(0).mapping().unwrap().clone();
    run(move || mapping.advise(page * PAGE, PAGE, Advice::DontNeed).unwrap())
}

/// The same, and returns once the kernel has an event about it that nobody has read. Only behind a
/// barrier: a reader that is quicker would leave nothing to be seen.
fn give_back_unread(faults: &Faults, page: usize) -> Receiver<()> {
    let giver = give_back(faults, page);
    unread(faults);
    giver
}

/// Waits until there is an event that nobody has read.
#[track_caller]
fn unread(faults: &Faults) {
    let mut fds = [PollFd::new(faults.uffd(), PollFlags::IN)];
    let in_vain = Timespec::try_from(IN_VAIN).unwrap();
    let found = poll(&mut fds, Some(&in_vain)).unwrap();
    assert!(found > 0, "no event is left to be read");
}

#[test]
fn a_barrier_waits_for_the_event_in_hand() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 2) else {
        return;
    };
    let (heard, asked) = channel();
    let (go_on, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let answered = Arc::new(AtomicBool::new(false));
    let done = answered.clone();
    faults.register(0, Use::WriteProtect).unwrap();
    faults.barrier().protected = Some(Arc::new(Does(move |faults: &Faults, at: Located| {
        heard.send(()).unwrap();
        ends(&wait.lock().unwrap());
        faults.release(0, at.page..at.page + 1).unwrap();
        done.store(true, Ordering::SeqCst);
    })));
    ends(&write(&faults, 0, 1));
    faults.protect(0, 0..8).unwrap();
    let writer = write(&faults, 0, 2);
    ends(&asked);
    let barrier = {
        let (faults, answered) = (faults.clone(), answered.clone());
        run(move || {
            let _barrier = faults.barrier();
            answered.load(Ordering::SeqCst)
        })
    };
    for _ in 0..10_000 {
        assert!(barrier.try_recv().is_err(), "reached with an event in hand");
        std::thread::yield_now();
    }
    go_on.send(()).unwrap();
    assert!(
        ends(&barrier),
        "the barrier was reached with an event in hand"
    );
    ends(&writer);
}

#[test]
fn behind_a_barrier_nothing_is_answered() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 2) else {
        return;
    };
    let catcher = Arc::new(Catcher::default());
    faults.register(0, Use::WriteProtect).unwrap();
    ends(&write(&faults, 0, 1));
    faults.protect(0, 0..8).unwrap();
    let mut barrier = faults.barrier();
    barrier.protected = Some(catcher.clone());
    let writer = write(&faults, 0, 2);
    // Its event is there, and stays there.
    unread(&faults);
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert!(catcher.caught.load(Ordering::SeqCst) == 0 && writer.try_recv().is_err());
    drop(barrier);
    ends(&writer);
    assert_eq!(catcher.caught.load(Ordering::SeqCst), 1);
}

#[test]
fn the_only_reader_is_not_stopped_by_an_event_that_he_alone_could_read() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        let (givers, gave) = channel();
        faults.register(0, Use::WriteProtect).unwrap();
        (0..8).for_each(|page| ends(&write(&faults, page, 1)));
        faults.protect(0, 0..8).unwrap();
        faults.barrier().protected = Some(Arc::new(Does(move |faults: &Faults, at: Located| {
            // Until this event is read, the kernel refuses to release anything.
            givers.send(give_back_unread(faults, 7)).unwrap();
            faults.release(0, at.page..at.page + 1).unwrap();
        })));
        let writer = write(&faults, 0, 2);
        let giver = ends(&gave);
        ends(&giver);
        ends(&writer);
        // And he still reads.
        let writer = write(&faults, 1, 2);
        ends(&ends(&gave));
        ends(&writer);
    }
}

#[test]
fn who_holds_a_barrier_is_not_stopped_by_an_event_that_he_keeps_from_being_read() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 2) else {
        return;
    };
    let catcher = Arc::new(Catcher::default());
    faults.register(0, Use::WriteProtect).unwrap();
    faults.register(0, Use::Missing).unwrap();
    faults.barrier().protected = Some(catcher.clone());
    let armed = {
        let faults = faults.clone();
        run(move || {
            let _barrier = faults.barrier();
            let giver = give_back_unread(&faults, 7);
            faults.protect(0, 0..8).unwrap();
            ends(&giver);
            let giver = give_back_unread(&faults, 6);
            faults.place(0, 0, &[5; PAGE]).unwrap();
            giver
        })
    };
    ends(&ends(&armed));
    // What was read for him is told to the handler all the same.
    let told = run(move || {
        loop {
            let mut removed = catcher.removed.lock().unwrap().clone();
            removed.sort_by_key(|pages| pages.start);
            if removed.len() == 2 {
                break removed;
            }
            std::thread::yield_now();
        }
    });
    assert_eq!(ends(&told), [6..7, 7..8]);
}

#[test]
fn closing_wakes_everybody() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 2) else {
        return;
    };
    let mapping = faults.block(0).mapping().unwrap().clone();
    let (heard, asked) = channel();
    faults.register(0, Use::Missing).unwrap();
    faults.barrier().missing = Some(Arc::new(Does(move |_: &Faults, at: Located| {
        heard.send(at.page).unwrap();
    })));
    let readers: Vec<_> = (0..3)
        .map(|page| {
            let mapping = mapping.clone();
            run(move || mapping.is_zero(page * PAGE, PAGE))
        })
        .collect();
    readers.iter().for_each(|_| {
        ends(&asked);
    });
    drop(faults);
    assert!(readers.iter().all(ends));
}

/// Panics over every fault, and then lets go.
#[derive(Default)]
struct Panics {
    broken: std::sync::atomic::AtomicUsize,
}

impl paguro_faults::ProtectedHandler for Panics {
    fn protected(&self, _: &Faults, at: Located) {
        panic!("over {at:?}, as it should");
    }

    fn removed(&self, _: usize, pages: std::ops::Range<usize>) {
        panic!("over {pages:?}, as it should");
    }

    fn broken(&self, faults: &Faults, at: Located) {
        faults.release(at.block, at.page..at.page + 1).unwrap();
        self.broken.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_handler_that_panics_is_told_and_the_reader_goes_on() {
    let _alone = alone();
    let Some(faults) = faults(8, Backing::Anonymous, 1) else {
        return;
    };
    let panics = Arc::new(Panics::default());
    faults.register(0, Use::WriteProtect).unwrap();
    faults.barrier().protected = Some(panics.clone());
    (0..8).for_each(|page| ends(&write(&faults, page, 1)));
    faults.protect(0, 0..8).unwrap();
    for page in 0..4 {
        ends(&write(&faults, page, 2));
    }
    ends(&give_back(&faults, 6));
    ends(&write(&faults, 7, 2));
    drop(faults.barrier());
    assert_eq!(panics.broken.load(Ordering::SeqCst), 6);
}
