//! RAM of a running VMM, read from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::Memory;

/// A RAM block where a process has it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessBlock {
    /// Guest-physical address.
    pub gpa: u64,
    /// Address in the process.
    pub host_address: u64,
    /// Bytes.
    pub len: u64,
}

/// The RAM of another process, through `/proc/PID/mem`. Its VM must be stopped meanwhile.
///
/// Reading makes absent pages of the process present; where the process serves page faults
/// itself, they are served. It takes the rights of a debugger of that process.
#[derive(Debug)]
pub struct Process {
    memory: File,
    blocks: Vec<ProcessBlock>,
    ram: Vec<(u64, u64)>,
}

impl Process {
    /// The RAM blocks of process `pid`, which are sorted here.
    ///
    /// # Errors
    ///
    /// What opening its memory gave: no such process, or no right to look at it.
    pub fn open(pid: u32, mut blocks: Vec<ProcessBlock>) -> io::Result<Self> {
        blocks.sort_by_key(|block| block.gpa);
        Ok(Self {
            memory: File::open(format!("/proc/{pid}/mem"))?,
            ram: blocks.iter().map(|block| (block.gpa, block.len)).collect(),
            blocks,
        })
    }
}

impl Memory for Process {
    fn ram(&self) -> &[(u64, u64)] {
        &self.ram
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> io::Result<()> {
        let block = self
            .blocks
            .iter()
            .find(|block| gpa >= block.gpa && gpa - block.gpa < block.len)
            .filter(|block| buffer.len() as u64 <= block.len - (gpa - block.gpa))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "outside guest RAM"))?;
        self.memory
            .read_exact_at(buffer, block.host_address + (gpa - block.gpa))
    }
}
