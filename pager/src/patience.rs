//! Trying again what may go well the next time.
//!
//! A disk, a file system on the network or the host's memory may refuse a page now and have it a
//! moment later. Whoever waits for the page loses nothing by waiting longer, and all by being told
//! that there is none. So reads are tried again, soon at first, then ever more rarely, and not for
//! ever: an operator must learn of it.

use std::time::{Duration, Instant};

use crate::SourceError;

/// How long is waited before the second try. Whatever a moment mends is mended by then.
const FIRST: Duration = Duration::from_millis(10);
/// How long is waited between two tries at most: what is back is noticed as soon as that.
const LONGEST: Duration = Duration::from_secs(1);
/// How soon somebody who waits between two tries notices that he is to give up.
const LOOK: Duration = Duration::from_millis(20);

/// How long is waited between tries that fail: twice as long each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST);
        now
    }

    /// How long to wait where nothing is hurried by trying sooner.
    pub(crate) fn longest() -> Duration {
        LONGEST
    }
}

/// Tries until it goes well, until the error is one that stays, until `patience` is over, or until
/// the caller shall not `go_on`.
///
/// # Errors
///
/// The last one.
pub fn patiently<T>(
    patience: Duration,
    go_on: &mut dyn FnMut() -> bool,
    mut attempt: impl FnMut() -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let mut since: Option<Instant> = None;
    let mut backoff = Backoff::default();
    loop {
        let error = match attempt() {
            Err(error) if error.may_pass() => error,
            done => return done,
        };
        let begun = *since.get_or_insert_with(Instant::now);
        let next = Instant::now() + backoff.next();
        loop {
            if begun.elapsed() >= patience || !go_on() {
                return Err(error);
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK));
        }
        tracing::debug!(error = chain(&error), "a read is tried again");
    }
}

/// An error with its reasons, in one line.
pub(crate) fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Only a test that fails waits so long.
    const IN_VAIN: Duration = Duration::from_secs(300);

    fn failing(errno: i32) -> SourceError {
        SourceError::Read {
            block: "ram0".to_owned(),
            first: 1,
            end: 2,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    const EIO: i32 = 5;

    #[test]
    fn what_passes_is_tried_until_it_has() {
        let mut left = 4;
        let done = patiently(IN_VAIN, &mut || true, || {
            left -= 1;
            if left > 0 { Err(failing(EIO)) } else { Ok(7) }
        });
        assert!(matches!(done, Ok(7)));
    }

    #[test]
    fn what_stays_is_tried_once() {
        let mut tries = 0;
        let done: Result<(), _> = patiently(IN_VAIN, &mut || true, || {
            tries += 1;
            Err(SourceError::Bug)
        });
        assert!(matches!(done, Err(SourceError::Bug)) && tries == 1);
    }

    #[test]
    fn patience_ends_and_so_does_the_wish_to_go_on() {
        let never: Result<(), _> = patiently(Duration::ZERO, &mut || true, || Err(failing(EIO)));
        assert!(never.is_err());
        let asked = std::cell::Cell::new(0);
        let mut go_on = || asked.replace(asked.get() + 1) < 3;
        let ended: Result<(), _> = patiently(IN_VAIN, &mut go_on, || Err(failing(EIO)));
        assert!(ended.is_err() && asked.get() == 4);
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next()).collect();
        assert_eq!((waits[0], waits[1], waits[9]), (FIRST, FIRST * 2, LONGEST));
    }
}
