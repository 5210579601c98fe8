use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use paguro_sys::{Mapping, Places};

const PAGE: usize = 4096;

/// Pages out of order, and two that follow each other.
const PAGES: [usize; 5] = [7, 2, 3, 0, 9];

fn places(mapping: &Mapping) -> Places<'_> {
    let mut places = Places::new(mapping);
    for page in PAGES {
        places.push(page * PAGE, PAGE);
    }
    assert_eq!(places.left_bytes(), PAGES.len() * PAGE);
    places
}

fn content(seed: u8) -> Vec<u8> {
    (0..PAGES.len() * PAGE)
        .map(|at| (at / 3) as u8 ^ (at / PAGE) as u8 ^ seed)
        .collect()
}

/// What lies there, in the order of the places.
fn read(mapping: &Mapping) -> Vec<u8> {
    let mut all = vec![0; PAGES.len() * PAGE];
    for (page, to) in PAGES.iter().zip(all.chunks_mut(PAGE)) {
        mapping.copy_out(page * PAGE, to);
    }
    all
}

#[test]
fn bytes_come_to_their_places_in_whatever_pieces() {
    for (seed, piece) in [1, 100, PAGE - 1, PAGE + 1, usize::MAX]
        .into_iter()
        .enumerate()
    {
        let mapping = Mapping::anonymous(10 * PAGE, false).unwrap();
        let (mut from, to) = UnixStream::pair().unwrap();
        let mut places = places(&mapping);
        let mut bytes = content(seed as u8);
        let (copied, received) = (500, bytes.clone());
        places.copy_in(&bytes[..copied]);
        bytes.extend([0xaa; 77]);
        let mut rest = [0; 200];
        let mut behind = 0;
        for piece in bytes[copied..].chunks(piece.min(bytes.len())) {
            from.write_all(piece).unwrap();
            let mut left = piece.len();
            while left > 0 {
                let before = places.left_bytes();
                let got = places.receive(to.as_fd(), &mut rest[behind..]).unwrap();
                behind += got - (before - places.left_bytes());
                left -= got;
            }
        }
        assert_eq!(places.left_bytes(), 0);
        assert_eq!(read(&mapping), received, "pieces of {piece}");
        assert_eq!(rest[..behind], [0xaa; 77]);
        // Nothing went anywhere else.
        assert!(
            [1, 4, 5, 6, 8]
                .iter()
                .all(|page| mapping.is_zero(page * PAGE, PAGE))
        );
        let nothing = places.receive(to.as_fd(), &mut rest).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        drop(from);
        assert_eq!(places.receive(to.as_fd(), &mut rest).unwrap(), 0);
    }
}

#[test]
fn bytes_leave_their_places_behind_a_head() {
    let mapping = Mapping::anonymous(10 * PAGE, false).unwrap();
    places(&mapping).copy_in(&content(9));
    let (from, mut to) = UnixStream::pair().unwrap();
    from.set_nonblocking(true).unwrap();
    let mut head = &b"a head"[..];
    let mut places = places(&mapping);
    let mut wanted = head.to_vec();
    wanted.extend(content(9));
    let mut found = Vec::new();
    while places.left_bytes() > 0 || !head.is_empty() {
        let sent = places.send(from.as_fd(), &mut head).unwrap();
        let mut bytes = vec![0; sent];
        to.read_exact(&mut bytes).unwrap();
        found.extend(bytes);
    }
    assert_eq!(found, wanted);
    // As much as goes, and then nothing; a peer that is gone is an error.
    let full = loop {
        let mut places = self::places(&mapping);
        match places.send(from.as_fd(), &mut &b""[..]) {
            Ok(sent) => assert_eq!(places.left_bytes(), PAGES.len() * PAGE - sent),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    drop(to);
    let gone = self::places(&mapping).send(from.as_fd(), &mut &b""[..]);
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// As many as there may be, with something before or behind; places that overlap get what came last.
#[test]
fn as_many_places_as_fit_and_places_that_overlap() {
    let mapping = Mapping::anonymous(2 * Places::MOST * 64, false).unwrap();
    let (mut from, mut to) = UnixStream::pair().unwrap();
    let apart = || {
        let mut places = Places::new(&mapping);
        (0..Places::MOST).for_each(|at| places.push(128 * at, 64));
        places
    };
    let bytes: Vec<u8> = (0..Places::MOST * 64 + 5).map(|at| at as u8).collect();
    from.write_all(&bytes).unwrap();
    let mut rest = [0; 5];
    let mut places = apart();
    assert_eq!(places.receive(to.as_fd(), &mut rest).unwrap(), bytes.len());
    assert_eq!(rest, bytes[Places::MOST * 64..]);
    let mut head = &rest[..];
    let sent = apart().send(from.as_fd(), &mut head).unwrap();
    let mut back = vec![0; sent];
    to.read_exact(&mut back).unwrap();
    assert!(back[..5] == rest && back[5..] == bytes[..Places::MOST * 64]);

    let mut places = Places::new(&mapping);
    places.push(0, 64);
    places.push(0, 64);
    places.push(32, 0);
    from.write_all(&[1; 64]).unwrap();
    from.write_all(&[2; 64]).unwrap();
    while places.left_bytes() > 0 {
        places.receive(to.as_fd(), &mut []).unwrap();
    }
    assert!(mapping.is_equal(0, &[2; 64]));
    // One is done and another one follows.
    places.push(64, 64);
    places.copy_in(&[3; 64]);
    assert!(mapping.is_equal(64, &[3; 64]));
    places.touch();
}

#[test]
#[should_panic(expected = "outside")]
fn a_place_outside_is_a_bug_of_the_caller() {
    let mapping = Mapping::anonymous(2 * PAGE, false).unwrap();
    Places::new(&mapping).push(PAGE, 2 * PAGE);
}
