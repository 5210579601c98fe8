//! A process may have only so many mappings, and a block in pieces is as many.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use paguro_faults::{Faults, Use};
use paguro_ram::{Backing, GuestRam};
use paguro_sys::{Fallbacks, Mapping};

use crate::common::*;

const PAGES: usize = 256;

/// The owner of two blocks, where there may be few mappings; all that exists was written.
fn few(backing: Backing) -> Option<Arc<Faults>> {
    let forced = Fallbacks {
        few_mappings: true,
        ..Fallbacks::default()
    };
    let blocks = ["one", "two"].map(|id| block(id, PAGES, backing));
    let faults = Faults::open(&host_with(&forced)?, GuestRam::new(blocks.into()), 1).unwrap();
    for span in faults.spans().all() {
        let mapping = span.mapping().unwrap();
        (0..PAGES).for_each(|page| mapping.copy_in(page * PAGE, &[1]));
    }
    Some(faults)
}

fn pieces(faults: &Faults) -> usize {
    let spans = faults.spans().all().iter();
    let ranges = spans.map(|span| span.addresses_of(&(0..PAGES)));
    ranges.map(mappings).sum()
}

#[test]
fn a_block_in_pieces_takes_a_share_of_the_mappings_only() {
    let _alone = alone();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let Some(faults) = few(backing) else { return };
        let most = host_with(&Fallbacks {
            few_mappings: true,
            ..Fallbacks::default()
        });
        let share = most.unwrap().most_mappings() / 4;
        for round in 0..2 {
            for block in 0..2 {
                faults.register(block, Use::WriteProtect).unwrap();
                faults.protect(block, 0..PAGES).unwrap();
            }
            let whole = pieces(&faults);
            // Every other page, from both ends, as scans and faults do.
            let mut kept = Vec::new();
            for step in (0..PAGES / 4).flat_map(|step| [2 * step, PAGES - 2 - 2 * step]) {
                for block in 0..2 {
                    let page = step..step + 1;
                    let gone = faults
                        .unregister_part(block, Use::WriteProtect, page.clone())
                        .unwrap();
                    if !gone {
                        faults.release(block, page.clone()).unwrap();
                        kept.push((block, page));
                    }
                    let now = pieces(&faults);
                    assert!(
                        now <= whole + share,
                        "{backing:?} {round}: {now} of {whole}"
                    );
                }
            }
            assert!(!kept.is_empty(), "nothing came to its limit");
            // Those that only make a piece larger cost nothing and go all the same.
            for page in 1..8 {
                let joined = faults.unregister_part(0, Use::WriteProtect, page..page + 1);
                assert!(joined.unwrap(), "{backing:?} {page}");
            }
            assert!(pieces(&faults) <= whole + share);
            // The end, in steps, makes one piece of it, and not more of them meanwhile.
            for block in 0..2 {
                let parts: Vec<_> = (0..PAGES).map(|page| page..page + 1).collect();
                faults
                    .unregister(block, Use::WriteProtect, &parts, || {
                        assert!(pieces(&faults) <= whole + share);
                    })
                    .unwrap();
            }
            assert_eq!(pieces(&faults), whole, "{backing:?} {round}");
            (0..PAGES).for_each(|page| ends(&write(&faults, page, 2)));
        }
    }
}

#[test]
fn a_process_without_mappings_is_let_go_all_the_same() {
    // What fills a process with mappings would fail the tests beside it.
    let test = "pieces::in_a_process_of_its_own";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    print!("{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"));
}

#[test]
#[ignore = "fills its process with mappings: another test starts one for it"]
fn in_a_process_of_its_own() {
    let Some(faults) = faults(PAGES, Backing::Anonymous, 1) else {
        return;
    };
    let catcher = Arc::new(Catcher::default());
    faults.barrier().protected = Some(catcher.clone());
    (0..PAGES).for_each(|page| ends(&write(&faults, page, 1)));
    faults.register(0, Use::WriteProtect).unwrap();
    faults.protect(0, 0..PAGES).unwrap();
    let whole = pieces(&faults);
    let writer = write(&faults, 100, 2);
    ends(&writer);
    assert_eq!(catcher.caught.load(Ordering::SeqCst), 1);
    let most = Mapping::anonymous(1 << 40, false);
    let _full = fill(most.unwrap());
    // Ahead of the rest: it stays, and says so.
    let part = faults.unregister_part(0, Use::WriteProtect, 7..8);
    assert!(!part.unwrap());
    assert_eq!(pieces(&faults), whole);
    // The end: in steps it cannot be, so it is at once.
    let parts = [0..64, 64..PAGES];
    faults
        .unregister(0, Use::WriteProtect, &parts, || ())
        .unwrap();
    let mapping = faults.block(0).mapping().unwrap();
    (0..PAGES).for_each(|page| mapping.copy_in(page * PAGE, &[3]));
    assert_eq!(catcher.caught.load(Ordering::SeqCst), 1, "it is registered");
}

/// As many mappings as there may be: every other page of one is advised otherwise.
fn fill(mapping: Mapping) -> Mapping {
    let advise = |at| mapping.advise(at, PAGE, paguro_sys::Advice::NoHuge);
    let full = (0..mapping.len())
        .step_by(2 * PAGE)
        .map(|at| advise(at + PAGE));
    let failed = full.into_iter().find(Result::is_err);
    assert!(failed.is_some(), "there is no limit");
    mapping
}
