//! What the kernel refuses for now.
//!
//! `EAGAIN` means unread events or a changing address space: whoever gets it reads the events and tries
//! again. Where there are none to be read, it is somebody else who must go on before (a thread that
//! forks or moves memory, in this process or in the one whose memory this is; a reader who took the
//! event), and that may take long. So he waits, each time longer ([`Waiting`]).

use paguro_sys::{Event, UffdError, Waiting};

use crate::{Faults, reader};

impl Faults {
    /// Calls until the answer is another one. All ioctls here can be repeated.
    pub(crate) fn retry(&self, call: impl Fn() -> Result<(), UffdError>) -> Result<(), UffdError> {
        let mut waiting = Waiting::default();
        loop {
            match call() {
                Err(UffdError::Again) => self.drain(&mut waiting),
                answer => return answer,
            }
        }
    }

    /// Reads what is unread, and leaves the answer to the readers. Leaving the reading to them too
    /// would be no good: all of them may be in here, each refused because of an event that no one
    /// is left to read, or be kept out by the barrier of whoever is refused. If nothing is, waits.
    pub(crate) fn drain(&self, waiting: &mut Waiting) {
        let mut events = [Event::Other(0); 16];
        let count = self.uffd.read(&mut events).unwrap_or(0);
        if count == 0 {
            return waiting.step(&self.uffd);
        }
        for event in &events[..count] {
            match (*event, self.gate.try_read()) {
                // What was given back is noted at once, as long as it does not take waiting.
                (Event::Removed { start, end }, Some(handlers)) => {
                    reader::removed(self, &handlers, start, end);
                }
                (event, _) => {
                    self.backlog.lock().push_back(event);
                    let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
    use paguro_sys::{Fallbacks, Host, Placed};
    use paguro_testkit::{must_end, skipped};

    use super::*;
    use crate::Outcome;

    /// How long the kernel refuses.
    const REFUSED: Duration = Duration::from_millis(200);
    /// Who spins calls some 100000 times meanwhile, who waits some 100 times.
    const CALLS: usize = 2_000;

    fn faults() -> Option<Arc<Faults>> {
        let host = Host::probe(&Fallbacks::default());
        if !host.can_freeze() {
            skipped("userfaultfd with write-protection is not available to this process");
            return None;
        }
        let block = RamBlock::new(BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: 4096,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        Some(Faults::open(&host, ram, 1).unwrap())
    }

    /// A kernel that refuses for a while, and counts how often it is asked.
    struct Refuses {
        until: Instant,
        calls: Cell<usize>,
    }

    impl Refuses {
        fn new() -> Self {
            Self {
                until: Instant::now() + REFUSED,
                calls: Cell::new(0),
            }
        }

        fn answer(&self) -> Result<(), UffdError> {
            self.calls.set(self.calls.get() + 1);
            match Instant::now() < self.until {
                true => Err(UffdError::Again),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn who_is_refused_waits_and_does_not_spin() {
        let _ends = must_end();
        let Some(faults) = faults() else { return };
        let kernel = Refuses::new();
        faults.retry(|| kernel.answer()).unwrap();
        let calls = kernel.calls.get();
        assert!(calls > 1 && calls < CALLS, "{calls}");
    }

    #[test]
    fn who_places_does_neither() {
        let _ends = must_end();
        let Some(faults) = faults() else { return };
        let kernel = Refuses::new();
        let placed = faults.place_with(0, 0, 4096, |_, _, len| {
            let answer = kernel.answer();
            let bytes = if answer.is_ok() { len } else { 0 };
            Placed { bytes, answer }
        });
        assert_eq!(placed.unwrap(), Outcome::There);
        let calls = kernel.calls.get();
        assert!(calls > 1 && calls < CALLS, "{calls}");
    }
}
