use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use paguro_sys::{Mapping, Places};

const PAGE: usize = 4096;

/// Pages out of order, and two that follow each other.
const PAGES: [usize; 5] = [7, 2, 3, 0, 9];

fn places() -> Places {
    let mut places = Places::new();
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
        let mut places = places();
        let mut bytes = content(seed as u8);
        let (copied, received) = (500, bytes.clone());
        places.copy_in(&mapping, &bytes[..copied]);
        bytes.extend([0xaa; 77]);
        let mut rest = [0; 200];
        let mut behind = 0;
        for piece in bytes[copied..].chunks(piece.min(bytes.len())) {
            from.write_all(piece).unwrap();
            let mut left = piece.len();
            while left > 0 {
                let before = places.left_bytes();
                let got = places
                    .receive(&mapping, to.as_fd(), &mut rest[behind..])
                    .unwrap();
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
        let nothing = places.receive(&mapping, to.as_fd(), &mut rest).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        drop(from);
        assert_eq!(places.receive(&mapping, to.as_fd(), &mut rest).unwrap(), 0);
    }
}

#[test]
fn bytes_leave_their_places_behind_a_head() {
    let mapping = Mapping::anonymous(10 * PAGE, false).unwrap();
    places().copy_in(&mapping, &content(9));
    let (from, mut to) = UnixStream::pair().unwrap();
    from.set_nonblocking(true).unwrap();
    let mut head = &b"a head"[..];
    let mut places = places();
    let mut wanted = head.to_vec();
    wanted.extend(content(9));
    let mut found = Vec::new();
    while places.left_bytes() > 0 || !head.is_empty() {
        let sent = places.send(&mapping, from.as_fd(), &mut head).unwrap();
        let mut bytes = vec![0; sent];
        to.read_exact(&mut bytes).unwrap();
        found.extend(bytes);
    }
    assert_eq!(found, wanted);
    // As much as goes, and then nothing; a peer that is gone is an error.
    let full = loop {
        let mut places = self::places();
        match places.send(&mapping, from.as_fd(), &mut &b""[..]) {
            Ok(sent) => assert_eq!(places.left_bytes(), PAGES.len() * PAGE - sent),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    drop(to);
    let gone = self::places().send(&mapping, from.as_fd(), &mut &b""[..]);
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
#[should_panic(expected = "outside")]
fn a_place_outside_is_a_bug_of_the_caller() {
    let mapping = Mapping::anonymous(2 * PAGE, false).unwrap();
    let (from, _to) = UnixStream::pair().unwrap();
    let mut places = Places::new();
    places.push(PAGE, 2 * PAGE);
    let _ = places.send(&mapping, from.as_fd(), &mut &b""[..]);
}
