//! A freeze of RAM that is still being filled.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use paguro_dirty::{Freeze, FreezeError, FreezeOptions};
use paguro_faults::{Arrivals, Faults, MissingHandler, Supply, Use};
use paguro_ram::{Backing, BlockConfig, Discards, GuestRam, Located, PageKind, PageSet, RamBlock};

use crate::rig::*;

/// A source that has twos for some pages of a block.
#[derive(Debug)]
struct Source {
    has: PageSet,
    arrivals: Arrivals,
    broken: Option<usize>,
    panics: Option<usize>,
}

impl Source {
    fn new(rig: &Rig, has: Range<usize>) -> Self {
        let source = Self {
            has: PageSet::new(rig.ram.blocks()[0].pages()),
            arrivals: Arrivals::new(rig.ram.spans().clone()),
            broken: None,
            panics: None,
        };
        source.has.insert_range(has);
        source
    }

    /// They came some time ago.
    fn received(&self, pages: Range<usize>) {
        self.arrivals.filled(0, pages.map(|page| page * PAGE), PAGE);
    }

    /// Places what is wanted of it from now on.
    fn serve(self: &Arc<Self>, rig: &Rig) {
        let handler = Arc::new(Places(self.clone()));
        self.arrivals.serve(&rig.faults, handler).unwrap();
    }
}

impl Supply for Source {
    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn has(&self, _: usize) -> &PageSet {
        &self.has
    }

    fn read(
        &self,
        _: usize,
        page: usize,
        to: &mut [u8],
        _: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        assert_ne!(self.panics, Some(page), "as it should");
        if self.broken == Some(page) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.fill(2);
        Ok(())
    }
}

/// Places what the source has.
struct Places(Arc<Source>);

impl MissingHandler for Places {
    fn missing(&self, faults: &Faults, at: Located) {
        let Source { has, arrivals, .. } = &*self.0;
        arrivals.answer(faults, at, || {
            let place = || arrivals.land(0, at.page * PAGE, &[2; PAGE], |_| {});
            has.contains(at.page) && place().is_ok()
        });
    }

    fn broken(&self, _: &Faults, at: Located) {
        panic!("nothing panics over {at:?}");
    }
}

/// Two granules, of which the source has the first and a bit of the second.
fn rig(backing: Backing, has: std::ops::Range<usize>) -> Option<(Rig, Arc<Source>)> {
    rig_of(backing, PageKind::Small, has)
}

fn rig_of(
    backing: Backing,
    kind: PageKind,
    has: std::ops::Range<usize>,
) -> Option<(Rig, Arc<Source>)> {
    let rig = Rig::new(&[(1024, backing, kind)])?;
    let source = Arc::new(Source::new(&rig, has));
    source.serve(&rig);
    Some((rig, source))
}

#[test]
fn what_has_not_arrived_comes_from_the_source_whoever_writes() {
    let _alone = alone();
    for (backing, tells_markers) in [
        (Backing::Anonymous, true),
        (Backing::Anonymous, false),
        (Backing::Memfd, true),
    ] {
        let Some((rig, source)) = rig(backing, 0..600) else {
            return;
        };
        ends(&rig.write(0, 7, 5));
        let options = marked(rig.options(), tells_markers);
        let freeze = rig.freeze_of(Some(source.clone()), options).unwrap();
        freeze.arm(|| true).unwrap();
        ends(&rig.write(0, 8, 6));
        hold(&freeze);
        // Arrived before and after the pause, never, and where the source has nothing.
        for page in [7, 8, 9, 599, 700] {
            ends(&rig.write(0, page, 9));
        }
        let (picture, zeros) = picture(&freeze, 2).unwrap();
        freeze.end();
        let found = [6, 7, 8, 9, 599, 600, 700].map(|page| value(&picture, 0, page));
        assert_eq!(found, [2, 5, 6, 2, 2, 0, 0], "{backing:?}");
        assert_eq!((picture.len(), zeros), (600, 424));
        // The pager goes on as before.
        ends(&rig.write(0, 300, 1));
        assert!(rig.faults.is_registered(0, Use::Missing));
    }
}

/// With markers of protected absent pages told apart from swapped pages, or not.
fn marked(mut options: FreezeOptions, tells_markers: bool) -> FreezeOptions {
    options.host.marker = options.host.marker.filter(|_| tells_markers);
    options
}

