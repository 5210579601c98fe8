//! Pages that cannot be had.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use paguro_faults::{Supply, Use};
use paguro_pager::{Prefetch, SourceError, Waiters};
use paguro_ram::{Backing, PageKind, RamBlock};
use paguro_sys::{Mapping, RegisterMode};

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
        ends(&may_go_on.lock().unwrap());
        Waiters::Keep
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
    let failure = Box::new(move |_: &_| {
        tell.store(true, Ordering::SeqCst);
        Waiters::LetGo
    });
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
    let failure = Box::new(move |error: &SourceError| {
        tell.send(error.to_string()).unwrap();
        Waiters::LetGo
    });
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
fn a_page_without_room_is_tried_again_and_not_silently_zero() {
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
    let (failure, told) = keeping();
    if let Some(rig) = Rig::of(small, &source, Prefetch::Unlimited, failure) {
        let pager = rig.pager.clone();
        until(move || pager.trouble().is_some());
        // Nobody waits, so nobody is told; who does would be.
        let without = rig.pager.bring(0, 599..600, &mut || true).unwrap_err();
        assert!(matches!(without, SourceError::Place(_)), "{without}");
        assert!(rig.pager.left_pages() > 500 && !rig.pager.has_failed());
        assert!(told.try_recv().is_err());
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
                let mapping = rig.faults.block(0).mapping().unwrap().clone();
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
            Waiters::LetGo
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

/// What is told when a page cannot be had for now, each time it is; the answer is to wait on.
fn keeping() -> (paguro_pager::Failure, std::sync::mpsc::Receiver<String>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let failure = Box::new(move |error: &SourceError| {
        assert!(error.may_pass(), "{error}");
        let _ = tell.lock().unwrap().send(error.to_string());
        Waiters::Keep
    });
    (failure, told)
}

/// Memory of 600 pages, its source without these, and what is told of it.
fn without(
    pages: &[usize],
    retry: Duration,
) -> Option<(Rig, Arc<Source>, std::sync::mpsc::Receiver<String>)> {
    let source = Source::new(600, 0..600);
    source.away.lock().unwrap().extend(pages);
    let (failure, told) = keeping();
    let small = block(600, Backing::Anonymous, PageKind::Small);
    let rig = Rig::patient(small, &source, Prefetch::Off, retry, failure)?;
    Some((rig, source, told))
}

#[test]
fn what_only_the_background_misses_costs_nobody_anything() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let source = Source::new(2000, 0..2000);
        source.away.lock().unwrap().extend(300..310);
        let (failure, told) = keeping();
        let small = block(2000, kind, PageKind::Small);
        let Some(rig) = Rig::of(small, &source, Prefetch::Unlimited, failure) else {
            return;
        };
        // More than one round, and all else comes.
        let (pager, asked) = (rig.pager.clone(), source.clone());
        until(move || pager.left_pages() <= 128 && asked.refused.load(Ordering::SeqCst) > 2);
        assert_eq!(ends(&rig.read(1999)), content(1999));
        assert_eq!(ends(&rig.read(299)), content(299));
        assert!(rig.pager.trouble().is_some() && rig.pager.failed_reads() > 0);
        assert!(!rig.pager.has_failed() && told.try_recv().is_err());
        source.away.lock().unwrap().clear();
        assert!(rig.pager.wait_done(IN_VAIN));
        assert_eq!(ends(&rig.read(305)), content(305));
        assert!(rig.pager.trouble().is_none() && told.try_recv().is_err());
        assert_eq!(source.most_reads(), 1);
    }
}

#[test]
fn who_waits_gets_the_page_when_it_can_be_read_again() {
    let _alone = alone();
    let Some((rig, source, told)) = without(&[100, 400, 500], IN_VAIN) else {
        return;
    };
    // More of them than threads that fetch: none of these is kept from others by waiting.
    let readers: Vec<_> = [100, 400, 500].map(|page| rig.read(page)).into();
    let asked = source.clone();
    until(move || asked.refused.load(Ordering::SeqCst) > 12);
    assert_eq!(ends(&rig.read(200)), content(200));
    assert!(readers.iter().all(|reader| reader.try_recv().is_err()));
    source.away.lock().unwrap().clear();
    let found: Vec<_> = readers.iter().map(ends).collect();
    assert_eq!(found, [100, 400, 500].map(content));
    assert!(told.try_recv().is_err() && !rig.pager.has_failed());
    let pager = rig.pager.clone();
    until(move || pager.trouble().is_none());
}

