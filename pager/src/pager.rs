//! The pager: what it serves, what it is asked, and what it is told.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use paguro_faults::{Arrivals, Faults, FaultsError, MissingHandler, Supply};
use paguro_ram::{Located, PageSet};
use parking_lot::{Condvar, Mutex};

use crate::patience::patiently;
use crate::pool::Wanted;
use crate::trouble::Trouble;
use crate::{PageSource, SourceError};

/// How often it is looked whether there is still somebody to fill.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How fast pages that nobody waits for are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Not at all.
    Off,
    /// At most this many bytes a second.
    Limited(u64),
    /// As fast as they come.
    Unlimited,
}

/// How a pager works.
#[derive(Clone, Copy, Debug)]
pub struct PagerOptions {
    /// Threads that fetch pages somebody waits for.
    pub urgent_threads: usize,
    /// Pages that nobody waits for.
    pub prefetch: Prefetch,
    /// How long it is tried again to get a page that somebody waits for.
    pub retry: Duration,
}

/// What becomes of those who wait for a page that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiters {
    /// They are given zeros: nothing runs any more that would believe them.
    LetGo,
    /// They wait on, and the page is tried again now and then: what they belong to is stopped, and
    /// may go on when the page is there.
    Keep,
}

/// Called in a pager thread when a page that somebody waits for cannot be had: after
/// [`PagerOptions::retry`], or after a second if that is longer where a read of it does not return; or
/// at once if the error stays ([`SourceError::may_pass`]), then also for a page that nobody waits for.
/// Of errors that stay only the first is told, and what is answered to it does not matter: those who
/// wait are let go.
pub type Failure = Box<dyn Fn(&SourceError) -> Waiters + Send + Sync>;

/// Fills RAM from a page source.
pub struct Pager {
    pub(crate) faults: Weak<Faults>,
    pub(crate) source: Arc<dyn PageSource>,
    pub(crate) arrivals: Arrivals,
    pub(crate) wanted: Wanted,
    /// Pages that are at the source only.
    pub(crate) left: AtomicUsize,
    /// Whether pages cannot be had for good.
    pub(crate) failed: AtomicBool,
    pub(crate) failure: Failure,
    pub(crate) told: Mutex<bool>,
    pub(crate) done: Mutex<bool>,
    pub(crate) done_changed: Condvar,
    /// Faults answered so far.
    pub(crate) faults_served: AtomicU64,
    pub(crate) trouble: Trouble,
    pub(crate) prefetch: Prefetch,
    pub(crate) retry: Duration,
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pager({} pages left)", self.left_pages())
    }
}

impl Pager {
    /// Registers all blocks for missing pages and begins to serve them. RAM must be fresh.
    ///
    /// # Errors
    ///
    /// [`FaultsError`]: the host's.
    pub fn start(
        faults: &Arc<Faults>,
        source: Arc<dyn PageSource>,
        options: PagerOptions,
        failure: Failure,
    ) -> Result<Arc<Self>, FaultsError> {
        let blocks = 0..faults.spans().all().len();
        let left = blocks.map(|block| source.has(block).count()).sum();
        let pager = Arc::new(Self {
            faults: Arc::downgrade(faults),
            arrivals: Arrivals::new(faults.spans().clone()),
            source,
            wanted: Wanted::default(),
            left: AtomicUsize::new(left),
            failed: AtomicBool::new(false),
            failure,
            told: Mutex::new(false),
            done: Mutex::new(false),
            done_changed: Condvar::new(),
            faults_served: AtomicU64::new(0),
            trouble: Trouble::default(),
            prefetch: options.prefetch,
            retry: options.retry,
        });
        if let Err(error) = pager.attach(faults, options.urgent_threads) {
            // Nobody may be left waiting for threads that are not there.
            pager.stop();
            pager.arrivals.end(faults);
            return Err(error);
        }
        Ok(pager)
    }

