//! What a file system takes: plain buffers, written in parallel, with no guest behind them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Bytes in one write: the largest chunk that the engine writes.
const PIECE_BYTES: u64 = 2 << 20;

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// All writes.
    pub write: Duration,
    /// All writes and the sync after them.
    pub sync: Duration,
}

/// Writes `bytes` from plain buffers to a new file in `dir`, in as many threads, each piece at its
/// own place, in the order in which threads come for them, at the priority of the engine's copiers.
pub fn write_plain(dir: &Path, bytes: u64, threads: usize) -> Result<Took> {
    let path = dir.join("plain");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(bytes)?;
    let next = AtomicU64::new(0);
    let write = || -> std::io::Result<()> {
        let piece: Vec<u8> = (0..PIECE_BYTES).map(|at| (at / 7) as u8 | 1).collect();
        loop {
            let at = next.fetch_add(PIECE_BYTES, Ordering::Relaxed);
            if at >= bytes {
                return Ok(());
            }
            let length = PIECE_BYTES.min(bytes - at) as usize;
            file.write_all_at(&piece[..length], at)?;
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a writer panicked")))
        })
    })
    .with_context(|| format!("cannot write {}", path.display()))?;
    let write = start.elapsed();
    file.sync_all()?;
    let sync = start.elapsed();
    std::fs::remove_file(&path)?;
    Ok(Took { write, sync })
}
