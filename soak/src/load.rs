//! A busy host: threads that spin on every CPU, and readers of page faults that get what is left.
//!
//! What goes wrong only when a thread is interrupted at a bad moment shows on such a host within a
//! few tries; on an idle one it may take thousands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, setpriority_process};

/// The lowest priority there is.
const LOWEST: i32 = 19;

/// Threads that spin while they are asked to; they end when this is dropped.
pub struct Load {
    spin: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// One thread for each CPU, at rest.
    pub fn new() -> std::io::Result<Self> {
        let mut load = Self {
            spin: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
        };
        let cpus = std::thread::available_parallelism()?.get();
        for _ in 0..cpus {
            let (spin, end) = (load.spin.clone(), load.end.clone());
            let work = move || {
                while !end.load(Ordering::Relaxed) {
                    if spin.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    } else {
                        std::thread::park();
                    }
                }
            };
            let thread = std::thread::Builder::new().name("load".to_owned());
            load.threads.push(thread.spawn(work)?);
        }
        Ok(load)
    }

    /// On or off.
    pub fn set(&self, on: bool) {
        self.spin.store(on, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        self.threads
            .iter()
            .for_each(|thread| thread.thread().unpark());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.wake();
        for thread in self.threads.drain(..) {
            // It cannot panic.
            thread.join().ok();
        }
    }
}

/// Gives the threads of a machine that read page faults the lowest priority, those that are there.
pub fn starve_readers(pid: u32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let number = task.file_name().to_str().and_then(|text| text.parse().ok());
        if let (true, Some(task)) = (name.starts_with("faults/"), number.and_then(Pid::from_raw))
            && let Err(error) = setpriority_process(Some(task), LOWEST)
        {
            tracing::debug!(%error, "a reader keeps its priority");
        }
    }
}
