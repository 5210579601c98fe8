//! Bytes for somebody outside who may not take them: a terminal, a pipe, a file on a slow disk.
//!
//! Whoever has something to say (a vCPU with a byte of its console, a thread with a line of a log)
//! must not stand still because nobody listens. So it only puts bytes into a buffer, whose size is
//! bounded, and a thread of the spool's own writes them out, and waits where there is to be waited.
//! What finds no room, and what cannot be written, is lost and counted.
//!
//! `O_NONBLOCK` would not do instead: it belongs to the open file, which others share (the terminal
//! of a shell), and regular files do not heed it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes written at once: as many as a pipe takes whole, so that room is made as they are taken.
const CHUNK_BYTES: usize = 4096;

/// A buffer and the thread that empties it. Dropping it lets the thread write what is left, and
/// does not wait for that: see [`Spool::flush`].
#[derive(Debug)]
pub struct Spool(Arc<Shared>);

/// What became of the bytes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolCounts {
    /// Taken from the buffer by whoever they are for.
    pub written_bytes: u64,
    /// Lost: for want of room, or because they could not be written.
    pub lost_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    room_bytes: usize,
    /// Something is there to be written, or nothing more will come.
    filled: Condvar,
    /// All is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is just being written stands in front, until it is out.
    pending: VecDeque<u8>,
    counts: SpoolCounts,
    closed: bool,
}

impl Spool {
    /// A spool of so many bytes to a descriptor, and its thread of this name.
    ///
    /// # Errors
    ///
    /// The host has no thread left.
    pub fn start(name: &str, to: OwnedFd, room_bytes: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            room_bytes,
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writer = shared.clone();
        crate::NewThread::named(name.to_owned()).spawn(move || writer.write_out(&to))?;
        Ok(Self(shared))
    }

    /// Puts bytes into the buffer, all or none of them; whether there was room. Never waits for
    /// whoever they are for.
    pub fn put(&self, bytes: &[u8]) -> bool {
        let mut state = self.0.state.lock();
        if state.pending.len() + bytes.len() > self.0.room_bytes {
            state.counts.lost_bytes += bytes.len() as u64;
            return false;
        }
        let was_empty = state.pending.is_empty();
        state.pending.extend(bytes);
        drop(state);
        if was_empty {
            self.0.filled.notify_one();
        }
        true
    }

    /// What became of the bytes so far.
    pub fn counts(&self) -> SpoolCounts {
        self.0.state.lock().counts
    }

    /// Waits until all is written, but not for ever; whether it is.
    pub fn flush(&self, at_most: Duration) -> bool {
        let mut state = self.0.state.lock();
        let left = |state: &mut State| !state.pending.is_empty();
        self.0.emptied.wait_while_for(&mut state, left, at_most);
        state.pending.is_empty()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.filled.notify_one();
    }
}

impl Shared {
    /// The thread.
    fn write_out(&self, to: &OwnedFd) {
        let mut chunk = [0; CHUNK_BYTES];
        while let Some(bytes) = self.take(&mut chunk) {
            let bytes = &chunk[..bytes];
            let mut at = 0;
            while at < bytes.len() {
                match rustix::io::write(to, &bytes[at..]) {
                    Ok(count) => {
                        at += count;
                        self.done(count, true);
                    }
                    Err(Errno::INTR) => {}
                    // Whoever shares the open file has set it so.
                    Err(Errno::AGAIN) => {
                        let mut ready = [PollFd::new(to, PollFlags::OUT)];
                        let _ = poll(&mut ready, None);
                    }
                    Err(_) => {
                        self.done(bytes.len() - at, false);
                        at = bytes.len();
                    }
                }
            }
        }
    }

    /// Waits for bytes and gives them; none when nothing more will come.
    fn take(&self, chunk: &mut [u8]) -> Option<usize> {
        let mut state = self.state.lock();
        while state.pending.is_empty() {
            if state.closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
        let first = state.pending.as_slices().0;
        let bytes = first.len().min(chunk.len());
        chunk[..bytes].copy_from_slice(&first[..bytes]);
        Some(bytes)
    }

    /// Of the bytes in hand so many are out, or lost.
    fn done(&self, bytes: usize, written: bool) {
        let mut state = self.state.lock();
        state.pending.drain(..bytes);
        let counts = &mut state.counts;
        let counter = if written {
            &mut counts.written_bytes
        } else {
            &mut counts.lost_bytes
        };
        *counter += bytes as u64;
        if state.pending.is_empty() {
            self.emptied.notify_all();
        }
    }
}
