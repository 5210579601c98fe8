//! The dirty log: regions, starting, collecting, stopping.
//!
//! What holds whenever the lock is free, in a region that is logged by faults: **a page that can be
//! written has its bit set**. Starting makes it true (nothing can be written, or all bits are set), a
//! fault sets the bit before the permission, collecting clears both together. Under
//! [`LogMode::Hardware`] a page entry may be writable without its bit: then the entry is the log.
//!
//! TLBs lag behind the tables until the invalidation that ends a pass. A write through a stale entry
//! meanwhile is not logged, and need not be: the bits of the pass are handed out, and the pages read,
//! after that invalidation is complete on all CPUs, so the read sees the write.

use crate::bitmap::{DirtyBitmap, words_for};
use crate::cpu::Cpu;
use crate::error::LogError;
use crate::layout::PAGE_SIZE;
use crate::protect::{Protect, Restore};
use crate::region::{LogMode, MAX_REGIONS, Region, RegionId, Regions, State};
use crate::shape::{Merge, Split};
use crate::stage2::{Exclusive, Stage2};
use crate::sync::AtomicU64;
use crate::table::{CACHE_TABLES, TableMemory};
use crate::walk::PassReport;
use core::ops::{Deref, Range};

/// Which regions an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The whole VM: every region there is.
    All,
    /// One.
    Region(RegionId),
}

/// When blocks are split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitPolicy {
    /// On the first write to them: the start is short and needs tables for the regions' edges only;
    /// that first write costs a table and a broadcast invalidation.
    Lazy,
    /// All of them before anything is protected: every table is allocated while failing is harmless,
    /// and no write ever pays for a split.
    Eager,
}

/// What the log says at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialLog {
    /// Nothing is dirty and all is protected: for a reader that has read all pages, or will read them
    /// after the start.
    Clean,
    /// All is dirty and nothing is protected: the start costs nothing, and each chunk is protected
    /// when it is first collected, just before it is read. Absent pages are dirty, too.
    AllDirty,
}

/// How to log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Who notes a write.
    pub mode: LogMode,
    /// When blocks are split.
    pub split: SplitPolicy,
    /// What the log says at the start.
    pub initial: InitialLog,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            mode: LogMode::Fault,
            split: SplitPolicy::Lazy,
            initial: InitialLog::Clean,
        }
    }
}

/// The regions of a scope, one bit each.
#[derive(Clone, Copy)]
struct Chosen(u32);

const _: () = assert!(MAX_REGIONS <= u32::BITS as usize);

