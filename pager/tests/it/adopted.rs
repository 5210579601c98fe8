//! A pager over a userfaultfd that somebody else opened, of whose memory it knows addresses only.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use paguro_faults::{Faults, Use};
use paguro_pager::{Failure, Pager, PagerOptions, Prefetch};
use paguro_ram::{Backing, PageKind, Span, Spans};
use paguro_sys::{Handshake, RegisterMode, Uffd};

use crate::rig::*;

const PAGES: usize = 600;

#[test]
fn memory_of_others_is_filled_by_its_addresses() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (theirs, opened) = (
        block(PAGES, Backing::Anonymous, PageKind::Small),
        host.open_uffd().unwrap(),
    );
    let addresses = theirs.addresses_of(&(0..PAGES));
    // The owner registers, keeps his descriptor, and sends another one.
    opened
        .register(addresses.clone(), RegisterMode::Missing)
        .unwrap();
    let said = Handshake {
        features: opened.features(),
        user_mode_only: opened.is_user_mode_only(),
    };
    let uffd = Uffd::adopt(opened.as_fd().try_clone_to_owned().unwrap(), said).unwrap();
    let kind = Backing::Anonymous;
    let span = Span::elsewhere("ram0", addresses.start, addresses.len(), 1, kind).unwrap();
    let spans = Spans::elsewhere(vec![span]).unwrap();
    let faults = Faults::adopt(uffd, spans, 1).unwrap();

    let source = Source::new(PAGES, (0..PAGES).filter(|page| page % 3 != 1));
    let options = PagerOptions {
        urgent_threads: 1,
        prefetch: Prefetch::Unlimited,
        retry: Duration::ZERO,
    };
    let failure: Failure = Box::new(|error| panic!("{error}"));
    let pager = Pager::start(&faults, source, options, failure).unwrap();
    let mapping: Arc<_> = theirs.mapping().clone();
    let wrong = run(move || {
        let expect = |page| if page % 3 == 1 { 0 } else { content(page) };
        let is_wrong = |&page: &usize| !mapping.is_equal(page * PAGE, &[expect(page); PAGE]);
        (0..PAGES).rev().filter(is_wrong).collect::<Vec<_>>()
    });
    assert_eq!(ends(&wrong), [0usize; 0]);
    assert!(pager.wait_done(Duration::from_secs(30)));
    // Nor is anybody left waiting for what the owner's descriptor would keep.
    assert!(!faults.is_registered(0, Use::Missing));
    drop((pager, faults));
    assert_eq!(opened.features(), said.features);
}

/// The owner has registered his memory, and runs before there is somebody to serve it.
#[test]
fn whoever_waits_before_anybody_serves_gets_the_page_and_no_zeros() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let theirs = block(PAGES, Backing::Anonymous, PageKind::Small);
    let opened = host.open_uffd().unwrap();
    let addresses = theirs.addresses_of(&(0..PAGES));
    let missing = RegisterMode::Missing;
    opened.register(addresses.clone(), missing).unwrap();
    let mapping = theirs.mapping().clone();
    let (begins, has_begun) = std::sync::mpsc::channel();
    let waits = run(move || {
        begins.send(rustix::thread::gettid()).unwrap();
        let mut byte = [0];
        mapping.copy_out(5 * PAGE, &mut byte);
        byte[0]
    });
    let stat = format!("/proc/self/task/{}/stat", ends(&has_begun).as_raw_nonzero());
    wait_until("it waits", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    });
    let said = Handshake {
        features: opened.features(),
        user_mode_only: opened.is_user_mode_only(),
    };
    let fd = opened.as_fd().try_clone_to_owned().unwrap();
    let span = Span::elsewhere(
        "ram0",
        addresses.start,
        addresses.len(),
        1,
        Backing::Anonymous,
    );
    let spans = Spans::elsewhere(vec![span.unwrap()]).unwrap();
    let faults = Faults::adopt(Uffd::adopt(fd, said).unwrap(), spans, 1).unwrap();
    // Whoever answers too early has by now.
    std::thread::sleep(Duration::from_millis(50));
    assert!(
        waits.try_recv().is_err(),
        "somebody answered who has nothing"
    );
    let options = PagerOptions {
        urgent_threads: 1,
        prefetch: Prefetch::Unlimited,
        retry: Duration::ZERO,
    };
    let failure: Failure = Box::new(|error| panic!("{error}"));
    let pager = Pager::start(&faults, Source::new(PAGES, 0..PAGES), options, failure).unwrap();
    assert_eq!(ends(&waits), content(5));
    assert!(pager.wait_done(Duration::from_secs(30)));
}
