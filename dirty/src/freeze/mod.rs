//! A freeze, and the chapters of its life.
//!
//! | | | |
//! |---|---|---|
//! | beginning | `registration` | somebody is told of writes to protected pages |
//! | arming | `arming` | rounds over RAM that changes, until little is left |
//! | | `room` | before them, room for the copies that will have to wait |
//! | | `steps`, `pace` | a range is protected by small calls |
//! | the pause | `pause` | the rest is armed, and the epoch changes |
//! | frozen | `fault`, `sizing` | a write has its pages copied first |
//! | | `discard` | so does whoever gives pages back |
//! | | `scan` | all else, in an order of its own |
//! | | `ahead`, `copying`, `check` | how these three copy: read, copy, look again, release |
//! | | `tally` | how much is left |
//! | the end | `end` | what is left is let go |
//!
//! A chapter owns its state and leans on those it needs. What is common to all of them is the
//! `context`: RAM and who tells of its faults, what is known of each block (`picture`), how far the
//! freeze is (`life`). None knows the [`Freeze`], which composes them.

mod context;
mod life;
mod picture;
mod stats;

mod registration;

mod arming;
mod pace;
mod room;
mod steps;

mod pause;

mod ahead;
mod check;
mod copying;
mod discard;
mod fault;
mod scan;
mod sizing;
mod tally;

mod end;

#[cfg(test)]
mod orders;

use std::ops::Range;
use std::sync::Arc;

use paguro_faults::{Faults, ProtectedHandler, Supply};
use paguro_ram::{GuestRam, Located, PageSet};

use crate::{Copied, FreezeError, FreezeOptions, Waits};
use arming::Arming;
use context::Context;
use discard::Discarding;
use fault::Writes;
use picture::Picture;
use scan::Scan;
use tally::Tally;

pub use pause::Standstill;
pub use stats::FreezeStats;

/// A freeze of guest RAM. See the crate documentation for its life.
pub struct Freeze {
    context: Context,
    arming: Arming,
    writes: Writes,
    discarding: Discarding,
    scan: Scan,
    tally: Tally,
}

impl std::fmt::Debug for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Context { life, stats, .. } = &self.context;
        write!(f, "Freeze({:?}, {stats:?})", life.now())
    }
}

impl Freeze {
    /// Prepares a freeze: makes its sets and its page buffer, registers all blocks that the guest
    /// can write, and answers protection faults from now on. Nothing is protected yet.
    ///
    /// Without `faults` nothing is ever protected: the picture of a guest that stands still. `hot`
    /// are the granules of 2 MiB, for each block, that the last freeze saw written.
    ///
    /// # Errors
    ///
    /// [`FreezeError::Unprotectable`], `Mergeable`, `Presence`, `Faults`, `Pagemap`, `Tables`, `Buffer`,
    /// `BufferTooSmall`: nothing is left registered then. `Busy`: another one was not ended yet, and goes on.
    pub fn new(
        faults: Option<Arc<Faults>>,
        ram: GuestRam,
        source: Option<Arc<dyn Supply>>,
        hot: &[PageSet],
        options: FreezeOptions,
    ) -> Result<Arc<Self>, FreezeError> {
        let most = options.most_pages();
        let freeze = Arc::new(Self {
            context: Context::new(faults, ram, source, hot, options)?,
            arming: Arming::default(),
            writes: Writes::new(most),
            discarding: Discarding::default(),
            scan: Scan::default(),
            tally: Tally::default(),
        });
        if let Some(faults) = &freeze.context.faults {
            let mut handlers = faults.barrier();
            if handlers.protected.is_some() {
                return Err(FreezeError::Busy);
            }
            handlers.protected = Some(freeze.clone());
        }
        if let Err(error) = registration::register(&freeze.context) {
            freeze.end();
            return Err(error);
        }
        Ok(freeze)
    }

    /// Arms guest RAM while the guest runs: all that exists, then in rounds what was released or
    /// touched meanwhile, until little is left. `go_on` is asked between steps.
    ///
    /// # Errors
    ///
    /// Those of arming, and [`FreezeError::Ended`] when `go_on` says no; the freeze must be ended.
    pub fn arm(&self, go_on: impl Fn() -> bool) -> Result<(), FreezeError> {
        self.arming.run(&self.context, &go_on)
    }

