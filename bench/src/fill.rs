//! Guest RAM that is there although the guest need not have touched it: written from outside,
//! through `/proc/PID/mem`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use paguro_lab::Machine;
use paguro_lab::machine::Ram;
use paguro_workload::layout::AREA_START;

/// Which part of RAM is written to. What lies below the workload's area is the guest's own.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// From the start of each block up to this share of it.
    pub share: f64,
    /// Of each of so many bytes ...
    pub step_bytes: u64,
    /// ... the first so many.
    pub bytes: u64,
}

impl Part {
    /// All bytes of that share.
    pub fn dense(share: f64) -> Self {
        Self {
            share,
            step_bytes: 1 << 20,
            bytes: 1 << 20,
        }
    }
}

/// Fills a part of the machine's RAM with something that is not zero.
pub fn fill(machine: &mut Machine, part: Part) -> Result<()> {
    let Ram { pid, blocks } = machine.ram()?;
    let path = format!("/proc/{pid}/mem");
    let memory = File::options().read(true).write(true).open(&path);
    let memory = memory.with_context(|| format!("cannot open {path}"))?;
    let content: Vec<u8> = (0..part.bytes).map(|at| (at / 7) as u8 | 1).collect();
    for block in blocks {
        let from = AREA_START.saturating_sub(block.gpa);
        let to = (block.len as f64 * part.share) as u64;
        let mut at = from.next_multiple_of(part.step_bytes);
        while at < to {
            let length = part.bytes.min(to - at) as usize;
            memory
                .write_all_at(&content[..length], block.host_address + at)
                .context("cannot write to the guest's memory")?;
            at += part.step_bytes;
        }
    }
    Ok(())
}

/// Forgets the peak of the process's resident memory so far.
pub fn reset_peak(machine: &Machine) -> Result<()> {
    let path = format!("/proc/{}/clear_refs", machine.pid());
    std::fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}
