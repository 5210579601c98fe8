//! A source that sends a byte a second is never silent, and never done.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use paguro_sys::Places;

use super::direct::Direct;

/// A reader whose reads fail when an element takes too long to come.
pub(super) struct Patience<R> {
    reader: R,
    clock: Clock,
}

/// Since when the element that comes next is waited for.
#[derive(Clone)]
pub(super) struct Clock {
    since: Rc<Cell<Since>>,
    limit: Option<Duration>,
}

#[derive(Clone, Copy)]
enum Since {
    /// No element is waited for.
    Never,
    /// Nothing of it was read yet: most elements are here already, and cost no look at the time.
    Unread,
    At(Instant),
}

impl<R> Patience<R> {
    /// Each element may take `limit`.
    pub(super) fn new(reader: R, limit: Option<Duration>) -> (Self, Clock) {
        let clock = Clock {
            since: Rc::new(Cell::new(Since::Unread)),
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
        self.since.set(Since::Unread);
    }

    /// What is read next may take as long as it likes.
    pub(super) fn rest(&self) {
        self.since.set(Since::Never);
    }

    fn since(&self) -> Option<Instant> {
        match self.since.get() {
            Since::Never => None,
            Since::At(since) => Some(since),
            Since::Unread => {
                let now = Instant::now();
                self.since.set(Since::At(now));
                Some(now)
            }
        }
    }
}

impl<R> Patience<R> {
    /// Reads, unless the element takes too long to come.
    fn patiently(&mut self, read: impl FnOnce(&mut R) -> io::Result<usize>) -> io::Result<usize> {
        let bounds = self.clock.limit.zip(self.clock.since());
        let count = read(&mut self.reader)?;
        match bounds.filter(|(limit, since)| since.elapsed() > *limit) {
            None => Ok(count),
            Some((limit, _)) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the source took more than {:.0} s for one element of the stream",
                    limit.as_secs_f64()
                ),
            )),
        }
    }
}

impl<R: Read> Read for Patience<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.patiently(|reader| reader.read(to))
    }
}

impl<R: Direct> Direct for Patience<R> {
    fn is_direct(&self) -> bool {
        self.reader.is_direct()
    }

    fn receive(&mut self, places: &mut Places<'_>, rest: &mut [u8]) -> io::Result<usize> {
        self.patiently(|reader| reader.receive(places, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte a read, after a while.
    struct Slow;

    const WHILE: Duration = Duration::from_millis(30);

    impl Read for Slow {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(WHILE);
            to[0] = 1;
            Ok(1)
        }
    }

    #[test]
    fn an_element_may_take_its_time_and_no_more() {
        let limit = 50 * WHILE;
        let (mut reader, clock) = Patience::new(Slow, Some(limit));
        let began = Instant::now();
        let mut byte = [0];
        // Each in its time, all in more than one may take.
        while began.elapsed() < limit + 2 * WHILE {
            clock.restart();
            let restarted = Instant::now();
            let read = reader.read_exact(&mut byte);
            assert!(read.is_ok() || restarted.elapsed() >= limit, "{read:?}");
        }
        let error = loop {
            if let Err(error) = reader.read_exact(&mut byte) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn between_elements_nobody_is_impatient() {
        let limit = Some(Duration::from_millis(10));
        let (mut reader, clock) = Patience::new(Slow, limit);
        clock.rest();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        clock.restart();
        assert!(reader.read_exact(&mut byte).is_err());
    }
}