    /// Step 4 of a pause: waits until no discard goes on, no event is in hand and no release under
    /// way.
    pub fn barrier(&self) -> Standstill<'_> {
        pause::barrier(&self.context, &self.discarding)
    }

    /// Steps 5 and 6 of a pause: arms what was released or came since, and begins the frozen
    /// epoch. The guest must be at rest. Gives the barrier back, which lets the readers go on.
    ///
    /// # Errors
    ///
    /// Those of arming; the freeze must be ended then.
    pub fn hold(&self, barrier: Standstill<'_>) -> Result<(), FreezeError> {
        pause::hold(&self.context, &self.arming, &self.tally, barrier)
    }

    /// The last look, in the pause. Public only for the version that is broken on purpose.
    #[doc(hidden)]
    pub fn arm_rest(&self) -> Result<(), FreezeError> {
        self.arming.last_look(&self.context)
    }

    /// The next pages to be written: those that a fault has copied come first, then the scan goes
    /// on. `None` when the picture is complete. Called by as many threads as shall copy; waits
    /// while the page buffer is full, or while a fault is still copying the last pages.
    ///
    /// # Errors
    ///
    /// What failed in the freeze, told to the first who asks; [`FreezeError::Ended`] to the others.
    pub fn next(&self) -> Result<Option<Copied>, FreezeError> {
        self.scan.next(&self.context, &self.tally)
    }

    /// Gives pages of a block back by calling `give_back`, without harm to the picture: while
    /// arming they count as released, while frozen they are copied first. Waits for room in the
    /// page buffer, and for copies of others that are under way. Any thread that holds no lock a
    /// vCPU may want; `give_back` must not discard through here.
    ///
    /// # Errors
    ///
    /// What copying ran into; `give_back` was not called then, and the freeze has failed.
    pub fn discard<T>(
        &self,
        block: usize,
        pages: Range<usize>,
        give_back: impl FnOnce() -> T,
    ) -> Result<T, FreezeError> {
        let (context, tally) = (&self.context, &self.tally);
        self.discarding
            .discard(context, tally, block, pages, give_back)
    }

    /// The caller cannot go on: nobody waits for room any more, and writers run on unprotected.
    /// [`Freeze::end`] must follow.
    pub fn abandon(&self) {
        self.context.life.fail(FreezeError::Ended);
    }

    /// The end, from any state: whoever waits is released, protection and registration are taken away
    /// in small steps. Safe to call at any moment, from any state, and again; the guest runs on
    /// meanwhile. What cannot be undone is traced: there is nobody to tell who could do more.
    pub fn end(&self) {
        // Once: by the second time another freeze may be on.
        if self.context.life.end() {
            end::undo(&self.context);
        }
    }

    /// The RAM that it is of.
    pub fn ram(&self) -> &GuestRam {
        &self.context.ram
    }

    /// Numbers so far.
    pub fn stats(&self) -> &FreezeStats {
        &self.context.stats
    }

    /// Bytes of copies that waited at the same time, at most.
    pub fn peak_buffer_bytes(&self) -> usize {
        self.context.buffer.peak_bytes()
    }

    /// Whether a writer waits for room in the page buffer now: whoever makes room must not pace.
    pub fn is_waited_for(&self) -> bool {
        self.context.buffer.is_waited_for()
    }

    /// What writers have waited for room in the page buffer so far.
    pub fn buffer_waits(&self) -> Waits {
        self.context.buffer.waits()
    }

    /// Bytes that the sets occupy.
    pub fn set_bytes(&self) -> usize {
        let blocks = self.context.blocks.iter();
        blocks.map(Picture::size_bytes).sum()
    }

    /// Pages of the picture, discarded ones included; known once it is held.
    pub fn total_pages(&self) -> usize {
        self.tally.total_pages()
    }

    /// Pages of the picture that are not settled yet.
    pub fn left_pages(&self) -> usize {
        self.tally.left_pages()
    }

    /// Granules that were seen written, for each block: where the next freeze begins its scan.
    pub fn written(&self) -> Vec<PageSet> {
        self.context.blocks.iter().map(Picture::written).collect()
    }
}

impl ProtectedHandler for Freeze {
    fn protected(&self, faults: &Faults, at: Located) {
        self.writes
            .answer(&self.context, &self.arming, &self.tally, faults, at);
    }

    fn removed(&self, block: usize, pages: Range<usize>) {
        fault::note_removed(&self.context, block, pages);
    }

    /// What it had claimed is released with all the rest when the freeze is ended, which its failure
    /// brings about.
    fn broken(&self, faults: &Faults, at: Located) {
        fault::give_up(&self.context, faults, at, FreezeError::Bug);
    }
}
