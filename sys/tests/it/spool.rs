use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::time::Duration;

use paguro_sys::Spool;

/// Long enough that only a test that fails gets there.
const IN_VAIN: Duration = Duration::from_secs(60);

fn spool(room_bytes: usize) -> (Spool, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    (
        Spool::start("a test", writer.into(), room_bytes).unwrap(),
        reader,
    )
}

#[test]
fn what_is_put_comes_out_in_order_and_whole() {
    let (spool, mut reader) = spool(1 << 20);
    let bytes: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
    for piece in bytes.chunks(777) {
        assert!(spool.put(piece));
    }
    // It goes on when it is dropped.
    drop(spool);
    let mut came = Vec::new();
    reader.read_to_end(&mut came).unwrap();
    assert!(came == bytes);
}

/// A pipe that is full, and of how many bytes.
fn full_pipe() -> (PipeReader, PipeWriter, usize) {
    let (reader, writer) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut full = 0;
    while let Ok(count) = rustix::io::write(&writer, &[0; 4096]) {
        full += count;
    }
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer, full)
}

#[test]
fn who_does_not_read_keeps_nobody_waiting_and_what_is_lost_is_counted() {
    let (mut reader, writer, full) = full_pipe();
    let spool = Spool::start("a test", writer.into(), 1000).unwrap();
    // Whole or not at all.
    let put = (0..1000).filter(|_| spool.put(b"seven b")).count();
    assert_eq!(put, 1000 / 7);
    let lost = 7 * (1000 - put as u64);
    assert_eq!(spool.counts().lost_bytes, lost);
    assert!(!spool.flush(Duration::from_millis(1)));
    let mut came = vec![0; full + 7 * put];
    reader.read_exact(&mut came).unwrap();
    assert!(came[full..].chunks(7).all(|piece| piece == b"seven b"));
    assert!(spool.flush(IN_VAIN) && spool.put(b"again"));
    assert!(spool.flush(IN_VAIN));
    let counts = spool.counts();
    assert_eq!(counts.written_bytes, 7 * put as u64 + 5);
    assert_eq!(counts.lost_bytes, lost);
}

#[test]
fn what_cannot_be_written_is_lost_and_counted() {
    let (spool, reader) = spool(1000);
    drop(reader);
    assert!(spool.put(b"to nobody"));
    assert!(spool.flush(IN_VAIN));
    assert_eq!(spool.counts().lost_bytes, 9);
}

#[test]
fn a_descriptor_that_others_made_nonblocking_loses_nothing() {
    let (mut reader, writer) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let spool = Spool::start("a test", writer.into(), 1 << 20).unwrap();
    let bytes = vec![7; 300_000];
    assert!(spool.put(&bytes));
    let mut came = vec![0; bytes.len()];
    reader.read_exact(&mut came).unwrap();
    assert!(came == bytes && spool.flush(IN_VAIN));
    assert_eq!(spool.counts().lost_bytes, 0);
}
