//! Pages that cannot be had.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use paguro_pager::{Prefetch, SourceError};
use paguro_ram::{Backing, PageKind, RamBlock};
use paguro_sys::Mapping;

use crate::rig::*;

#[test]
fn nobody_is_let_go_before_the_failure_was_told_and_it_is_told_once() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    source.broken.lock().unwrap().extend([100, 400]);
    let told = Arc::new(AtomicUsize::new(0));
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let (count, may_go_on) = (told.clone(), Mutex::new(may_go_on));
    let failure = Box::new(move |error: &SourceError| {
        assert!(matches!(
            error,
            SourceError::Damaged {
                page: 100 | 400,
                ..
            }
        ));
        count.fetch_add(1, Ordering::SeqCst);
        begun.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
    });
    let small = block(600, Backing::Anonymous, PageKind::Small);
    let Some(rig) = Rig::of(small, &source, Prefetch::Off, failure) else {
        return;
    };
    let first = rig.read(100);
    ends(&has_begun);
    // The second fails while the first is still being told: he has to wait as well.
    let second = rig.read(400);
    let asked = source.clone();
    until(move || asked.asked.load(Ordering::SeqCst) >= 4);
    for _ in 0..10_000 {
        std::thread::yield_now();
    }
    assert!(first.try_recv().is_err() && second.try_recv().is_err());
    go_on.send(()).unwrap();
    assert_eq!((ends(&first), ends(&second)), (0, 0));
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert!(rig.pager.has_failed() && !rig.pager.is_done());
}

#[test]
fn a_damaged_page_costs_its_neighbours_nothing() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    source.broken.lock().unwrap().insert(100);
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let failure = Box::new(move |_: &_| tell.store(true, Ordering::SeqCst));
    let small = block(600, Backing::Memfd, PageKind::Small);
    let Some(rig) = Rig::of(small, &source, Prefetch::Off, failure) else {
        return;
    };
    for page in [96, 99, 101, 111] {
        assert_eq!(ends(&rig.read(page)), content(page));
    }
    assert!(!told.load(Ordering::SeqCst), "nobody wanted it yet");
    assert_eq!(ends(&rig.read(100)), 0);
    assert!(told.load(Ordering::SeqCst));
    // The others are served on.
    assert_eq!(ends(&rig.read(500)), content(500));
}

#[test]
fn a_damaged_page_is_found_by_the_prefetch_too() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    source.broken.lock().unwrap().insert(300);
    let (tell, told) = channel();
    let failure = Box::new(move |error: &SourceError| tell.send(error.to_string()).unwrap());
    let small = block(600, Backing::Anonymous, PageKind::Small);
    let Some(rig) = Rig::of(small, &source, Prefetch::Unlimited, failure) else {
        return;
    };
    let error = ends(&told);
    assert!(
        error.contains("page 300") && error.contains("ram0"),
        "{error}"
    );
    assert!(rig.pager.has_failed() && !rig.pager.is_done());
}

#[test]
fn a_page_without_room_is_a_failure_and_not_silently_zero() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "paguro-test"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        skipped("cannot mount a small tmpfs here");
        return;
    }
    let _mount = Mount(dir.path());
    let file = tempfile::tempfile_in(dir.path()).unwrap();
    file.set_len(600 * PAGE as u64).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 600 * PAGE, false).unwrap();
    let small = RamBlock::adopt("ram0", 0, Arc::new(mapping), Backing::Memfd);
    let small = small.with_file(file.into(), 0);
    let source = Source::new(600, 0..600);
    let (tell, told) = channel();
    let failure = Box::new(move |error: &SourceError| {
        tell.send(matches!(error, SourceError::Place(_))).unwrap();
    });
    if let Some(rig) = Rig::of(small, &source, Prefetch::Unlimited, failure) {
        assert!(ends(&told), "another error");
        assert!(rig.pager.left_pages() > 500);
    }
}

/// Unmounted whatever happens; at once, although the file is still mapped.
struct Mount<'a>(&'a std::path::Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .args(["-l".as_ref(), self.0])
            .status();
    }
}

#[test]
fn a_pager_that_is_stopped_leaves_nobody_waiting() {
    let _alone = alone();
    for _ in 0..30 {
        let source = Source::new(2000, 0..2000);
        let Some(rig) = Rig::start(2000, Backing::Anonymous, &source, Prefetch::Off) else {
            return;
        };
        let readers: Vec<_> = (0..4)
            .map(|index| {
                let mapping = rig.faults.block(0).mapping().clone();
                run(move || (0..120).for_each(|at| mapping.touch((at * 16 + index) * PAGE, PAGE)))
            })
            .collect();
        ends(&rig.read(1999));
        rig.pager.stop();
        readers.iter().for_each(ends);
        ends(&rig.read(1000));
    }
}

#[test]
fn a_source_that_panics_is_a_failure_and_nobody_waits_for_it() {
    let _alone = alone();
    for prefetch in [Prefetch::Off, Prefetch::Unlimited] {
        let source = Source::new(600, 0..600);
        source.panics_at.store(300, Ordering::SeqCst);
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        let failure = Box::new(move |error: &SourceError| {
            let _ = tell.lock().unwrap().send(matches!(error, SourceError::Bug));
        });
        let small = block(600, Backing::Anonymous, PageKind::Small);
        let Some(rig) = Rig::of(small, &source, prefetch, failure) else {
            return;
        };
        let reader = rig.read(300);
        assert!(ends(&told));
        assert_eq!(ends(&reader), 0);
        assert!(rig.pager.has_failed() && !rig.pager.is_done());
    }
}
