//! A page buffer that is full: slow, never stuck, never larger.

use paguro_dirty::{FreezeError, FreezeOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rig::*;

#[test]
fn the_smallest_buffer_makes_progress_for_every_chunk_size() {
    let _alone = alone();
    for chunk_pages in [1, 3, 16, 64, 512] {
        let Some(rig) = Rig::small(4 * 512) else {
            return;
        };
        let options = |buffer_bytes| FreezeOptions {
            chunk_pages,
            buffer_bytes,
            ..rig.options()
        };
        let Err(FreezeError::BufferTooSmall { least, .. }) = rig.freeze(options(1)).map(drop)
        else {
            panic!("a buffer of one byte is enough for {chunk_pages} pages?");
        };
        let refused = rig.freeze(options(least - 1)).map(drop);
        assert!(matches!(refused, Err(FreezeError::BufferTooSmall { .. })));
        (0..4 * 512).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.held(options(least));
        let vandals = Vandals::start(&rig.ram, 4, 9);
        let result = picture(&freeze, 2);
        freeze.end();
        drop(vandals);
        let (picture, zeros) = result.unwrap();
        assert_eq!((picture.len(), zeros), (4 * 512, 0), "{chunk_pages}");
        assert!((0..4 * 512).all(|page| value(&picture, 0, page) == 1));
        let peak = freeze.peak_buffer_bytes();
        assert!(peak > 0 && peak <= least, "{peak} of {least}");
    }
}

#[test]
fn a_machine_of_few_pages_needs_no_more_than_it_is_given() {
    let _alone = alone();
    for pages in [1, 5, 512, 513] {
        for chunk_pages in [1, 512] {
            let Some(rig) = Rig::small(pages) else { return };
            (0..pages).for_each(|page| rig.put(0, page, 1));
            let options = FreezeOptions {
                chunk_pages,
                buffer_bytes: 64 << 20,
                ..rig.options()
            };
            let freeze = rig.held(options);
            let (picture, _) = picture(&freeze, 2).unwrap();
            freeze.end();
            assert_eq!(picture.len(), pages, "{chunk_pages}");
        }
    }
}

#[test]
fn writers_wait_for_room_and_get_it() {
    let _alone = alone();
    let Some(rig) = Rig::small(8 * 512) else {
        return;
    };
    (0..8 * 512).for_each(|page| rig.put(0, page, 1));
    let options = FreezeOptions {
        buffer_bytes: 4 << 20,
        ..rig.options()
    };
    let freeze = rig.held(options);
    // Nobody takes anything away, so this one comes to a stand before it is through.
    let mapping = rig.ram.blocks()[0].mapping().clone();
    let writer = run(move || {
        (0..8 * 512).for_each(|page| mapping.copy_in(page * PAGE, &[2]));
    });
    wait_until("writers to fill the buffer", || {
        freeze.peak_buffer_bytes() >= (4 << 20) - (2 << 20)
    });
    assert!(writer.try_recv().is_err());
    let (picture, _) = picture(&freeze, 1).unwrap();
    ends(&writer);
    // It stood before anything was taken away, and is told of.
    let waits = freeze.buffer_waits();
    assert!(waits.count > 0 && !waits.longest.is_zero() && waits.total >= waits.longest);
    freeze.end();
    assert!((0..8 * 512).all(|page| value(&picture, 0, page) == 1));
    assert!(freeze.peak_buffer_bytes() <= 4 << 20);
}

#[test]
fn who_waits_for_room_is_let_go_by_the_end() {
    let _alone = alone();
    for abandon in [false, true] {
        let Some(rig) = Rig::small(2 * 512) else {
            return;
        };
        (0..2 * 512).for_each(|page| rig.put(0, page, 1));
        let options = FreezeOptions {
            chunk_pages: 16,
            buffer_bytes: 33 * 16 * PAGE,
            ..rig.options()
        };
        let freeze = rig.held(options);
        // All the room there is: a granule of the scan, and one chunk of a fault.
        let mut kept = vec![freeze.next().unwrap().unwrap()];
        ends(&rig.write(0, 512, 2));
        kept.push(freeze.next().unwrap().unwrap());
        assert_eq!(freeze.peak_buffer_bytes(), 33 * 16 * PAGE);
        // Both readers wait for room, so the third event stays where it is.
        let writers = [600, 700, 800].map(|page| rig.write(0, page, 2));
        let unread = || {
            let mut fds = [PollFd::new(rig.faults.uffd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
        };
        wait_until("an event that nobody reads", || {
            (0..10_000).all(|_| unread())
        });
        assert!(writers.iter().all(|writer| writer.try_recv().is_err()));
        let ending = freeze.clone();
        ends(&run(move || {
            if abandon {
                ending.abandon();
                let error = ending.next().unwrap_err();
                assert!(matches!(error, FreezeError::Ended), "{error}");
            }
            ending.end();
        }));
        writers.iter().for_each(ends);
        drop(kept);
    }
}