#[test]
fn the_scan_waits_for_no_reader() {
    let _alone = alone();
    for (kind, tells_markers) in [
        (PageKind::Small, true),
        (PageKind::Small, false),
        (PageKind::Thp, true),
        (PageKind::Thp, false),
    ] {
        let Some((rig, source)) = rig_of(Backing::Anonymous, kind, 0..800) else {
            return;
        };
        // Arrived and written, arrived and given back, not arrived; nothing to come.
        ends(&rig.write(0, 10, 5));
        ends(&rig.write(0, 20, 5));
        ends(&rig.write(0, 700, 5));
        ends(&rig.write(0, 900, 5));
        for page in [20, 700, 900] {
            rig.drop_page(0, page);
        }
        let options = marked(rig.options(), tells_markers);
        let freeze = rig.freeze_of(Some(source), options).unwrap();
        freeze.arm(|| true).unwrap();
        hold(&freeze);
        // The readers may all be waiting for room that only the scan can make.
        let barrier = rig.faults.barrier();
        let (picture, _) = picture(&freeze, 1).unwrap();
        drop(barrier);
        freeze.end();
        let found = [9, 10, 20, 700, 701, 900, 901].map(|page| value(&picture, 0, page));
        assert_eq!(found, [2, 5, 0, 0, 2, 0, 0], "{kind:?}, {tells_markers}");
        // Nor did it put anything where pages are still to come.
        for page in [9, 701] {
            let mapping = rig.ram.blocks()[0].mapping().clone();
            let came = run(move || mapping.is_equal(page * PAGE, &[2; PAGE]));
            assert!(ends(&came), "page {page}, {kind:?}, {tells_markers}");
        }
    }
}

