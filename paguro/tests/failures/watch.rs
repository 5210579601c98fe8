//! Never two running: the counters of both guests, looked at all the time.
//!
//! The destination's counter is read first, then the source's. So a source whose counter moves in
//! a look *after* the one that showed the destination's moving has run after the destination did.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use paguro_workload::progress::WRITES;

const PERIOD: Duration = Duration::from_micros(200);

/// A thread that looks. Dropping it ends it.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    looks: AtomicU64,
    /// The machines whose counter moved, since nobody is known to be dead.
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    destination_ran: bool,
    both: Option<String>,
}

/// The counter of a guest; 0 before it runs.
pub fn writes(progress: &File) -> u64 {
    let mut word = [0; 8];
    match progress.read_exact_at(&mut word, WRITES as u64) {
        Ok(()) => u64::from_ne_bytes(word),
        Err(_) => 0,
    }
}

impl Watch {
    pub fn start(source: &Path, destination: &Path) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            seen: Mutex::default(),
        });
        let (source, destination) = (
            File::open(source).unwrap(),
            File::open(destination).unwrap(),
        );
        let own = shared.clone();
        let look = move || {
            let mut before = (writes(&destination), writes(&source));
            while !own.stop.load(Ordering::Acquire) {
                let now = (writes(&destination), writes(&source));
                let mut seen = own.seen.lock().unwrap();
                if seen.destination_ran && now.1 != before.1 {
                    let text = format!(
                        "the source ran from {} to {} after the destination ran (now at {})",
                        before.1, now.1, now.0
                    );
                    seen.both.get_or_insert(text);
                }
                seen.destination_ran |= now.0 != before.0;
                drop(seen);
                before = now;
                own.looks.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(PERIOD);
            }
        };
        let thread = Some(std::thread::spawn(look));
        Self { shared, thread }
    }

    /// Waits for two whole looks.
    fn look(&self) {
        let until = self.shared.looks.load(Ordering::Acquire) + 2;
        while self.shared.looks.load(Ordering::Acquire) < until {
            std::thread::sleep(PERIOD);
        }
    }

    /// Both ran at the same time, or in turns.
    pub fn check(&self) -> Result<(), String> {
        self.look();
        match &self.shared.seen.lock().unwrap().both {
            None => Ok(()),
            Some(both) => Err(format!("two running: {both}")),
        }
    }

    /// The destination is known to be dead, and an operator has said so: the source may run.
    pub fn destination_is_dead(&self) -> Result<(), String> {
        self.check()?;
        self.shared.seen.lock().unwrap().destination_ran = false;
        Ok(())
    }

    pub fn destination_ran(&self) -> bool {
        self.look();
        self.shared.seen.lock().unwrap().destination_ran
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
