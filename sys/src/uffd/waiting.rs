//! Waiting before the next try of what the kernel refused for now.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Uffd;

/// The first wait, and the longest.
const FIRST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(2);

/// Waits between tries of what answered [`Again`](super::UffdError::Again).
///
/// What is in the way passes in microseconds where this process changes its own address space, or as
/// soon as an event is read. In the memory of another process it may take as long as that process
/// likes: a fork or a move of much memory, events that somebody else is to read. So each wait is twice
/// as long as the last, and ends at once when there is an event to be read.
#[derive(Debug)]
pub struct Waiting {
    next: Duration,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Waiting {
    /// Waits until `uffd` has something to read, and no longer than this step takes: 20 us at first, 2 ms
    /// at most.
    pub fn step(&mut self, uffd: &Uffd) {
        let time = Timespec::try_from(self.next).ok();
        self.next = (self.next * 2).min(LONGEST);
        let mut fds = [PollFd::new(uffd, PollFlags::IN)];
        let told = poll(&mut fds, time.as_ref());
        // A descriptor that is in error is always "ready".
        if told.is_err() || !(fds[0].revents() - PollFlags::IN).is_empty() {
            std::thread::sleep(self.next);
        }
    }
}
