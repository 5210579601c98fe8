//! What a page is after it was placed: the table of what the kernel does, and what is made of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_faults::{Faults, Outcome, Use};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::{Features, RegisterMode, UffdError};

use crate::common::*;

const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

/// Eight absent pages, registered for both, armed.
fn armed(backing: Backing) -> Option<(Arc<Faults>, Arc<Catcher>)> {
    let faults = faults(8, backing, 1)?;
    let catcher = Arc::new(Catcher::default());
    faults.register(0, Use::Missing).unwrap();
    faults.register(0, Use::WriteProtect).unwrap();
    faults.barrier().protected = Some(catcher.clone());
    faults.protect(0, 0..8).unwrap();
    Some((faults, catcher))
}

/// Whether a write to a page is caught.
fn is_caught(faults: &Arc<Faults>, catcher: &Catcher, page: usize) -> bool {
    let before = catcher.caught.load(Ordering::SeqCst);
    ends(&write(faults, page, 9));
    catcher.caught.load(Ordering::SeqCst) > before
}

#[test]
fn what_is_placed_while_protecting_is_caught_at_its_first_write() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, catcher)) = armed(kind) else {
            return;
        };
        faults.protect_placements();
        assert_eq!(faults.place(0, 0, &[5; 2 * PAGE]).unwrap(), Outcome::There);
        assert_eq!(faults.place_zeros(0, 2..4).unwrap(), Outcome::There);
        for page in 0..4 {
            assert!(is_caught(&faults, &catcher, page), "{kind:?} {page}");
            let rest = [if page < 2 { 5 } else { 0 }; PAGE - 1];
            assert!(
                faults
                    .block(0)
                    .mapping()
                    .unwrap()
                    .is_equal(page * PAGE + 1, &rest)
            );
        }
    }
}

/// Not what one would wish, but what the kernel does: if this changes, so may the engine.
#[test]
fn what_is_placed_freely_on_an_armed_page_is_written_unseen() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, catcher)) = armed(kind) else {
            return;
        };
        assert_eq!(faults.place(0, 0, &[5; PAGE]).unwrap(), Outcome::There);
        assert!(!is_caught(&faults, &catcher, 0), "{kind:?}");
        let addr = faults.block(0).mapping().unwrap().addr() + PAGE;
        let zeroed = faults.uffd().zero(addr..addr + PAGE);
        match kind {
            // Nothing was placed, and nobody was woken; unless the kernel never protected it.
            Backing::Anonymous if faults.uffd().features().contains(Features::WP_UNPOPULATED) => {
                assert_eq!(zeroed.answer, Err(UffdError::Exists));
            }
            Backing::Anonymous => assert!(zeroed.answer.is_ok()),
            _ => assert!(zeroed.answer.is_ok() && !is_caught(&faults, &catcher, 1)),
        }
    }
}

#[test]
fn zeros_are_placed_on_armed_absent_pages_too() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, _)) = armed(kind) else {
            return;
        };
        // Somebody is there: zeros between him and the end, then nothing.
        faults.place(0, 3, &[5; PAGE]).unwrap();
        faults.barrier().missing =
            Some(Arc::new(Does(|_: &Faults, at| panic!("{at:?} is absent"))));
        assert_eq!(faults.place_zeros(0, 0..8).unwrap(), Outcome::There);
        let read: Vec<_> = (0..8).map(|page| ends(&read(&faults, page))).collect();
        assert_eq!(read, [0, 0, 0, 5, 0, 0, 0, 0], "{kind:?}");
    }
}

