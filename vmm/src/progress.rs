//! The memory, outside RAM, in which the guest shows how far it is.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use paguro_sys::Mapping;
use paguro_workload::progress::{PROGRESS_BYTES, Progress};

use crate::VmError;

/// The progress memory of all vCPUs: a file that others may map too.
#[derive(Debug)]
pub(crate) struct ProgressMemory {
    mapping: Mapping,
}

impl ProgressMemory {
    /// Makes the file at `path` anew, or a memfd.
    pub(crate) fn new(path: Option<&Path>, cpus: u32) -> Result<Self, VmError> {
        let bytes = PROGRESS_BYTES * cpus as usize;
        let file = match path {
            Some(path) => open(path, bytes as u64).map_err(|source| VmError::File {
                doing: "make the progress file",
                path: path.to_owned(),
                source,
            })?,
            None => memfd(bytes as u64).map_err(VmError::host("make progress memory"))?,
        };
        let mapping = Mapping::shared(file.as_fd(), bytes, false)
            .map_err(|error| VmError::host("map progress memory")(std::io::Error::other(error)))?;
        Ok(Self { mapping })
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The counters of one vCPU.
    pub(crate) fn read(&self, vcpu: u32) -> Progress {
        let start = PROGRESS_BYTES * vcpu as usize;
        Progress::read(|offset| {
            let mut word = [0; 8];
            self.mapping.copy_out(start + offset, &mut word);
            u64::from_ne_bytes(word)
        })
    }
}

fn open(path: &Path, bytes: u64) -> std::io::Result<File> {
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

fn memfd(bytes: u64) -> std::io::Result<File> {
    let file = rustix::fs::memfd_create("progress", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, bytes)?;
    Ok(file.into())
}
