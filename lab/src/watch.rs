//! Never two running: the counters of both guests, looked at all the time.
//!
//! The destination's counter is read first, then the source's. So a source whose counter moves in a
//! look *after* the one that showed the destination's moving has run after the destination did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::{Mutex, MutexGuard};

use crate::ProgressFile;

const PERIOD: Duration = Duration::from_micros(200);

/// A thread that looks; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    looks: u64,
    there_ran: bool,
    both: Option<String>,
}

impl Watch {
    /// Begins to look at a source, here, and a destination, there.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub fn start(here: Arc<ProgressFile>, there: Arc<ProgressFile>) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        let look = move || {
            let mut before = (there.total_writes(), here.total_writes());
            while !own.end.load(Ordering::Acquire) {
                let now = (there.total_writes(), here.total_writes());
                let mut seen = own.seen.lock();
                if seen.there_ran && now.1 != before.1 {
                    let text = format!("the source ran from {} to {}", before.1, now.1);
                    seen.both.get_or_insert(text);
                }
                seen.there_ran |= now.0 != before.0;
                seen.looks += 1;
                drop(seen);
                before = now;
                std::thread::sleep(PERIOD);
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned());
        Ok(Self {
            shared,
            thread: Some(thread.spawn(look)?),
        })
    }

    /// Whether the destination has run so far.
    pub fn there_ran(&self) -> bool {
        self.look().there_ran
    }

    /// It is dead, and an operator has said that the source may run.
    pub fn there_is_dead(&self) {
        self.look().there_ran = false;
    }

    /// Never did both.
    ///
    /// # Errors
    ///
    /// They did.
    pub fn check(&self) -> Result<()> {
        match &self.look().both {
            Some(both) => bail!("two guests ran: {both} after the destination had run"),
            None => Ok(()),
        }
    }

    /// After two whole looks.
    fn look(&self) -> MutexGuard<'_, Seen> {
        let until = self.shared.seen.lock().looks + 2;
        loop {
            let seen = self.shared.seen.lock();
            if seen.looks >= until {
                return seen;
            }
            drop(seen);
            std::thread::sleep(PERIOD);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            thread.join().ok();
        }
    }
}
