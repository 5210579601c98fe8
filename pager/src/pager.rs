//! The pager and its threads.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

use paguro_faults::{Faults, FaultsError, MissingHandler, Use};
use paguro_ram::{Backing, Located, PageSet};
use paguro_sys::{Pacer, page_size};

use crate::patience::{Backoff, chain, patiently};
use crate::pool::{Want, Wanted};
use crate::{PageSource, SourceError};

/// Pages fetched around one that somebody waits for: 64 KiB.
const AROUND: usize = 16;
/// Pages fetched at once in the background: 512 KiB.
const STRIDE: usize = 128;
/// How often the background looks whether there is still somebody to fill.
const LOOK: Duration = Duration::from_millis(100);
/// A read that takes no longer is not said to hang, however little patience was asked for.
const SILENCE: Duration = Duration::from_secs(1);

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

/// A read that has not returned.
struct Reading {
    block: usize,
    pages: Range<usize>,
    since: Instant,
    /// Whether that was told, as trouble.
    told: bool,
}

/// Fills RAM from a page source.
pub struct Pager {
    faults: Weak<Faults>,
    source: Arc<dyn PageSource>,
    arrived: Vec<PageSet>,
    units: Vec<usize>,
    wanted: Wanted,
    left: AtomicUsize,
    /// Held (shared) while pages are placed and then counted as arrived.
    placing: RwLock<()>,
    failed: AtomicBool,
    failure: Failure,
    told: Mutex<bool>,
    done: Mutex<bool>,
    done_changed: std::sync::Condvar,
    /// Faults answered so far.
    faults_served: AtomicU64,
    /// Reads that failed and were, or will be, tried again.
    failed_reads: AtomicU64,
    /// The last error that may pass, until it has.
    trouble: Mutex<Option<String>>,
    /// Whether there is one.
    troubled: AtomicBool,
    /// Whether there are pages that the background could not get.
    missed: AtomicBool,
    /// Reads that have not returned.
    reading: Mutex<Vec<Reading>>,
    prefetch: Prefetch,
    retry: Duration,
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
        let blocks = faults.ram().blocks();
        let left = (0..blocks.len())
            .map(|block| source.has(block).count())
            .sum();
        let pager = Arc::new(Self {
            faults: Arc::downgrade(faults),
            arrived: blocks
                .iter()
                .map(|block| PageSet::new(block.max_pages()))
                .collect(),
            units: blocks.iter().map(|block| block.unit_pages()).collect(),
            source,
            wanted: Wanted::default(),
            left: AtomicUsize::new(left),
            placing: RwLock::new(()),
            failed: AtomicBool::new(false),
            failure,
            told: Mutex::new(false),
            done: Mutex::new(false),
            done_changed: std::sync::Condvar::new(),
            faults_served: AtomicU64::new(0),
            failed_reads: AtomicU64::new(0),
            trouble: Mutex::new(None),
            troubled: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            reading: Mutex::default(),
            prefetch: options.prefetch,
            retry: options.retry,
        });
        if let Err(error) = pager.attach(faults, options.urgent_threads) {
            // Nobody may be left waiting for threads that are not there.
            pager.stop();
            pager.detach(faults);
            return Err(error);
        }
        Ok(pager)
    }

    fn attach(
        self: &Arc<Self>,
        faults: &Arc<Faults>,
        urgent_threads: usize,
    ) -> Result<(), FaultsError> {
        for block in 0..self.arrived.len() {
            faults.register(block, Use::Missing)?;
        }
        faults.barrier().missing = Some(self.clone());
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

    /// Pages of a block that have arrived.
    pub fn arrived(&self, block: usize) -> &PageSet {
        &self.arrived[block]
    }

    /// Waits until no page is between being placed and being counted as arrived. A page that is
    /// not counted when this returns has not been there for anybody to write before.
    pub fn settle(&self) {
        drop(
            self.placing
                .write()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
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
        lock(&self.trouble).clone()
    }

    /// Reads that failed and were, or will be, tried again.
    pub fn failed_reads(&self) -> u64 {
        self.failed_reads.load(Ordering::Relaxed)
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
        let unit = self.units[block];
        let whole = pages.start / unit * unit..pages.end.next_multiple_of(unit);
        let mut bytes = Vec::new();
        patiently(self.retry, go_on, || match self.faults.upgrade() {
            Some(faults) => self.try_fetch(&faults, block, whole.clone(), &mut bytes),
            None => Ok(()),
        })
    }

    /// Whether all of it is here and nothing is registered for it any more.
    pub fn is_done(&self) -> bool {
        *self
            .done
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for that; false if `time` was not enough.
    pub fn wait_done(&self, time: Duration) -> bool {
        let done = self
            .done
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let (done, _) = self
            .done_changed
            .wait_timeout_while(done, time, |done| !*done)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *done
    }

    /// Ends it although pages are missing: the machine is ending. Its threads stop.
    pub fn stop(&self) {
        self.wanted.close();
    }

    /// The thread of pages that somebody waits for.
    fn serve(&self) {
        paguro_sys::raise_priority();
        let mut bytes = Vec::new();
        while let Some(want) = self.wanted.wait() {
            let at = want.at;
            let Some(faults) = self.faults.upgrade() else {
                return;
            };
            let unit = self.units[at.block];
            let end = faults.block(at.block).max_pages();
            let size = AROUND.max(unit);
            let first = at.page / size * size;
            let around = first..(first + size).min(end);
            let fetched = self.try_fetch(&faults, at.block, around, &mut bytes);
            // Its neighbours may be unreadable or gone; what is waited for is tried alone.
            let fetched = fetched.or_else(|_| {
                let first = at.page / unit * unit;
                self.try_fetch(&faults, at.block, first..first + unit, &mut bytes)
            });
            match fetched {
                Ok(()) => {
                    self.faults_served.fetch_add(1, Ordering::Relaxed);
                    // Also for what was there before we looked, and for whoever asked meanwhile: he is
                    // not queued as long as it is in hand.
                    faults.wake(at.block, faults.unit_of(at));
                    self.wanted.done(&want);
                    self.maybe_over();
                }
                Err(error) if error.may_pass() => self.try_later(&faults, want, &error),
                Err(error) => {
                    self.wanted.done(&want);
                    self.give_up(&faults, at, &error);
                }
            }
        }
    }

    /// Nobody is let go, and no thread waits: others want pages that may be had.
    fn try_later(&self, faults: &Faults, mut want: Want, error: &SourceError) {
        self.note(error);
        let since = *want.failing.get_or_insert_with(Instant::now);
        let late = since.elapsed() >= self.retry || self.source.is_given_up();
        if late && !want.told {
            match (self.failure)(error) {
                Waiters::Keep => want.told = true,
                Waiters::LetGo => {
                    self.wanted.done(&want);
                    return self.let_go(faults, want.at);
                }
            }
        }
        if !self.wanted.put_off(want) {
            // It ends.
            self.place_zeros(faults, want.at);
        }
    }

    /// The thread that reads nothing. A source may neither answer nor refuse, and whoever asks it is held
    /// until it does: a server that is away, a disk whose driver goes on trying. Those who read cannot
    /// tell of that.
    fn look(&self) {
        while self.wanted.sleep(LOOK) {
            let Some(faults) = self.faults.upgrade() else {
                return;
            };
            let patience = self.retry.max(SILENCE);
            for (block, pages, time) in self.newly_silent(patience) {
                self.trouble_is(&silent(&faults, block, pages, time));
            }
            while let Some((at, time)) = self.wanted.overdue(patience) {
                let error = silent(&faults, at.block, faults.unit_of(at), time);
                self.trouble_is(&error);
                if (self.failure)(&error) == Waiters::LetGo {
                    self.let_go(&faults, at);
                }
            }
        }
    }

    /// Reads that have not returned for that long, each once.
    fn newly_silent(&self, patience: Duration) -> Vec<(usize, Range<usize>, Duration)> {
        let mut reading = lock(&self.reading);
        let late = |it: &&mut Reading| !it.told && it.since.elapsed() >= patience;
        let late = reading.iter_mut().filter(late).map(|it| {
            it.told = true;
            (it.block, it.pages.clone(), it.since.elapsed())
        });
        late.collect()
    }

    fn note(&self, error: &SourceError) {
        self.failed_reads.fetch_add(1, Ordering::Relaxed);
        self.trouble_is(error);
    }

    /// Tells of trouble, once until it is over.
    fn trouble_is(&self, error: &SourceError) {
        let text = chain(error);
        self.troubled.store(true, Ordering::Release);
        if lock(&self.trouble).replace(text.clone()).is_none() {
            tracing::warn!(error = text, "pages cannot be had; they are tried again");
        }
    }

    /// The trouble is over when nothing is left that could not be had.
    fn maybe_over(&self) {
        let is_silent = || lock(&self.reading).iter().any(|it| it.told);
        let is_left =
            || self.missed.load(Ordering::Acquire) || self.wanted.is_failing() || is_silent();
        if !self.troubled.load(Ordering::Acquire) || is_left() {
            return;
        }
        self.troubled.store(false, Ordering::Release);
        if lock(&self.trouble).take().is_some() {
            tracing::warn!("pages that could not be had are here");
        }
    }

    /// The thread of all other pages; ends when nothing is left.
    fn fill(&self) {
        let mut pace = Pace::new(self.prefetch);
        if self.prefetch != Prefetch::Off {
            // What could not be had stays for another round.
            let mut backoff = Backoff::default();
            while self.fetch_all(&mut pace, &mut backoff)
                && self.missed.load(Ordering::Acquire)
                && self.wanted.sleep(backoff.next())
            {}
        }
        // Without prefetch the pages come as they are wanted, the last one perhaps never.
        while self.left_pages() > 0 {
            if self.faults.strong_count() == 0 {
                self.wanted.close();
            }
            if !self.wanted.sleep(LOOK) {
                return;
            }
        }
        if !self.has_failed() {
            self.finish();
        }
    }

    /// Fetches all that has not arrived yet, but for what cannot be had; whether it came to the end.
    fn fetch_all(&self, pace: &mut Pace, backoff: &mut Backoff) -> bool {
        let mut bytes = Vec::new();
        let mut missed = false;
        for block in 0..self.arrived.len() {
            let pages = self.source.has(block).pages();
            for first in (0..pages).step_by(STRIDE.max(self.units[block])) {
                let part = first..(first + STRIDE.max(self.units[block])).min(pages);
                let Some(faults) = self.faults.upgrade() else {
                    // The others wait for what nobody will want any more.
                    self.wanted.close();
                    return false;
                };
                if self.wanted.is_closed() || self.has_failed() {
                    return false;
                }
                let before = self.arrived[block].count_in(part.clone());
                let fetched = self.try_fetch(&faults, block, part.clone(), &mut bytes);
                let got = self.arrived[block].count_in(part) - before;
                let wait = match fetched {
                    Ok(()) if got == 0 => continue,
                    Ok(()) => {
                        *backoff = Backoff::default();
                        self.maybe_over();
                        pace.wait_after((got * page_size()) as u64)
                    }
                    Err(error) if error.may_pass() => {
                        self.missed.store(true, Ordering::Release);
                        self.note(&error);
                        missed = true;
                        backoff.next()
                    }
                    Err(error) => {
                        self.give_up(&faults, Located { block, page: first }, &error);
                        return false;
                    }
                };
                drop(faults);
                if !self.idle(wait) {
                    return false;
                }
            }
        }
        self.missed.store(missed, Ordering::Release);
        if !missed {
            self.maybe_over();
        }
        true
    }

    /// Waits, in small steps: whom it fills may be gone long before a slow page is due.
    fn idle(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            if !self.wanted.sleep(rest.min(LOOK)) || self.faults.strong_count() == 0 {
                return false;
            }
        }
    }

    /// All is here: nothing needs to be registered any more.
    fn finish(&self) {
        let Some(faults) = self.faults.upgrade() else {
            return self.wanted.close();
        };
        self.detach(&faults);
        self.wanted.close();
        *self
            .done
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.done_changed.notify_all();
        tracing::debug!("all pages have arrived");
    }

    fn detach(&self, faults: &Faults) {
        for block in 0..self.arrived.len() {
            let breathe = || std::thread::sleep(Duration::from_micros(30));
            let pages = self.arrived[block].pages();
            let parts: Vec<_> = (0..pages)
                .step_by(512)
                .map(|first| first..(first + 512).min(pages))
                .collect();
            if let Err(error) = faults.unregister(block, Use::Missing, &parts, breathe) {
                tracing::error!(%error, "a part of guest RAM stays registered");
            }
        }
        faults.barrier().missing = None;
    }

    /// What of a range the source knows of: a block may be longer here.
    fn known(&self, block: usize, range: Range<usize>) -> Range<usize> {
        let end = range.end.min(self.source.has(block).pages());
        range.start.min(end)..end
    }

    /// [`Self::fetch`]; a panic in it or in the source is an error like others, so that who waits
    /// for the page is let go.
    fn try_fetch(
        &self,
        faults: &Faults,
        block: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let (since, pages) = (Instant::now(), range.clone());
        lock(&self.reading).push(Reading {
            block,
            pages: pages.clone(),
            since,
            told: false,
        });
        let fetched = catch_unwind(AssertUnwindSafe(|| self.fetch(faults, block, range, bytes)));
        let mut reading = lock(&self.reading);
        let its = |it: &Reading| (it.block, &it.pages, it.since) == (block, &pages, since);
        if let Some(at) = reading.iter().position(its) {
            reading.swap_remove(at);
        }
        drop(reading);
        fetched.unwrap_or(Err(SourceError::Bug))
    }

    /// Fetches what of a range has not arrived yet, and places zeros where the source has nothing.
    fn fetch(
        &self,
        faults: &Faults,
        block: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        if self.units[block] > 1 {
            return self.fetch_units(faults, block, range, bytes);
        }
        let page = page_size();
        let (has, arrived) = (self.source.has(block), &self.arrived[block]);
        let mut runs = Vec::new();
        has.runs(self.known(block, range), |run| {
            arrived.gaps(run, |gap| runs.push(gap));
        });
        for run in runs {
            bytes.resize(run.len() * page, 0);
            self.source.read(block, run.clone(), bytes)?;
            self.put(faults, block, run, bytes)?;
        }
        Ok(())
    }

    /// On hugetlbfs 512 pages come together, zeros between them included.
    fn fetch_units(
        &self,
        faults: &Faults,
        block: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let (page, unit) = (page_size(), self.units[block]);
        for first in range.step_by(unit) {
            let whole = first..first + unit;
            let has = self.source.has(block);
            let known = self.known(block, whole.clone());
            if has.count_in(known.clone()) == 0 || self.arrived[block].contains(first) {
                continue;
            }
            bytes.clear();
            bytes.resize(unit * page, 0);
            let mut runs = Vec::new();
            has.runs(known, |run| runs.push(run));
            for run in runs {
                let part = (run.start - first) * page..(run.end - first) * page;
                self.source.read(block, run, &mut bytes[part])?;
            }
            self.put(faults, block, whole, bytes)?;
        }
        Ok(())
    }

    /// A page whose mapping changed counts as arrived: nobody can use it. One that the host has no
    /// room for does not: whoever asked for it would be given zeros for its content.
    ///
    /// What was given back while it was read counts as arrived, and stays zero: only what is still to
    /// come is placed. That leaves the moment between this look and the placing. It takes an event
    /// that is read and pages that are dropped in it, and nothing here could hold it off: placing may
    /// have to read the very event.
    fn put(
        &self,
        faults: &Faults,
        block: usize,
        run: Range<usize>,
        bytes: &[u8],
    ) -> Result<(), SourceError> {
        let _placing = self
            .placing
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let (page, mut to_come) = (page_size(), Vec::new());
        if self.units[block] == 1 {
            self.arrived[block].gaps(run.clone(), |gap| to_come.push(gap));
        } else if !self.arrived[block].contains(run.start) {
            // Of the pool a whole one is given back, or nothing of it.
            to_come.push(run.clone());
        }
        for part in to_come {
            let content = &bytes[(part.start - run.start) * page..(part.end - run.start) * page];
            faults
                .place(block, part.start, content)
                .map_err(SourceError::Place)?;
            self.count(block, part);
        }
        Ok(())
    }

    /// Counts pages as arrived, each once.
    fn count(&self, block: usize, run: Range<usize>) {
        let mut got = 0;
        self.arrived[block].claim(run, |run| {
            got += self.source.has(block).count_in(self.known(block, run));
        });
        self.left.fetch_sub(got, Ordering::AcqRel);
    }

    fn give_up(&self, faults: &Faults, at: Located, error: &SourceError) {
        self.failed.store(true, Ordering::Release);
        {
            // Whoever fails while the first is being told waits too, before he lets anybody go.
            let mut told = self
                .told
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            if !std::mem::replace(&mut *told, true) {
                tracing::error!(%error, "a page cannot be had");
                (self.failure)(error);
            }
        }
        self.place_zeros(faults, at);
    }

    /// What was told was answered by that nothing runs any more.
    fn let_go(&self, faults: &Faults, at: Located) {
        self.failed.store(true, Ordering::Release);
        self.place_zeros(faults, at);
    }

    fn place_zeros(&self, faults: &Faults, at: Located) {
        if let Err(error) = faults.place_zeros(at.block, faults.unit_of(at)) {
            faults.again(at, &error);
        }
    }
}

impl MissingHandler for Pager {
    fn missing(&self, faults: &Faults, at: Located) {
        let unit = faults.unit_of(at);
        let known = self.known(at.block, unit.clone());
        let wanted = self.source.has(at.block).count_in(known) > 0;
        if wanted && !self.arrived[at.block].contains(at.page) && self.wanted.push(at) {
            return;
        }
        // Nothing to be had for it: it was never written, or it came and was given back since.
        self.place_zeros(faults, at);
    }

    /// Given back before it came: it is zero from now on, and what the source has is old. Shared
    /// memory only counts what was there: the event does not say whether the file lost it too.
    fn removed(&self, faults: &Faults, block: usize, pages: Range<usize>) {
        if faults.block(block).backing() == Backing::Anonymous {
            self.count(block, pages);
        }
    }

    fn broken(&self, faults: &Faults, at: Located) {
        self.give_up(faults, at, &SourceError::Bug);
    }
}

/// Keeps to a rate, and makes room for those who wait for a core.
struct Pace {
    pacer: Pacer,
    rate: Option<u64>,
    started: Instant,
    fetched_bytes: u64,
}

impl Pace {
    fn new(prefetch: Prefetch) -> Self {
        let rate = match prefetch {
            Prefetch::Limited(rate) => Some(rate.max(1)),
            _ => None,
        };
        Self {
            pacer: Pacer::of_this_thread(),
            rate,
            started: Instant::now(),
            fetched_bytes: 0,
        }
    }

    /// How long to wait after so many bytes more.
    fn wait_after(&mut self, bytes: u64) -> Duration {
        self.fetched_bytes += bytes;
        let room = self.pacer.due();
        let Some(rate) = self.rate else {
            return room;
        };
        let due = Duration::from_secs_f64(self.fetched_bytes as f64 / rate as f64);
        due.saturating_sub(self.started.elapsed()).max(room)
    }
}

fn silent(faults: &Faults, block: usize, pages: Range<usize>, time: Duration) -> SourceError {
    let id = faults.block(block).id();
    SourceError::Silent {
        what: format!(
            "where pages {}..{} of RAM block {id} are",
            pages.start, pages.end
        ),
        seconds: time.as_secs(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
