//! What sockets take with no engine behind them: the same bytes, from memory to memory.
//!
//! Each connection has a thread that writes its share out of memory that is there, in pieces of
//! 512 KiB, and one that reads it to its place. The memory that is read into is either *present*, as
//! the destination's is when a page comes for the second time, or *fresh*, as it is at first: then
//! the host must hand it out, which on some machines costs more than the bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use paguro_lab::Channel;
use paguro_sys::{Mapping, page_size};

const PIECE_BYTES: usize = 512 << 10;

/// The memory that is read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// All of it was touched before.
    Present,
    /// None of it was.
    Fresh,
}

/// One way of a connection.
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for End {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn connect(channel: Channel) -> Result<(End, End)> {
    Ok(match channel {
        Channel::Unix => {
            let (out, into) = UnixStream::pair()?;
            (End::Unix(out), End::Unix(into))
        }
        Channel::Tcp => {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            let out = TcpStream::connect(listener.local_addr()?)?;
            out.set_nodelay(true)?;
            (End::Tcp(out), End::Tcp(listener.accept()?.0))
        }
    })
}

/// How long `bytes` bytes take over so many connections at once.
pub fn send(channel: Channel, bytes: usize, connections: usize, into: Into) -> Result<Duration> {
    let share = (bytes / connections).next_multiple_of(page_size());
    let from = filled(share);
    let mut ways = Vec::new();
    for _ in 0..connections {
        let place = match into {
            Into::Present => filled(share),
            // Zeroed memory of that size is a mapping of its own, and absent.
            Into::Fresh => vec![0; share],
        };
        ways.push((connect(channel).context("cannot connect sockets")?, place));
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((mut out, mut end), mut place) in ways {
            let from = &from;
            let write = move || -> std::io::Result<Instant> {
                for piece in from.chunks(PIECE_BYTES) {
                    out.write_all(piece)?;
                }
                Ok(Instant::now())
            };
            let read = move || -> std::io::Result<Instant> {
                for piece in place.chunks_mut(PIECE_BYTES) {
                    end.read_exact(piece)?;
                }
                // What it takes to give the memory back is not counted.
                Ok(Instant::now())
            };
            threads.push(scope.spawn(write));
            threads.push(scope.spawn(read));
        }
        let mut last = start;
        for thread in threads {
            match thread.join() {
                Ok(done) => last = last.max(done.context("raw sockets")?),
                Err(_) => bail!("a thread of raw sockets panicked"),
            }
        }
        Ok(last - start)
    })
}

fn filled(bytes: usize) -> Vec<u8> {
    // Nothing that it takes long to make: runs are many.
    vec![0x55; bytes]
}

/// Memory of its own that is there and zero.
pub fn zeros(bytes: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(bytes, false)?;
    let page = vec![0; page_size()];
    for offset in (0..bytes).step_by(page_size()) {
        memory.copy_in(offset, &page);
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_over_both_channels_and_several_connections() {
        for channel in [Channel::Tcp, Channel::Unix] {
            for into in [Into::Present, Into::Fresh] {
                assert!(send(channel, 3 << 20, 2, into).unwrap() > Duration::ZERO);
            }
        }
    }
}
