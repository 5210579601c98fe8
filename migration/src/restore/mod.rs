//! Bringing a machine back from a snapshot file.
//!
//! [`RestoreFile::open`] reads everything but pages. [`restore_ram`] then makes RAM in one of
//! three ways ([`RestoreMode`]) and the caller builds his machine on it: the pages are served, or
//! there, before anything can touch them.

mod eager;
mod error;
mod file;
mod filler;
mod map;

use std::sync::Arc;

pub use paguro_pager::Prefetch;
use paguro_ram::{BlockConfig, GuestRam, RamBlock};
use paguro_sys::{BusErrors, Host};

use crate::Memory;

pub use error::RestoreError;
pub use file::RestoreFile;
pub use filler::{Failure, Filler};

/// How RAM comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreMode {
    /// All of it is read before the machine runs; every page is checked.
    Eager,
    /// The file is mapped privately: the kernel reads pages as they are touched. Only the metadata
    /// are checked.
    Map,
    /// Pages are placed through userfaultfd as they are touched, and in the background; every page
    /// is checked.
    Lazy,
}

/// How RAM comes back, in detail.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Which way.
    pub mode: RestoreMode,
    /// With [`RestoreMode::Lazy`]: pages that nobody waits for.
    pub prefetch: Prefetch,
    /// Threads that read.
    pub threads: usize,
    /// What this host can do.
    pub host: Host,
    /// Whether faults on this RAM are taken in the kernel (KVM): see
    /// [`Machine::faults_in_kernel`](crate::machine::Machine::faults_in_kernel).
    pub faults_in_kernel: bool,
}

/// RAM that came back, or is coming.
#[derive(Debug)]
pub struct Restored {
    /// The RAM.
    pub ram: GuestRam,
    /// The engine's side of it. To be kept as long as the RAM is used: with [`RestoreMode::Lazy`]
    /// it owns the userfaultfd, and a page that has not arrived when that closes reads as zeros.
    pub memory: Arc<Memory>,
    /// What fills it, with [`RestoreMode::Lazy`].
    pub filler: Option<Arc<Filler>>,
    /// Watches for pages of the file that cannot be read, with [`RestoreMode::Map`]: when a bell
    /// rings, the machine must be stopped.
    pub bus_errors: Vec<BusErrors>,
}

/// Makes RAM of the blocks in `layout` with the content of `file`. `on_failure` is called (in a
/// thread of the pager, once) when a page cannot be had after the machine runs: it must stop the
/// machine before it returns.
///
/// # Errors
///
/// [`RestoreError`]: the file's blocks are others than `layout`'s, the host cannot, or (with
/// [`RestoreMode::Eager`]) a page is damaged.
pub fn restore_ram(
    file: &Arc<RestoreFile>,
    layout: Vec<BlockConfig>,
    options: &RestoreOptions,
    on_failure: Failure,
) -> Result<Restored, RestoreError> {
    file.match_blocks(&layout)?;
    if options.mode == RestoreMode::Map {
        let (ram, bus_errors) = map::map(file, &layout)?;
        let memory = Memory::new(options.host, ram.clone());
        return Ok(Restored {
            ram,
            memory,
            filler: None,
            bus_errors,
        });
    }
    let blocks = layout
        .into_iter()
        .map(RamBlock::new)
        .collect::<Result<Vec<_>, _>>();
    let ram = GuestRam::new(blocks.map_err(RestoreError::Ram)?);
    let memory = Memory::new(options.host, ram.clone());
    let filler = match options.mode {
        RestoreMode::Lazy => Some(filler::start(file, &memory, options, on_failure)?),
        _ => {
            eager::read(file, &ram, options.threads)?;
            None
        }
    };
    Ok(Restored {
        ram,
        memory,
        filler,
        bus_errors: Vec::new(),
    })
}
