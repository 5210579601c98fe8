//! How fast RAM is written, by a sample: what it says, and that it leaves RAM as it is.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use paguro_dirty::Sampling;
use paguro_faults::{Arrivals, Supply};
use paguro_ram::{Backing, BlockConfig, Discards, GuestRam, PageKind, PageSet, RamBlock};
use paguro_sys::{Fallbacks, Host};

use crate::rig::*;

const PAGES: usize = 16 << 10;
/// One page of eight.
const SAMPLING: Sampling = Sampling {
    pages_per_gib: (1 << 30) / PAGE as u64 / 8,
    seed: 7,
};

fn ram(backing: Backing, pages: PageKind) -> GuestRam {
    let block = RamBlock::new(BlockConfig {
        id: "ram0".to_owned(),
        guest_address: 0,
        bytes: PAGES * PAGE,
        backing,
        pages,
    });
    GuestRam::new(vec![block.unwrap()])
}

fn write(ram: &GuestRam, pages: impl IntoIterator<Item = usize>, value: u8) {
    let mapping = ram.blocks()[0].mapping();
    let mut write = |page| mapping.copy_in(page * PAGE, &[value; PAGE]);
    pages.into_iter().for_each(&mut write);
}

/// Pages that are estimated to have been written while `meanwhile` was done.
fn written(ram: &GuestRam, source: Option<&dyn Supply>, meanwhile: impl FnOnce()) -> usize {
    let host = Host::probe(&Fallbacks::default());
    let rate = SAMPLING.measure(ram, &host, source, meanwhile).unwrap();
    assert!(rate.vcpus.is_empty());
    rate.pages
}

/// Entries of the page table in which there is anything, zero pages of the kernel too, and what the
/// file behind it takes, in units of 512 bytes.
fn made(ram: &GuestRam) -> (usize, i64) {
    let block = &ram.blocks()[0];
    let mut entries = vec![0; 8 * PAGES];
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let at = block.mapping().addr() / PAGE * 8;
    pagemap.read_exact_at(&mut entries, at as u64).unwrap();
    // Present, or swapped out.
    let there = |entry: &[u8]| entry[7] & 0xc0 != 0;
    let file = block.file().map(|file| rustix::fs::fstat(file).unwrap());
    (
        entries.chunks(8).filter(|entry| there(entry)).count(),
        file.map_or(0, |file| file.st_blocks),
    )
}

#[test]
fn what_is_absent_stays_so_while_writes_are_sampled() {
    let _alone = alone();
    let huge = HugePages::take(PAGES as i64 / 512);
    for (backing, pages) in [
        (Backing::Anonymous, PageKind::Small),
        (Backing::Anonymous, PageKind::Thp),
        (Backing::Anonymous, PageKind::Huge),
        (Backing::Memfd, PageKind::Small),
        (Backing::Memfd, PageKind::Thp),
        (Backing::Memfd, PageKind::Huge),
    ] {
        if pages == PageKind::Huge && huge.is_none() {
            continue;
        }
        let ram = ram(backing, pages);
        write(&ram, 100..110, 1);
        let before = made(&ram);
        assert!(before.0 >= 10 && before.0 < PAGES / 2, "{before:?}");
        let estimated = written(&ram, None, || {});
        let after = made(&ram);
        assert_eq!(before, after, "{backing:?} {pages:?}");
        assert_eq!(estimated, 0, "{backing:?} {pages:?}");
    }
}

#[test]
fn a_sample_says_how_much_was_written() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram(backing, PageKind::Small);
        write(&ram, 0..PAGES, 1);
        assert_eq!(written(&ram, None, || {}), 0);
        // The same content again is not seen.
        assert_eq!(written(&ram, None, || write(&ram, 0..PAGES, 1)), 0);
        assert_eq!(written(&ram, None, || write(&ram, 0..PAGES, 2)), PAGES);
        let half = written(&ram, None, || write(&ram, (0..PAGES).step_by(2), 3));
        assert!(half.abs_diff(PAGES / 2) < PAGES / 10, "{half}");
    }
}

#[test]
fn a_page_that_comes_to_be_counts_unless_it_is_zero() {
    let ram = ram(Backing::Anonymous, PageKind::Small);
    assert_eq!(written(&ram, None, || write(&ram, 0..PAGES, 0)), 0);
    assert_eq!(written(&ram, None, || write(&ram, 0..PAGES, 1)), PAGES);
}

/// The second half is discarded, whatever is in it.
#[derive(Debug)]
struct Half;

impl Discards for Half {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        let end = range.end.min(PAGES / 2);
        if range.start < end {
            part(range.start..end);
        }
    }
}

#[test]
fn what_is_discarded_is_no_part_of_a_sample() {
    let ram = ram(Backing::Memfd, PageKind::Small).with_discards(Arc::new(Half));
    write(&ram, 0..PAGES, 1);
    let discarded = written(&ram, None, || write(&ram, PAGES / 2..PAGES, 2));
    assert_eq!(discarded, 0);
    let rest = written(&ram, None, || write(&ram, 0..PAGES / 2, 2));
    assert!(rest.abs_diff(PAGES / 2) < PAGES / 10, "{rest}");
}

/// All pages are elsewhere.
#[derive(Debug)]
struct Coming {
    has: PageSet,
    arrivals: Arrivals,
}

impl Coming {
    /// Ones come there.
    fn arrive(&self, pages: Range<usize>) {
        for page in pages {
            let landed = self.arrivals.land(0, page * PAGE, &[1; PAGE], |_| {});
            landed.unwrap();
        }
    }
}

fn coming(ram: &GuestRam) -> Coming {
    let has = PageSet::new(PAGES);
    has.insert_range(0..PAGES);
    let arrivals = Arrivals::new(ram.spans().clone());
    Coming { has, arrivals }
}

impl Supply for Coming {
    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn has(&self, _: usize) -> &PageSet {
        &self.has
    }

    fn read(
        &self,
        _: usize,
        _: usize,
        _: &mut [u8],
        _: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        unreachable!("nothing is fetched for a sample")
    }
}

#[test]
fn a_page_that_arrives_while_writes_are_sampled_is_not_written() {
    let ram = ram(Backing::Memfd, PageKind::Small);
    let coming = coming(&ram);
    coming.arrive(0..PAGES / 2);
    let arrive = || coming.arrive(PAGES / 2..PAGES);
    assert_eq!(written(&ram, Some(&coming), arrive), 0);
}

/// What has arrived is not all there is, nor is one block like another.
#[test]
fn what_is_written_of_what_has_arrived_is_not_taken_for_all() {
    let ram = ram(Backing::Memfd, PageKind::Small);
    let coming = coming(&ram);
    coming.arrive(0..PAGES / 8);
    let found = written(&ram, Some(&coming), || write(&ram, 0..PAGES / 8, 2));
    assert!(found.abs_diff(PAGES / 8) < PAGES / 16, "{found}");
}
