//! A source that sends a byte a second is never silent, and never done.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A reader whose reads fail when an element takes too long to come.
pub(super) struct Patience<R> {
    reader: R,
    clock: Clock,
}

/// Since when the element that comes next is waited for.
#[derive(Clone)]
pub(super) struct Clock {
    since: Rc<Cell<Instant>>,
    limit: Option<Duration>,
}

impl<R> Patience<R> {
    /// Each element may take `limit`.
    pub(super) fn new(reader: R, limit: Option<Duration>) -> (Self, Clock) {
        let clock = Clock {
            since: Rc::new(Cell::new(Instant::now())),
            limit,
        };
        let patience = Self {
            reader,
            clock: clock.clone(),
        };
        (patience, clock)
    }
}

impl Clock {
    /// The next element begins.
    pub(super) fn restart(&self) {
        self.since.set(Instant::now());
    }
}

impl<R: Read> Read for Patience<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(to)?;
        let limit = self.clock.limit;
        match limit.filter(|limit| self.clock.since.get().elapsed() > *limit) {
            None => Ok(count),
            Some(limit) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the source took more than {:.0} s for one element of the stream",
                    limit.as_secs_f64()
                ),
            )),
        }
    }
}
