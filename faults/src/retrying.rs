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
        events[..count]
            .iter()
            .for_each(|event| self.take_in(*event));
    }

    /// What was given back is noted at once, as long as it does not take waiting. Everything else is a
    /// reader's; so is a handler that panics over it, because it is let go by placing and releasing pages,
    /// and the caller may hold the locks of both.
    fn take_in(&self, event: Event) {
        let handlers = self.gate.try_read();
        let is_noted = match (event, &handlers) {
            (Event::Removed { start, end }, Some(handlers)) => {
                reader::note_removed(self, handlers, start, end).is_none()
            }
            _ => false,
        };
        if !is_noted {
            self.backlog.lock().push_back(event);
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use paguro_ram::{Backing, BlockConfig, GuestRam, Located, PageKind, RamBlock};
    use paguro_sys::{Fallbacks, Host, Placed};
    use paguro_testkit::{ends, must_end, run, skipped, wait_until};

    use super::*;
    use crate::{MissingHandler, Outcome, Use};

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
            if Instant::now() < self.until {
                Err(UffdError::Again)
            } else {
                Ok(())
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

    /// Panics over what was given back; then it lets go who waits.
    #[derive(Default)]
    struct Panics {
        told: AtomicUsize,
    }

    impl MissingHandler for Panics {
        fn missing(&self, faults: &Faults, at: Located) {
            faults.answer_with_zeros(at);
        }

        fn removed(&self, _: &Faults, _: usize, _: Range<usize>) {
            panic!("on purpose");
        }

        fn broken(&self, faults: &Faults, at: Located) {
            faults.answer_with_zeros(at);
            self.told.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// He would wait for who waits for him.
    #[test]
    fn a_handler_that_panics_places_nothing_in_the_middle_of_a_placement() {
        let _ends = must_end();
        let Some(faults) = faults() else { return };
        let handler = Arc::new(Panics::default());
        faults.register(0, Use::Missing).unwrap();
        faults.barrier().missing = Some(handler.clone());
        let pages = faults.block(0).addresses_of(&(0..1));
        let (start, end) = (pages.start, pages.end);
        // The middle of a placement, and a freeze that waits for its end.
        let placing = faults.placing.read();
        let freezes = faults.clone();
        let freeze = std::thread::spawn(move || freezes.protect_placements());
        wait_until("a freeze waits", || faults.placing.try_read().is_none());
        let refused = faults.clone();
        ends(&run(move || refused.take_in(Event::Removed { start, end })));
        drop(placing);
        freeze.join().unwrap();
        wait_until("a reader tells it", || {
            handler.told.load(Ordering::SeqCst) == 1
        });
    }
}
