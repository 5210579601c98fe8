//! The counters that the guest posts outside its RAM, read from outside its process.
//!
//! They are read with `pread`, not through a mapping: the machine makes the file anew when it
//! starts, and a mapping of it would break at that moment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paguro_workload::progress::{PROGRESS_BYTES, WRITES};
use tempfile::NamedTempFile;

use crate::host;

/// The progress memory of one machine: a file in memory where there is such a place.
#[derive(Debug)]
pub struct ProgressFile {
    file: NamedTempFile,
    vcpus: usize,
}

impl ProgressFile {
    /// An empty one for so many vCPUs, to be given to a machine.
    pub fn create(vcpus: u32) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix("paguro-progress-")
            .tempfile_in(host::memory_dir())?;
        Ok(Self {
            file,
            vcpus: vcpus as usize,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// vCPUs.
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Writes that a vCPU has done since it first ran, restores included; 0 before it runs.
    pub fn writes(&self, vcpu: usize) -> u64 {
        self.word(vcpu, WRITES)
    }

    /// The sum over all vCPUs.
    pub fn total_writes(&self) -> u64 {
        (0..self.vcpus).map(|vcpu| self.writes(vcpu)).sum()
    }

    /// A word of what a vCPU posts; 0 before it posts anything.
    pub(crate) fn word(&self, vcpu: usize, offset: usize) -> u64 {
        let mut word = [0; 8];
        let at = (vcpu * PROGRESS_BYTES + offset) as u64;
        match self.file().read_exact_at(&mut word, at) {
            Ok(()) => u64::from_ne_bytes(word),
            // The machine has not made it yet.
            Err(_) => 0,
        }
    }

    fn file(&self) -> &File {
        self.file.as_file()
    }
}