#[test]
fn who_is_kept_waiting_gets_the_page_once_all_is_tried_anew() {
    let _alone = alone();
    let Some((rig, source, told)) = without(&[100], Duration::from_millis(30)) else {
        return;
    };
    let reader = rig.read(100);
    assert!(ends(&told).contains("100"));
    // Once, however often it is tried meanwhile; and once more after it was told to go on.
    let (asked, before) = (source.clone(), source.refused.load(Ordering::SeqCst));
    until(move || asked.refused.load(Ordering::SeqCst) > before + 2);
    assert!(told.try_recv().is_err() && reader.try_recv().is_err());
    rig.pager.renew();
    assert!(ends(&told).contains("100"));
    source.away.lock().unwrap().clear();
    rig.pager.renew();
    assert_eq!(ends(&reader), content(100));
    assert!(!rig.pager.has_failed());
}

/// All threads that fetch are held, so that who waits for the third page is not even asked for.
#[test]
fn a_source_that_answers_nothing_is_told_of_as_one_that_fails() {
    let _alone = alone();
    let Some((rig, source, told)) = without(&[], Duration::from_millis(30)) else {
        return;
    };
    let gate = source.gate.write().unwrap();
    let wanted = [100, 400, 500];
    let readers: Vec<_> = wanted.map(|page| rig.read(page)).into();
    for _ in 0..2 {
        let said: Vec<_> = wanted.map(|_| ends(&told)).into();
        for page in wanted {
            let name = format!("pages {page}..");
            assert_eq!(said.iter().filter(|it| it.contains(&name)).count(), 1);
        }
        assert!(rig.pager.trouble().unwrap().contains("no answer came"));
        // Each once, until it is told to go on.
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
        rig.pager.renew();
    }
    drop(gate);
    assert_eq!(
        readers.iter().map(ends).collect::<Vec<_>>(),
        wanted.map(content)
    );
    let pager = rig.pager.clone();
    until(move || pager.trouble().is_none());
    assert!(!rig.pager.has_failed());
}

#[test]
fn what_is_only_read_in_the_background_and_hangs_is_told_as_trouble() {
    let _alone = alone();
    let source = Source::new(600, 0..600);
    let gate = source.gate.write().unwrap();
    let (failure, told) = keeping();
    let small = block(600, Backing::Anonymous, PageKind::Small);
    let Some(rig) = Rig::of(small, &source, Prefetch::Unlimited, failure) else {
        return;
    };
    let pager = rig.pager.clone();
    until(move || pager.trouble().is_some());
    drop(gate);
    assert!(rig.pager.wait_done(IN_VAIN));
    assert!(rig.pager.trouble().is_none() && told.try_recv().is_err());
}

#[test]
fn an_end_lets_those_go_who_wait_for_what_cannot_be_read() {
    let _alone = alone();
    let Some((rig, source, told)) = without(&[100], IN_VAIN) else {
        return;
    };
    let reader = rig.read(100);
    let asked = source.clone();
    until(move || asked.refused.load(Ordering::SeqCst) > 2);
    rig.pager.stop();
    assert_eq!(ends(&reader), 0);
    assert!(told.try_recv().is_err());
}

#[test]
fn pages_that_are_brought_are_waited_for_only_as_long_as_the_caller_likes() {
    let _alone = alone();
    let Some((rig, source, told)) = without(&[100], IN_VAIN) else {
        return;
    };
    rig.pager.bring(0, 0..100, &mut || false).unwrap();
    let mut looks = 0;
    let mut go_on = || {
        looks += 1;
        looks < 3
    };
    let error = rig.pager.bring(0, 90..110, &mut go_on).unwrap_err();
    assert!(error.may_pass(), "{error}");
    source.away.lock().unwrap().clear();
    rig.pager.bring(0, 90..110, &mut || true).unwrap();
    assert_eq!(rig.pager.arrivals().received(0).count(), 110);
    assert!(told.try_recv().is_err());
}

#[test]
fn zeros_that_cannot_be_placed_now_are_placed_later() {
    let _alone = alone();
    for kind in [Backing::Anonymous, Backing::Memfd] {
        let source = Source::new(600, 0..300);
        let Some(rig) = Rig::start(600, kind, &source, Prefetch::Off) else {
            return;
        };
        rig.faults.register(0, Use::WriteProtect).unwrap();
        rig.faults.protect_placements();
        // The kernel places nothing protected where nothing can be: a refusal like any other.
        let range = rig.faults.block(0).addresses_of(&(0..600));
        rig.faults.uffd().unregister(range.clone()).unwrap();
        let register = |mode| rig.faults.uffd().register(range.clone(), mode).unwrap();
        register(RegisterMode::Missing);
        let reader = rig.read(400);
        let faults = rig.faults.clone();
        until(move || faults.failed_answers() >= 3);
        register(RegisterMode::Both);
        assert_eq!(ends(&reader), 0, "{kind:?}");
    }
}