#[test]
fn zeros_placed_where_nothing_was_are_let_go_by_the_scan() {
    let _alone = alone();
    let Some((rig, source)) = rig(Backing::Anonymous, 0..100) else {
        return;
    };
    let freeze = rig.freeze_of(Some(source), rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    // Somebody reads: zeros are placed, protected.
    let mapping = rig.ram.blocks()[0].mapping().clone();
    assert!(ends(&run(move || mapping.is_zero(800 * PAGE, PAGE))));
    picture(&freeze, 1).unwrap();
    // No reader may be needed to write them now: who came before the claim is woken by nobody else.
    let barrier = rig.faults.barrier();
    ends(&rig.write(0, 800, 3));
    drop(barrier);
    freeze.end();
}

/// He has it by then, and may write it: what is not received in the pause has not been there.
#[test]
fn a_pause_waits_for_what_has_landed_and_is_not_received() {
    let _alone = alone();
    let Some((rig, source)) = rig(Backing::Anonymous, 0..600) else {
        return;
    };
    let freeze = rig.freeze_of(Some(source.clone()), rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    let ((lands, has_landed), (go_on, may_go_on)) = (channel(), channel());
    let lander = run(move || {
        let noting = |_| {
            lands.send(()).unwrap();
            ends(&may_go_on);
        };
        source
            .arrivals
            .land(0, 7 * PAGE, &[5; PAGE], noting)
            .unwrap();
    });
    ends(&has_landed);
    let (begins, has_begun) = channel();
    let (holding, is_held) = (freeze.clone(), Arc::new(AtomicBool::new(false)));
    let held = is_held.clone();
    let holder = run(move || {
        begins.send(rustix::thread::gettid()).unwrap();
        hold(&holding);
        held.store(true, Ordering::SeqCst);
    });
    // Until it sleeps, in whatever lock, or does not wait.
    let thread = ends(&has_begun).as_raw_nonzero();
    let (path, held) = (format!("/proc/self/task/{thread}/stat"), is_held.clone());
    wait_until("the pause waits", move || {
        let sleeps = || std::fs::read_to_string(&path).is_ok_and(|stat| stat.contains(") S "));
        held.load(Ordering::SeqCst) || sleeps()
    });
    assert!(!is_held.load(Ordering::SeqCst), "it did not wait");
    go_on.send(()).unwrap();
    ends(&lander);
    ends(&holder);
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!(value(&picture, 0, 7), 5);
}

#[test]
fn a_source_that_fails_ends_the_freeze_and_frees_the_writer() {
    let _alone = alone();
    for writer in [false, true] {
        let Some((rig, _)) = rig(Backing::Anonymous, 0..600) else {
            return;
        };
        let mut source = Source::new(&rig, 0..600);
        source.broken = Some(33);
        let options = FreezeOptions {
            chunk_pages: 1,
            ..rig.options()
        };
        let freeze = rig.freeze_of(Some(Arc::new(source)), options).unwrap();
        freeze.arm(|| true).unwrap();
        hold(&freeze);
        if writer {
            ends(&rig.write(0, 33, 9));
        }
        match picture(&freeze, 2) {
            Err(FreezeError::Unarrived { page, .. }) => assert_eq!(page, 33),
            other => panic!("{:?}", other.map(|_| ())),
        }
        let late = rig.write(0, 40, 9);
        freeze.end();
        ends(&late);
    }
}

/// A bug of ours, or of whoever gave us the source, costs the picture and not the guest.
#[test]
fn a_panic_over_a_fault_ends_the_freeze_and_frees_every_writer() {
    let _alone = alone();
    let Some((rig, _)) = rig(Backing::Anonymous, 0..600) else {
        return;
    };
    let mut source = Source::new(&rig, 0..600);
    source.panics = Some(33);
    let freeze = rig
        .freeze_of(Some(Arc::new(source)), rig.options())
        .unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    ends(&rig.write(0, 33, 9));
    match picture(&freeze, 1) {
        Err(FreezeError::Bug) => {}
        other => panic!("{:?}", other.map(|_| ())),
    }
    let late: Vec<_> = [33, 34, 40].map(|page| rig.write(0, page, 9)).into();
    freeze.end();
    late.iter().for_each(ends);
}

/// The pager has all, and takes the registration of its blocks away, one after the other: what is
/// written where nothing was is not reported any more.
#[test]
fn what_came_and_was_given_back_is_zero_also_where_nothing_is_placed_any_more() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    let source = Arc::new(Source::new(&rig, 0..512));
    source.received(0..512);
    rig.put(0, 3, 2);
    rig.drop_page(0, 3);
    let freeze = rig.freeze_of(Some(source), rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    ends(&rig.write(0, 3, 9));
    let (picture, zeros) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!((picture.len(), zeros), (0, 1024));
}

/// Nothing is protected of what nobody writes, and its pages come all the same.
#[test]
fn what_the_guest_does_not_write_may_come_after_the_pause() {
    let _alone = alone();
    let Some(Rig { host, .. }) = Rig::small(1) else {
        return;
    };
    for read_only in [true, false] {
        let block = RamBlock::new(BlockConfig {
            id: "ram0".into(),
            guest_address: 0,
            bytes: 1024 * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let block = if read_only {
            block.unwrap().read_only()
        } else {
            block.unwrap()
        };
        let ram = GuestRam::new(vec![block]);
        let faults = Faults::open(&host, ram.clone(), 2).unwrap();
        let rig = Rig { host, ram, faults };
        let source = Arc::new(Source::new(&rig, 0..512));
        source.serve(&rig);
        // A guest that stands still needs none.
        let faults = read_only.then(|| rig.faults.clone());
        let ram = rig.ram.clone();
        let freeze = Freeze::new(faults, ram, Some(source), &[], rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        hold(&freeze);
        let mapping = rig.ram.blocks()[0].mapping().clone();
        assert!(ends(&run(move || mapping.is_equal(5 * PAGE, &[2; PAGE]))));
        let (picture, zeros) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!((picture.len(), zeros), (512, 512), "{read_only}");
    }
}

/// What is still to come would be read on the way, one by one, and may be unreadable.
#[test]
fn a_write_to_a_huge_unit_that_is_partly_here_takes_what_is_here_only() {
    let _alone = alone();
    let Some((rig, places)) = rig_of(Backing::Anonymous, PageKind::Thp, 0..512) else {
        return;
    };
    for page in [7, 9] {
        ends(&rig.write(0, page, 5));
    }
    let mut source = Source::new(&rig, 0..512);
    source.broken = Some(33);
    source.received(7..8);
    source.received(9..10);
    let freeze = rig
        .freeze_of(Some(Arc::new(source)), rig.options())
        .unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    // Queued a moment after the writer is let go, and settled after that.
    let is_queued = |pages: usize| {
        let freeze = freeze.clone();
        ends(&run(move || {
            while freeze.left_pages() > 1024 - pages {
                std::thread::yield_now();
            }
        }));
    };
    ends(&rig.write(0, 7, 9));
    is_queued(2);
    let copied = freeze.next().unwrap().expect("a page was written");
    assert_eq!(copied.pages(), [7, 9]);
    drop(copied);
    // One that comes now comes protected.
    ends(&rig.write(0, 8, 9));
    assert!(places.arrivals.received(0).contains(8));
    is_queued(3);
    let copied = freeze.next().unwrap().expect("another was written");
    assert_eq!((copied.pages(), copied.content(0)[0]), (&[8][..], 2));
    drop(copied);
    assert!(matches!(
        picture(&freeze, 1),
        Err(FreezeError::Unarrived { page: 33, .. })
    ));
    freeze.end();
}

/// Only the scan would help him, if he were not found in the part of a unit with which it ends.
#[test]
fn a_write_to_the_end_of_a_block_that_shrank_waits_for_no_scan() {
    let _alone = alone();
    let Some((rig, source)) = rig_of(Backing::Anonymous, PageKind::Thp, 0..700) else {
        return;
    };
    rig.ram.blocks()[0].resize(700 * PAGE).unwrap();
    ends(&rig.write(0, 600, 5));
    let freeze = rig.freeze_of(Some(source), rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    ends(&rig.write(0, 600, 9));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    let found = [599, 600, 601].map(|page| value(&picture, 0, page));
    assert_eq!((found, picture.len()), ([2, 5, 2], 700));
}

/// One page that is unplugged.
#[derive(Debug)]
struct Unplugged(usize);

impl Discards for Unplugged {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        let hole = self.0.clamp(range.start, range.end)..(self.0 + 1).clamp(range.start, range.end);
        [range.start..hole.start, hole.end..range.end]
            .into_iter()
            .filter(|range| !range.is_empty())
            .for_each(part);
    }
}

#[test]
fn what_is_unplugged_is_not_asked_of_the_source() {
    let _alone = alone();
    let blocks = [(1024, Backing::Anonymous, PageKind::Small)];
    let Some(rig) = Rig::with(&blocks, 2, Some(Arc::new(Unplugged(33)))) else {
        return;
    };
    let mut source = Source::new(&rig, 0..600);
    source.broken = Some(33);
    let source = Arc::new(source);
    source.serve(&rig);
    let freeze = rig.freeze_of(Some(source), rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    let (picture, zeros) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!((picture.len(), zeros), (599, 424));
}