#[test]
fn who_comes_late_loses_and_wakes() {
    let _alone = alone();
    for kind in KINDS {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        faults.register(0, Use::Missing).unwrap();
        faults.place(0, 1, &[1; PAGE]).unwrap();
        ends(&write(&faults, 1, 9));
        for protecting in [false, true] {
            if protecting {
                faults.protect_placements();
            }
            assert_eq!(faults.place(0, 0, &[2; 3 * PAGE]).unwrap(), Outcome::There);
            assert_eq!(faults.place_zeros(0, 0..3).unwrap(), Outcome::There);
        }
        let read: Vec<_> = (0..3).map(|page| ends(&read(&faults, page))).collect();
        assert_eq!(read, [2, 9, 2], "{kind:?}");
    }
}

#[test]
fn a_page_that_exists_already_wakes_its_waiter() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let ram = GuestRam::new(vec![block("ram", 8, Backing::Memfd)]);
    let faults = Faults::open(&host, ram.clone(), 1).unwrap();
    let (heard, asked) = std::sync::mpsc::channel();
    faults.register(0, Use::Missing).unwrap();
    // Takes the fault and does nothing.
    let deaf = Does(move |_: &Faults, at: paguro_ram::Located| heard.send(at.page).unwrap());
    faults.barrier().missing = Some(Arc::new(deaf));
    let reader = read(&faults, 4);
    assert_eq!(ends(&asked), 4);
    // Somebody else fills the file, which wakes nobody.
    let file = ram.blocks()[0].file().unwrap();
    rustix::io::pwrite(file, &[7; PAGE], 4 * PAGE as u64).unwrap();
    assert!(reader.try_recv().is_err());
    assert_eq!(faults.place(0, 4, &[1; PAGE]).unwrap(), Outcome::There);
    assert_eq!(ends(&reader), 7);
}

#[test]
fn an_answer_that_the_host_refuses_is_given_again() {
    let _alone = alone();
    for kind in KINDS {
        let Some((faults, _)) = armed(kind) else {
            return;
        };
        faults.protect_placements();
        // The kernel places nothing protected where nothing can be: a refusal like any other.
        let range = faults.block(0).addresses_of(&(0..8));
        faults.uffd().unregister(range.clone()).unwrap();
        let register = |mode| faults.uffd().register(range.clone(), mode).unwrap();
        register(RegisterMode::Missing);
        let reader = read(&faults, 4);
        let asked = faults.clone();
        ends(&run(move || {
            while asked.failed_answers() < 3 {
                std::thread::yield_now();
            }
        }));
        assert!(reader.try_recv().is_err(), "{kind:?}");
        register(RegisterMode::Both);
        assert_eq!(ends(&reader), 0, "{kind:?}");
    }
}

#[test]
fn huge_pages_are_placed_whole() {
    let _alone = alone();
    let (Some(host), Some(_huge_pages)) = (host(), HugePages::take(2)) else {
        return;
    };
    let block = RamBlock::new(BlockConfig {
        id: "huge".into(),
        guest_address: 0,
        bytes: 4 << 20,
        backing: Backing::Memfd,
        pages: PageKind::Huge,
    });
    let ram = GuestRam::new(vec![block.unwrap()]);
    let faults = Faults::open(&host, ram, 1).unwrap();
    faults.register(0, Use::Missing).unwrap();
    faults.register(0, Use::WriteProtect).unwrap();
    faults.protect_placements();
    faults.place(0, 0, &vec![3; 2 << 20]).unwrap();
    faults.place_zeros(0, 512..1024).unwrap();
    let pages = [0, 511, 512, 1023].map(|page| ends(&read(&faults, page)));
    assert_eq!(pages, [3, 3, 0, 0]);
    // The kernel protects and releases 2 MiB or nothing.
    let caught = Arc::new(AtomicUsize::new(0));
    let count = caught.clone();
    faults.barrier().protected = Some(Arc::new(Does(move |faults: &Faults, at| {
        count.fetch_add(1, Ordering::SeqCst);
        faults.release(0, faults.unit_of(at)).unwrap();
    })));
    for page in [5, 6, 600, 1023] {
        ends(&write(&faults, page, 1));
    }
    assert_eq!(caught.load(Ordering::SeqCst), 2);
}