    fn attach(
        self: &Arc<Self>,
        faults: &Arc<Faults>,
        urgent_threads: usize,
    ) -> Result<(), FaultsError> {
        self.arrivals.serve(faults, self.clone())?;
        let spawn = |name: String, body: fn(&Self)| {
            let pager = self.clone();
            paguro_sys::NewThread::named(name)
                .spawn(move || body(&pager))
                .map(drop)
                .map_err(FaultsError::Thread)
        };
        for index in 0..urgent_threads.max(1) {
            spawn(format!("pager/{index}"), Self::serve)?;
        }
        spawn("pager/look".to_owned(), Self::look)?;
        spawn("pager/fill".to_owned(), Self::fill)
    }

    /// Pages that are still at the source only.
    pub fn left_pages(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }

    /// Faults answered so far.
    pub fn faults_served(&self) -> u64 {
        self.faults_served.load(Ordering::Relaxed)
    }

    /// Where the pages come from.
    pub fn source(&self) -> &Arc<dyn PageSource> {
        &self.source
    }

    /// Whether the source failed for good.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Why pages cannot be had at the moment, as long as they are tried again.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.text()
    }

    /// Reads that failed and were, or will be, tried again.
    pub fn failed_reads(&self) -> u64 {
        self.trouble.failed_reads()
    }

    /// All that could not be had is tried again at once, for another [`PagerOptions::retry`]: what
    /// those who wait belong to goes on.
    pub fn renew(&self) {
        self.wanted.renew();
    }

    /// Has pages come, for a caller that can give up waiting. (A thread that touches them cannot.)
    /// Pages that the source has nothing for are left alone.
    ///
    /// # Errors
    ///
    /// The source's, after [`PagerOptions::retry`] or when the caller shall not `go_on`.
    pub fn bring(
        &self,
        block: usize,
        pages: Range<usize>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), SourceError> {
        let unit = self.arrivals.spans().all()[block].unit_pages();
        let whole = pages.start / unit * unit..pages.end.next_multiple_of(unit);
        let mut bytes = Vec::new();
        patiently(self.retry, go_on, || match self.faults.upgrade() {
            Some(faults) => self.fetch(&faults, block, whole.clone(), &mut bytes),
            None => Ok(()),
        })
    }

    /// Whether all of it is here and nothing is registered for it any more.
    pub fn is_done(&self) -> bool {
        *self.done.lock()
    }

    /// Waits for that; false if `time` was not enough.
    pub fn wait_done(&self, time: Duration) -> bool {
        let mut done = self.done.lock();
        let open = |done: &mut bool| !*done;
        self.done_changed.wait_while_for(&mut done, open, time);
        *done
    }

    /// Ends it although pages are missing: the machine is ending. Its threads stop.
    pub fn stop(&self) {
        self.wanted.close();
    }
}

/// Whoever looks at RAM before all has arrived finds the rest at the source.
impl Supply for Pager {
    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn has(&self, block: usize) -> &PageSet {
        self.source.has(block)
    }

    fn read(
        &self,
        block: usize,
        page: usize,
        to: &mut [u8],
        go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        patiently(self.retry, go_on, || {
            self.source.read(block, page..page + 1, to)
        })
        .map_err(io::Error::other)
    }

    fn bring(
        &self,
        block: usize,
        pages: Range<usize>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        Self::bring(self, block, pages, go_on).map_err(io::Error::other)
    }
}

impl MissingHandler for Pager {
    fn missing(&self, faults: &Faults, at: Located) {
        self.arrivals.answer(faults, at, || {
            let known = self.known(at.block, faults.unit_of(at));
            self.source.has(at.block).count_in(known) > 0 && self.wanted.push(at)
        });
    }

    fn removed(&self, _: &Faults, block: usize, pages: Range<usize>) {
        let count = |run| self.count(block, run);
        self.arrivals.given_back(block, pages, count);
    }

    fn broken(&self, faults: &Faults, at: Located) {
        self.give_up(faults, at, &SourceError::Bug);
    }
}
