//! Orders of steps, shown by others who act in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel};

use paguro_sys::Advice;

use rig::*;

use super::Freeze;
use crate::moments::Moment;
use crate::{FreezeOptions, Sabotage};

#[path = "../../tests/it/rig.rs"]
#[allow(dead_code, unused_imports)]
mod rig;

/// An armed freeze of one granule, all of it ones, of which a fault takes 16 pages.
fn armed() -> Option<(Rig, Arc<Freeze>)> {
    broken(Sabotage::None)
}

fn broken(sabotage: Sabotage) -> Option<(Rig, Arc<Freeze>)> {
    let rig = Rig::small(512)?;
    (0..512).for_each(|page| rig.put(0, page, 1));
    let options = FreezeOptions {
        chunk_pages: 16,
        check: false,
        sabotage,
        ..rig.options()
    };
    let freeze = rig.freeze(options).unwrap();
    freeze.arm(|| true).unwrap();
    Some((rig, freeze))
}

#[test]
fn what_is_released_while_somebody_arms_is_armed_again() {
    let _alone = alone();
    let Some((rig, freeze)) = armed() else { return };
    let (weak, rounds) = (Arc::downgrade(&freeze), channel());
    freeze.context.moments.act(move |moment| {
        if moment == Moment::Released {
            let armed = weak
                .upgrade()
                .map(|freeze| freeze.arming.round(&freeze.context, true).is_ok());
            let _ = rounds.0.send(armed);
        }
    });
    ends(&rig.write(0, 100, 7));
    assert_eq!(ends(&rounds.1), Some(true));
    hold(&freeze);
    ends(&rig.write(0, 100, 8));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!(
        value(&picture, 0, 100),
        7,
        "written after the pause, unseen"
    );
}

/// The last look comes behind the barrier, which waits for whoever releases; before it, it misses
/// what is released just then.
#[test]
fn what_is_released_while_the_pause_begins_is_armed_again() {
    let _alone = alone();
    for (sabotage, expect) in [(Sabotage::None, 7), (Sabotage::RearmBeforeBarrier, 8)] {
        let Some((rig, freeze)) = broken(sabotage) else {
            return;
        };
        let (released, goes_on) = (sync_channel(0), sync_channel::<()>(0));
        let goes_on_from = std::sync::Mutex::new(goes_on.1);
        let first = AtomicBool::new(true);
        freeze.context.moments.act(move |moment| {
            if moment == Moment::Released && first.swap(false, Ordering::Relaxed) {
                released.0.send(()).unwrap();
                ends(&goes_on_from.lock().unwrap());
            }
        });
        let write = rig.write(0, 100, 7);
        ends(&released.1);
        if sabotage == Sabotage::RearmBeforeBarrier {
            freeze.arm_rest().unwrap();
        }
        goes_on.0.send(()).unwrap();
        ends(&write);
        hold(&freeze);
        ends(&rig.write(0, 100, 8));
        let (picture, _) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(value(&picture, 0, 100), expect, "{sabotage:?}");
    }
}

/// Nothing is left for the scan, so it would end.
#[test]
fn a_copy_is_queued_before_it_counts_as_settled() {
    let _alone = alone();
    for discards in [false, true] {
        let Some((rig, freeze)) = armed() else { return };
        let (weak, found) = (Arc::downgrade(&freeze), channel());
        freeze.context.moments.act(move |moment| {
            let Some(freeze) = weak.upgrade().filter(|_| moment == Moment::Queued) else {
                return;
            };
            let is_there = loop {
                match freeze.next().unwrap() {
                    Some(copied) if copied.pages().contains(&100) => break true,
                    Some(_) => {}
                    None => break false,
                }
            };
            let _ = found.0.send(is_there);
        });
        hold(&freeze);
        if discards {
            let freeze = freeze.clone();
            ends(&run(move || freeze.discard(0, 100..101, || ()).unwrap()));
        } else {
            ends(&rig.write(0, 100, 7))
        }
        let is_there = ends(&found.1);
        freeze.end();
        assert!(is_there, "the picture was over without it ({discards})");
    }
}

#[test]
fn what_is_released_before_it_is_copied_is_seen() {
    let _alone = alone();
    for sabotage in [Sabotage::None, Sabotage::ReleaseBeforeCopy] {
        let Some((rig, freeze)) = broken(sabotage) else {
            return;
        };
        let (mapping, writers) = (rig.ram.blocks()[0].mapping().clone(), channel());
        let first = AtomicBool::new(true);
        freeze.context.moments.act(move |moment| {
            if moment != Moment::Copies || !first.swap(false, Ordering::SeqCst) {
                return;
            }
            let (mapping, (tell, told)) = (mapping.clone(), channel());
            let writes = Arc::new(AtomicBool::new(true));
            let its = writes.clone();
            let writer = run(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                mapping.copy_in(100 * PAGE, &[7; PAGE]);
                its.store(false, Ordering::SeqCst);
            });
            // He is through, or, if nothing is broken, may wait for whoever is here.
            let path = format!("/proc/self/task/{}/stat", ends(&told).as_raw_nonzero());
            let waits = || {
                let stat = std::fs::read_to_string(&path).unwrap_or_default();
                stat.contains(") S ") || stat.contains(") D ")
            };
            wait_until("a write", || {
                let is_through = !writes.load(Ordering::SeqCst);
                is_through || sabotage == Sabotage::None && waits()
            });
            writers.0.send(writer).unwrap();
        });
        hold(&freeze);
        let result = picture(&freeze, 1);
        freeze.end();
        let is_right = result.is_ok_and(|(picture, _)| value(&picture, 0, 100) == 1);
        assert_eq!(is_right, sabotage == Sabotage::None, "{sabotage:?}");
        ends(&ends(&writers.1));
    }
}

#[test]
fn nothing_is_given_back_while_somebody_else_is_about_to_copy_it() {
    let _alone = alone();
    let Some((rig, freeze)) = armed() else { return };
    let (claimed, is_claimed) = channel();
    let (go_on, may_go_on) = channel();
    let (tell, told) = sync_channel(1);
    let (may_go_on, waits) = (std::sync::Mutex::new(may_go_on), tell.clone());
    let first = AtomicBool::new(true);
    freeze.context.moments.act(move |moment| match moment {
        Moment::Claimed if first.swap(false, Ordering::SeqCst) => {
            claimed.send(()).unwrap();
            ends(&may_go_on.lock().unwrap());
        }
        // Again and again, of which the first counts.
        Moment::AwaitsCopies => drop(waits.try_send("waits")),
        _ => {}
    });
    hold(&freeze);
    let writer = rig.write(0, 100, 7);
    ends(&is_claimed);
    let giver = {
        let (freeze, mapping) = (freeze.clone(), rig.ram.blocks()[0].mapping().clone());
        run(move || {
            freeze.discard(0, 100..101, || {
                let _ = tell.try_send("gives back");
                mapping.advise(100 * PAGE, PAGE, Advice::DontNeed).unwrap();
            })
        })
    };
    let found = ends(&told);
    go_on.send(()).unwrap();
    ends(&writer);
    let given = ends(&giver);
    let picture = picture(&freeze, 1);
    freeze.end();
    assert_eq!(found, "waits");
    given.unwrap();
    assert_eq!(value(&picture.unwrap().0, 0, 100), 1);
}
