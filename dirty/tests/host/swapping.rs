//! Swap that is switched on while a machine runs already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paguro_dirty::FreezeOptions;
use paguro_ram::{Backing, PageKind};
use paguro_sys::{Advice, Fallbacks, Host};
use paguro_testkit::{Swap, host_wide};

use crate::rig::*;

const PAGES: usize = 3 * 512 + 77;

/// Some exist, some are zero, some are absent, and one granule is.
fn filling(page: usize) -> Option<u8> {
    match (page / 512, page % 5) {
        (1, _) | (_, 3) => None,
        (_, 1) => Some(0),
        (_, rest) => Some(rest as u8 + 1),
    }
}

fn page_out(rig: &Rig) {
    let mapping = rig.ram.blocks()[0].mapping();
    mapping.advise(0, mapping.len(), Advice::PageOut).unwrap();
}

fn swapped_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let number = line.unwrap().trim().split(' ').next().unwrap();
    number.parse().unwrap()
}

#[test]
fn what_was_swapped_out_is_in_the_picture() {
    let Some(_turn) = host_wide() else { return };
    // Probed while the host does not swap.
    let hosts = [false, true].map(|no_marker_entries| {
        Host::probe(&Fallbacks {
            no_marker_entries,
            ..Default::default()
        })
    });
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(_swap) = Swap::on(dir.path(), 64) else {
        return;
    };
    for host in hosts {
        for (backing, kind) in [
            (Backing::Anonymous, PageKind::Small),
            (Backing::Anonymous, PageKind::Thp),
            (Backing::Memfd, PageKind::Small),
        ] {
            for scan in [true, false] {
                let mut host = host;
                host.pagemap_scan &= scan;
                a_picture_under_pressure(host, backing, kind);
            }
        }
    }
}

fn a_picture_under_pressure(host: Host, backing: Backing, kind: PageKind) {
    let what = format!(
        "{backing:?} {kind:?} {:?} {}",
        host.marker, host.pagemap_scan
    );
    let Some(rig) = Rig::new(&[(PAGES, backing, kind)]) else {
        return;
    };
    for page in 0..PAGES {
        if let Some(value) = filling(page) {
            rig.put(0, page, value);
        }
    }
    page_out(&rig);
    let options = FreezeOptions {
        host,
        ..rig.options()
    };
    let freeze = rig.freeze(options).unwrap();
    // Pages go and come while they are armed.
    let over = Arc::new(AtomicBool::new(false));
    let (mapping, ends_at) = (rig.ram.blocks()[0].mapping().clone(), over.clone());
    let pressure = run(move || {
        while !ends_at.load(Ordering::Relaxed) {
            mapping.advise(0, mapping.len(), Advice::PageOut).unwrap();
        }
    });
    freeze.arm(|| true).unwrap();
    over.store(true, Ordering::Relaxed);
    ends(&pressure);
    page_out(&rig);
    assert!(
        backing == Backing::Memfd || swapped_kib() > 0,
        "{what}: nothing was swapped out"
    );
    hold(&freeze);
    page_out(&rig);
    let vandals = Vandals::start(&rig.ram, 2, 0xee);
    let taken = picture(&freeze, 2);
    freeze.end();
    drop(vandals);
    let (taken, _) = taken.unwrap_or_else(|error| panic!("{what}: {error}"));
    for page in 0..PAGES {
        let expect = filling(page).unwrap_or(0);
        assert_eq!(value(&taken, 0, page), expect, "{what}: page {page}");
    }
}

/// Where markers can be told, what is absent stays so, swap or not.
#[test]
fn absent_pages_stay_absent_where_the_host_swaps() {
    let Some(_turn) = host_wide() else { return };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(_swap) = Swap::on(dir.path(), 64) else {
        return;
    };
    let Some(rig) = Rig::small(PAGES) else { return };
    if rig.host.marker.is_none() {
        return skipped("this process is not shown what markers look like");
    }
    for page in (0..PAGES).filter(|&page| filling(page).is_some()) {
        rig.put(0, page, 7);
    }
    page_out(&rig);
    let freeze = rig.held(rig.options());
    let (taken, _) = picture(&freeze, 2).unwrap();
    freeze.end();
    for page in 0..PAGES {
        assert_eq!(
            rig.is_there(0, page),
            filling(page).is_some(),
            "page {page}"
        );
        assert_eq!(taken.contains_key(&(0, page)), filling(page).is_some());
    }
}
