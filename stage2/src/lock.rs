//! The table lock: readers and writers in the order in which they came.
//!
//! vCPUs that only give a page its write permission back are readers and run side by side; whatever
//! changes the shape of the tree is a writer. First come, first served matters here: a pass that gives
//! the lock up takes a new ticket behind every vCPU already waiting, so each of them gets in, and vCPUs
//! that fault without end cannot keep a pass out.

use crate::sync::{AtomicU32, Ordering};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

pub(crate) struct TicketLock<T> {
    next: AtomicU32,
    /// The ticket that may enter as a reader.
    readable: AtomicU32,
    /// How many tickets are finished: the ticket equal to it may enter as a writer.
    finished: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through guards only; a writer's guard excludes all others, readers
// share `&T` between threads (hence `T: Sync`) and writers move it between them (hence `T: Send`).
unsafe impl<T: Send + Sync> Sync for TicketLock<T> {}
// SAFETY: the lock owns its value, nothing in it is bound to a thread.
unsafe impl<T: Send> Send for TicketLock<T> {}

impl<T> TicketLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            next: AtomicU32::new(0),
            readable: AtomicU32::new(0),
            finished: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    pub(crate) fn read(&self, relax: impl Fn()) -> ReadGuard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.readable.load(Ordering::Acquire) != ticket {
            relax();
        }
        // The next ticket may come in at once if it reads too.
        self.readable.fetch_add(1, Ordering::AcqRel);
        ReadGuard { lock: self }
    }

    pub(crate) fn write(&self, relax: impl Fn()) -> WriteGuard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.finished.load(Ordering::Acquire) != ticket {
            relax();
        }
        WriteGuard { lock: self, ticket }
    }
}

pub(crate) struct ReadGuard<'a, T> {
    lock: &'a TicketLock<T>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: no writer holds the lock while a reader's ticket is unfinished.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.finished.fetch_add(1, Ordering::AcqRel);
    }
}

pub(crate) struct WriteGuard<'a, T> {
    lock: &'a TicketLock<T>,
    ticket: u32,
}

impl<T> WriteGuard<'_, T> {
    /// Whether somebody waits for the lock.
    pub(crate) fn contended(&self) -> bool {
        self.lock.next.load(Ordering::Relaxed) != self.ticket.wrapping_add(1)
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a writer's ticket excludes all others until it is finished.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; the guard is borrowed mutably, so this is the only reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.readable.fetch_add(1, Ordering::AcqRel);
        self.lock.finished.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::sync::{AtomicBool, spin_loop};
    use shuttle::sync::Arc;
    use shuttle::thread;

    /// A writer is alone, readers share, and everybody gets in.
    #[test]
    fn a_writer_excludes_readers_and_writers() {
        shuttle::check_random(
            || {
                let lock = Arc::new(TicketLock::new(AtomicBool::new(false)));
                let readers: Vec<_> = (0..2)
                    .map(|_| {
                        let lock = lock.clone();
                        thread::spawn(move || {
                            for _ in 0..2 {
                                let writing = lock.read(spin_loop);
                                assert!(!writing.load(Ordering::SeqCst));
                                assert!(!writing.load(Ordering::SeqCst));
                            }
                        })
                    })
                    .collect();
                let write = |lock: &TicketLock<AtomicBool>| {
                    let writing = lock.write(spin_loop);
                    assert!(!writing.swap(true, Ordering::SeqCst));
                    assert!(writing.swap(false, Ordering::SeqCst));
                };
                let writer = {
                    let lock = lock.clone();
                    thread::spawn(move || (0..2).for_each(|_| write(&lock)))
                };
                write(&lock);
                readers
                    .into_iter()
                    .for_each(|reader| reader.join().unwrap());
                writer.join().unwrap();
            },
            1000,
        );
    }
}
