//! Bringing a machine back from a snapshot file.
//!
//! [`RestoreFile::open`] reads everything but pages. Then RAM gets its content, and the caller builds
//! his machine on it: the pages are served, or there, before anything can touch them.
//!
//! * [`fill`] fills RAM that the VMM made, all at once or page by page ([`RestoreMode::Eager`],
//!   [`RestoreMode::Lazy`]). It must be fresh, and registered with KVM, if at all, only by a call that
//!   touches none of it.
//! * [`restore_ram`] makes the RAM, too, also as a mapping of the file ([`RestoreMode::Map`]).
//!
//! That pages cannot be had is told to whom [`Restored::on_failure`] or [`Filler::on_failure`] names, as
//! soon as there is a machine to stop.
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
mod ear;
mod error;
mod file;
mod filler;
mod fresh;
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
    ///
    /// **Such a machine cannot be saved while it runs**, unless its file is in a tmpfs: of a file on a
    /// disk the kernel tells no userfaultfd what is written. A background snapshot is refused before the
    /// guest is paused, as [`SnapshotError::Freeze`](crate::SnapshotError::Freeze) with
    /// [`Unprotectable`](paguro_dirty::FreezeError::Unprotectable), which names the block, for as long as
    /// the machine lives. What can be done: save it stopped
    /// ([`SnapshotOptions::background`](crate::SnapshotOptions::background) off), migrate it, or bring
    /// machines that are to be saved live back with [`RestoreMode::Lazy`], whose pages come as late, or
    /// [`RestoreMode::Eager`].
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
    /// Whether faults on this RAM are taken in the kernel (KVM): see
    /// [`Machine::faults_in_kernel`](crate::machine::Machine::faults_in_kernel), and give the same answer.
    /// `true` unless set: [`RestoreMode::Lazy`] is then refused to a process that has no right to handle
    /// such faults.
    pub faults_in_kernel: bool,
}

impl RestoreOptions {
    /// All of it comes back in the background, by two threads that try a read again for 30 s, and
    /// faults may be taken in the kernel.
    pub fn new(mode: RestoreMode) -> Self {
        Self {
            mode,
            prefetch: Prefetch::Unlimited,
            threads: 2,
            retry: Duration::from_secs(30),
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
    /// What fills it, with [`RestoreMode::Lazy`]; may be dropped, as `memory` keeps it, too.
    pub filler: Option<Arc<Filler>>,
    /// What watches the file, with [`RestoreMode::Map`]; may be dropped, as `memory` keeps it, too.
    pub watch: Option<Arc<MapWatch>>,
}

impl Restored {
    /// Has `on_failure` hear of pages that cannot be had, and of what it missed so far:
    /// [`Filler::on_failure`], [`MapWatch::on_failure`]. RAM that is all there has no failures.
    pub fn on_failure(&self, on_failure: Failure) {
        if let Some(filler) = &self.filler {
            filler.on_failure(on_failure);
        } else if let Some(watch) = &self.watch {
            watch.on_failure(on_failure);
        }
    }
}

/// Makes RAM of the blocks in `layout`, on this host, with the content of `file`.
///
/// # Errors
///
/// [`RestoreError`]: the file's blocks are others than `layout`'s, the host cannot, or (with
/// [`RestoreMode::Eager`]) a page is damaged.
pub fn restore_ram(
    file: &Arc<RestoreFile>,
    layout: Vec<BlockConfig>,
    host: Host,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    file.match_blocks(layout.iter().map(|block| (block.id.as_str(), block.bytes)))?;
    if options.mode == RestoreMode::Map {
        let (ram, watch) = map::map(file, &layout, options)?;
        let memory = Memory::new(host, ram);
        memory.set_watch(watch.clone(), options.retry);
        return Ok(Restored {
            memory,
            filler: None,
            watch: Some(watch),
        });
    }
    let blocks = layout.into_iter().map(RamBlock::new);
    let blocks = blocks.collect::<Result<Vec<_>, _>>();
    let ram = GuestRam::new(blocks.map_err(RestoreError::Ram)?);
    let memory = Memory::new(host, ram);
    let filler = fill_fresh(file, &memory, options)?;
    Ok(Restored {
        memory,
        filler,
        watch: None,
    })
}

/// Gives RAM that the VMM made the content of `file`. What is returned fills it, page by page, while the
/// machine runs; nothing if all is there already ([`RestoreMode::Eager`]).
///
/// The RAM must be fresh: not written, and for [`RestoreMode::Lazy`] not even touched or populated, because
/// a page that exists never asks for the file's. From when this returns, pages are served: then it may be
/// given to KVM, and the machine be built on it.
///
/// # Errors
///
/// [`RestoreError`], among them [`Blocks`](RestoreError::Blocks): the RAM has other blocks than the file, by
/// name and length; [`NotFresh`](RestoreError::NotFresh): it has content, or may have some (a private
/// mapping of a file; shared memory of which no descriptor is known);
/// [`NotMappable`](RestoreError::NotMappable): with [`RestoreMode::Map`], which replaces RAM and fills none.
/// After a failure with [`RestoreMode::Eager`] the RAM may hold a part of the file, and is of no use.
pub fn fill(
    file: &Arc<RestoreFile>,
    memory: &Arc<Memory>,
    options: &RestoreOptions,
) -> Result<Option<Arc<Filler>>, RestoreError> {
    if options.mode == RestoreMode::Map {
        return Err(RestoreError::NotMappable {
            memory: "RAM that is there already",
        });
    }
    let _busy = memory.begin().ok_or(RestoreError::Busy)?;
    if memory.supply().is_some() {
        return Err(RestoreError::Busy);
    }
    let blocks = memory.ram().blocks().iter();
    file.match_blocks(blocks.map(|block| (block.id(), block.used_bytes())))?;
    fresh::check(memory, options.mode)?;
    fill_fresh(file, memory, options)
}

/// Of the file's blocks, and with nothing in them.
fn fill_fresh(
    file: &Arc<RestoreFile>,
    memory: &Arc<Memory>,
    options: &RestoreOptions,
) -> Result<Option<Arc<Filler>>, RestoreError> {
    match options.mode {
        RestoreMode::Lazy => filler::start(file, memory, options).map(Some),
        _ => {
            eager::read(file, memory.ram(), options.threads, options.retry)?;
            Ok(None)
        }
    }
}