impl Chosen {
    fn ids(self) -> impl Iterator<Item = RegionId> {
        (0..MAX_REGIONS)
            .filter(move |id| self.0 >> id & 1 != 0)
            .map(RegionId)
    }
}

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    /// Makes a range known to the log, with storage for its bitmap; bit *n* of word *w* is page
    /// `64 w + n` of the range. Nothing is logged yet.
    ///
    /// # Errors
    /// `Range`, `Empty`, `Overlap`, `TooManyRegions`, `TooShort`: nothing was changed.
    pub fn add_region(&self, range: Range<u64>, bitmap: B) -> Result<RegionId, LogError> {
        self.layout.check(&range)?;
        if range.is_empty() {
            return Err(LogError::Empty);
        }
        let pages = (range.end - range.start) / PAGE_SIZE;
        let bitmap = DirtyBitmap::new(bitmap, pages).ok_or(LogError::TooShort {
            words_needed: words_for(pages),
        })?;
        let mut guard = self.exclusive();
        if guard.overlapping(&range).next().is_some() {
            return Err(LogError::Overlap);
        }
        guard
            .insert(Region {
                range,
                bitmap,
                state: State::Off,
            })
            .ok_or(LogError::TooManyRegions)
    }

    /// Forgets a region and gives its storage back, with the bits that were left in it.
    ///
    /// # Errors
    /// `NoRegion`, `Busy`, `AlreadyLogging`: stop first.
    pub fn remove_region(&self, id: RegionId) -> Result<B, LogError> {
        let _pass = self.begin_pass().ok_or(LogError::Busy)?;
        let mut guard = self.exclusive();
        match guard.get(id).ok_or(LogError::NoRegion)?.state {
            State::Off => {}
            _ => return Err(LogError::AlreadyLogging),
        }
        let region = guard.remove(id).ok_or(LogError::NoRegion)?;
        Ok(region.bitmap.into_words())
    }

    /// Starts logging. When it returns `Ok`, every further write is logged.
    ///
    /// In this order: the regions are marked, so that only pages are mapped from now on; blocks are
    /// split and hints dropped, the only step that allocates; the flag is set under the lock; all is
    /// protected; the TLBs are invalidated, once.
    ///
    /// # Errors
    /// Nothing is protected and logging is off whenever it fails. `OutOfTables` may leave blocks that
    /// were split as pages; [`merge`](Self::merge) them if that matters.
    pub fn start_logging(&self, scope: Scope, options: LogOptions) -> Result<PassReport, LogError> {
        let _pass = self.begin_pass().ok_or(LogError::Busy)?;
        if options.mode == LogMode::Hardware && !self.config.hardware_dirty {
            return Err(LogError::NoHardwareDirty);
        }
        let chosen = {
            let mut guard = self.exclusive();
            let chosen =
                choose(&guard, scope, |state| state == State::Off).ok_or(LogError::NoRegion)?;
            if scope_len(&guard, scope) != chosen.0.count_ones() as usize {
                return Err(LogError::AlreadyLogging);
            }
            for id in chosen.ids() {
                guard
                    .get(id)
                    .into_iter()
                    .for_each(|region| region.bitmap.clear_all());
            }
            self.set_state(&mut guard, chosen, State::Preparing);
            chosen
        };
        let eager = options.split == SplitPolicy::Eager;
        let tables_wanted = if eager { CACHE_TABLES } else { 0 };
        let report = self.finished(|report| {
            for range in self.ranges(chosen) {
                let mut split = Split {
                    eager,
                    unhint_all: true,
                };
                self.pass(range.clone(), range, &mut split, report, tables_wanted)
                    .inspect_err(|_| {
                        self.set_state(&mut self.exclusive(), chosen, State::Off);
                    })?;
            }
            {
                let mut guard = self.exclusive();
                if options.initial == InitialLog::AllDirty {
                    self.ranges_of(&guard, chosen)
                        .for_each(|range| guard.mark(range.start, range.end - range.start));
                }
                self.set_state(&mut guard, chosen, State::Logging(options.mode));
            }
            if options.initial == InitialLog::Clean {
                let mut protect = Protect {
                    by_hardware: options.mode == LogMode::Hardware,
                };
                for range in self.ranges(chosen) {
                    self.pass(range.clone(), range, &mut protect, report, 0)?;
                }
            }
            Ok(())
        })?;
        Ok(report)
    }

    /// Stops logging: permissions are given back, and, if `merge`, blocks are made again. It cannot
    /// fail halfway. Bits that nobody collected stay in the storage, those of the hardware among them;
    /// the last [`collect`](Self::collect) belongs before the stop, when no vCPU runs any more.
    ///
    /// # Errors
    /// `Busy`, `NoRegion`, `NotLogging`: nothing was changed. `Scope::All` stops the regions that are
    /// being logged.
    pub fn stop_logging(&self, scope: Scope, merge: bool) -> Result<PassReport, LogError> {
        let _pass = self.begin_pass().ok_or(LogError::Busy)?;
        let is_logging = |state| matches!(state, State::Logging(_));
        let chosen = {
            let mut guard = self.exclusive();
            let chosen = choose(&guard, scope, is_logging).ok_or(LogError::NoRegion)?;
            if chosen.0 == 0 {
                return Err(LogError::NotLogging);
            }
            self.set_state(&mut guard, chosen, State::Stopping);
            chosen
        };
        let report = self.finished(|report| {
            for range in self.ranges(chosen) {
                self.pass(range.clone(), range, &mut Restore, report, 0)?;
            }
            self.set_state(&mut self.exclusive(), chosen, State::Off);
            for range in self.ranges(chosen).filter(|_| merge) {
                self.pass(range.clone(), range, &mut Merge, report, 0)?;
            }
            Ok(())
        })?;
        Ok(report)
    }

    fn set_state(&self, guard: &mut Exclusive<'_, B>, chosen: Chosen, state: State) {
        for id in chosen.ids() {
            if let Some(region) = guard.get_mut(id) {
                region.state = state;
            }
        }
    }

    fn ranges_of<'a>(
        &self,
        guard: &'a Regions<B>,
        chosen: Chosen,
    ) -> impl Iterator<Item = Range<u64>> + 'a
    where
        B: 'a,
    {
        chosen
            .ids()
            .filter_map(|id| Some(guard.get(id)?.range.clone()))
    }

    /// One at a time, each asked for under the lock; the pass that runs keeps them from changing.
    fn ranges(&self, chosen: Chosen) -> impl Iterator<Item = Range<u64>> {
        chosen
            .ids()
            .filter_map(|id| Some(self.shared().get(id)?.range.clone()))
    }
}

/// The regions of a scope whose state is as wanted; `None` if a named one does not exist.
fn choose<B>(regions: &Regions<B>, scope: Scope, wanted: impl Fn(State) -> bool) -> Option<Chosen> {
    let is_wanted = |id: RegionId| regions.get(id).is_some_and(|region| wanted(region.state));
    if let Scope::Region(id) = scope {
        regions.get(id)?;
    }
    let ids = regions
        .ids()
        .filter(|id| scope == Scope::All || scope == Scope::Region(*id));
    Some(Chosen(
        ids.filter(|id| is_wanted(*id))
            .fold(0, |bits, id| bits | 1 << id.0),
    ))
}

fn scope_len<B>(regions: &Regions<B>, scope: Scope) -> usize {
    match scope {
        Scope::All => regions.ids().count(),
        Scope::Region(_) => 1,
    }
}
