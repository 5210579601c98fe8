//! Threads that keep all cores busy, as neighbours of a machine do.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

/// Busy until dropped.
#[derive(Debug)]
pub struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// So many for each core, at normal priority.
    pub fn begin(per_core: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut busy = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for index in 0..per_core * cores {
            let stop = busy.stop.clone();
            let work = move || {
                while !stop.load(Ordering::Relaxed) {
                    spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name(format!("busy/{index}"));
            busy.threads.push(thread.spawn(work)?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
