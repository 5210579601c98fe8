//! Bringing a machine back from a snapshot file.
//!
//! [`RestoreFile::open`] reads everything but pages. [`restore_ram`] then makes RAM in one of
//! three ways ([`RestoreMode`]) and the caller builds his machine on it: the pages are served, or
//! there, before anything can touch them.
//!
//! A file that a machine runs from is not to be written to. It may be renamed, unlinked, or replaced
//! by another one that takes its name: what is open stays what it was. Whoever does write to it is
//! noticed:
//!
//! | mode | file with checksums | without |
//! |---|---|---|
//! | eager | no page is taken that was not saved | none that was read after the file was written to |
//! | lazy | the same, to the end | the same, to the end |
//! | map | noticed within a second; until then a page may be the file's new one | the same |
//!
//! A read that fails (a disk or a server that is away) is tried again, for
//! [`RestoreOptions::retry`]. Then the caller is told, who stops the machine, and may let it go on
//! when the file is back.

mod eager;
mod error;
mod file;
mod filler;
mod identity;
mod map;
mod watch;

use std::sync::Arc;
use std::time::Duration;

pub use paguro_pager::{Prefetch, Waiters};
use paguro_ram::{BlockConfig, GuestRam, RamBlock};
use paguro_sys::Host;

use crate::Memory;

pub use error::RestoreError;
pub use file::RestoreFile;
pub use filler::{Failure, Filler};
pub use watch::MapWatch;

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

/// How RAM comes back, in detail. [`RestoreOptions::new`] gives what most want.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Which way.
    pub mode: RestoreMode,
    /// With [`RestoreMode::Lazy`]: pages that nobody waits for.
    pub prefetch: Prefetch,
    /// Threads that read.
    pub threads: usize,
    /// How long a read that fails, and may go well the next time, is tried again.
    pub retry: Duration,
    /// What this host can do; the [`Memory`] that is made knows it from here.
    pub host: Host,
    /// Whether faults on this RAM are taken in the kernel (KVM): see
    /// [`Machine::faults_in_kernel`](crate::machine::Machine::faults_in_kernel).
    pub faults_in_kernel: bool,
}

impl RestoreOptions {
    /// All of it comes back in the background, by two threads that try a read again for 30 s, and
    /// faults may be taken in the kernel.
    pub fn new(mode: RestoreMode, host: Host) -> Self {
        Self {
            mode,
            prefetch: Prefetch::Unlimited,
            threads: 2,
            retry: Duration::from_secs(30),
            host,
            faults_in_kernel: true,
        }
    }
}

/// RAM that came back, or is coming.
#[derive(Debug)]
pub struct Restored {
    /// The RAM and the engine's side of it, which the machine keeps
    /// ([`Board::memory`](crate::machine::Board::memory)): with [`RestoreMode::Lazy`] it owns the
    /// userfaultfd, and a page that has not arrived when that closes reads as zeros.
    pub memory: Arc<Memory>,
    /// What fills it, with [`RestoreMode::Lazy`].
    pub filler: Option<Arc<Filler>>,
    /// What watches the file, with [`RestoreMode::Map`]; `memory` keeps it, too.
    pub watch: Option<Arc<MapWatch>>,
}

/// Makes RAM of the blocks in `layout` with the content of `file`. `on_failure` is called, in a
/// thread of the engine, when a page cannot be had after the machine runs, or the file is another
/// one: it must stop the machine before it returns. For good if the error stays
/// ([`SourceError::may_pass`](paguro_pager::SourceError::may_pass)); otherwise it may answer
/// [`Waiters::Keep`], and let the machine go on later, with [`Filler::renew`] or [`MapWatch::renew`].
/// The machine keeps the memory, and the memory keeps `on_failure`: give it a
/// [`Weak`](std::sync::Weak) of the machine, or neither ever goes.
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
        let (ram, watch) = map::map(file, &layout, options, on_failure)?;
        let memory = Memory::new(options.host, ram);
        memory.set_watch(watch.clone(), options.retry);
        return Ok(Restored {
            memory,
            filler: None,
            watch: Some(watch),
        });
    }
    let blocks = layout
        .into_iter()
        .map(RamBlock::new)
        .collect::<Result<Vec<_>, _>>();
    let ram = GuestRam::new(blocks.map_err(RestoreError::Ram)?);
    let memory = Memory::new(options.host, ram);
    let filler = match options.mode {
        RestoreMode::Lazy => Some(filler::start(file, &memory, options, on_failure)?),
        _ => {
            eager::read(file, memory.ram(), options.threads, options.retry)?;
            None
        }
    };
    Ok(Restored {
        memory,
        filler,
        watch: None,
    })
}
