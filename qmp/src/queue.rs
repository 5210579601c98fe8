//! What waits for a client to read it: answers of the session, and events of everybody else, in order.
//!
//! Whoever has an event to tell (a thread at work, the machine) must never wait for a client that does
//! not read. So where much waits, events that only pass by are dropped, with a trace. One that ends
//! something, or that tells of a change, is kept; a client for whom even of those too many wait is put
//! out, so that it knows that it has missed something. Answers wait, which stops a client that asks
//! without reading.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that may wait before answers do, and passing events are dropped.
const MANY: usize = 1024;

/// Lines that may wait at all.
const MOST: usize = 2 * MANY;

/// The queue to one client.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    items: VecDeque<Item>,
    /// Nothing more comes.
    closed: bool,
    /// Nobody reads any more.
    gone: bool,
}

#[derive(Debug)]
enum Item {
    /// A line to write, without its newline.
    Line(String),
    /// Tell when all before has been written.
    Flush(SyncSender<()>),
}

/// The client is gone, or was put out.
#[derive(Debug)]
pub(crate) struct Gone;

/// Whether an event may be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// The next of its kind says more.
    Passing,
    /// It may not.
    Lasting,
}

impl Queue {
    /// An answer: waits for room.
    pub(crate) fn answer(&self, line: String) -> Result<(), Gone> {
        let mut inner = self.inner.lock();
        let full = |inner: &mut Inner| inner.items.len() >= MANY && !inner.gone;
        self.changed.wait_while(&mut inner, full);
        if inner.gone {
            return Err(Gone);
        }
        inner.items.push_back(Item::Line(line));
        self.changed.notify_all();
        Ok(())
    }

    /// An event: never waits. Whether it will be told.
    pub(crate) fn event(&self, line: String, weight: Weight) -> bool {
        let mut inner = self.inner.lock();
        let waiting = inner.items.len();
        if inner.gone || (weight == Weight::Passing && waiting >= MANY) {
            return false;
        }
        if waiting >= MOST {
            tracing::warn!("the QMP client reads nothing: it is put out");
            inner.gone = true;
            self.changed.notify_all();
            return false;
        }
        inner.items.push_back(Item::Line(line));
        self.changed.notify_all();
        true
    }

    /// Waits until the client has got all that waits now, but not for ever.
    pub(crate) fn flush(&self, at_most: Duration) {
        let (written, wait) = sync_channel(1);
        let mut inner = self.inner.lock();
        if inner.gone || inner.items.len() >= MOST {
            return;
        }
        inner.items.push_back(Item::Flush(written));
        self.changed.notify_all();
        drop(inner);
        // Whether it was written or not: there is nothing more to do for this client.
        wait.recv_timeout(at_most).ok();
    }

    /// Nothing more comes: the rest is written.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }

    /// Writes what comes until the queue is closed or the client gone, which ends the reading side too.
    pub(crate) fn write_to(&self, mut stream: &UnixStream) {
        while let Some(item) = self.next() {
            match item {
                Item::Line(mut line) => {
                    line.push_str("\r\n");
                    if let Err(error) = stream.write_all(line.as_bytes()) {
                        tracing::debug!(%error, "the QMP client is gone");
                        break;
                    }
                }
                // The one who waits may have given up.
                Item::Flush(written) => drop(written.try_send(())),
            }
        }
        let mut inner = self.inner.lock();
        inner.gone = true;
        // Whoever waits for these gives up.
        inner.items.clear();
        self.changed.notify_all();
        drop(inner);
        stream.shutdown(Shutdown::Both).ok();
    }

    fn next(&self) -> Option<Item> {
        let mut inner = self.inner.lock();
        let empty = |inner: &mut Inner| inner.items.is_empty() && !inner.closed && !inner.gone;
        self.changed.wait_while(&mut inner, empty);
        if inner.gone {
            return None;
        }
        let item = inner.items.pop_front();
        self.changed.notify_all();
        item
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn told(queue: &Queue, weight: Weight) -> bool {
        queue.event("event".to_owned(), weight)
    }

    #[test]
    fn what_ends_something_is_kept_where_what_passes_is_dropped() {
        let queue = Queue::default();
        for _ in 0..MANY {
            assert!(told(&queue, Weight::Passing));
        }
        assert!(!told(&queue, Weight::Passing));
        for _ in MANY..MOST {
            assert!(told(&queue, Weight::Lasting));
        }
        // Rather than that it misses one, the client is put out, and sees it.
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!told(&queue, Weight::Lasting));
        queue.answer("answer".to_owned()).unwrap_err();
        queue.write_to(&ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_rest_is_written_before_the_end() {
        let queue = Queue::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        queue.answer("1".to_owned()).unwrap();
        assert!(told(&queue, Weight::Lasting));
        queue.close();
        queue.write_to(&ours);
        let mut all = String::new();
        theirs.read_to_string(&mut all).unwrap();
        assert_eq!(all, "1\r\nevent\r\n");
    }
}
