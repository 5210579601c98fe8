//! The tree of one VM: its root, its lock, and the operations that have nothing to do with logging.

use crate::cpu::Cpu;
use crate::descriptor::{ADDRESS, Attributes, PROTECTED, WRITE};
use crate::descriptor::{index, is_table, is_valid, output, span};
use crate::error::{ConfigError, LogError, TableError};
use crate::layout::{Config, Layout, PAGE_SIZE};
use crate::lock::{ReadGuard, TicketLock, WriteGuard};
use crate::protect::{Freeze, Thaw};
use crate::region::Regions;
use crate::shape::{Merge, Split, Unmap};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::table::{CACHE_TABLES, Table, TableCache, TableMemory};
use crate::walk::{PassReport, Place, Visitor};
use core::ops::{Deref, Range};

pub(crate) type Exclusive<'a, B> = WriteGuard<'a, Regions<B>>;

/// The stage-2 tables of one VM, with its dirty log.
///
/// `M` allocates tables, `C` invalidates TLBs, `B` is the storage of dirty bitmaps. All methods take
/// `&self` and may be called from any CPU at any time; see the crate's documentation for who waits for
/// whom. Passes (protecting, splitting, merging, starting, collecting, stopping) exclude each other: a
/// second one is answered `Busy`. Mapping, unmapping and faults go on during a pass.
pub struct Stage2<M: TableMemory, C: Cpu, B = &'static [AtomicU64]> {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) memory: M,
    pub(crate) cpu: C,
    root_pa: u64,
    lock: TicketLock<Regions<B>>,
    pass_running: AtomicBool,
}

/// A leaf, or the lack of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Mapped by a block or page.
    Leaf(Leaf),
    /// Nothing is mapped in this range, which holds the address asked for.
    Absent(Range<u64>),
}

/// A block or page as it stands in the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// What it maps.
    pub range: Range<u64>,
    /// Where to.
    pub pa: u64,
    /// 1 (1 GiB), 2 (2 MiB) or 3 (4 KiB).
    pub level: u8,
    /// As the mapper gave them.
    pub attributes: Attributes,
    /// Whether a write goes through at this moment, be it that the hardware notes it.
    pub writable: bool,
    /// Whether [`protect`](Stage2::protect) has taken write permission.
    pub protected: bool,
}

impl<M: TableMemory, C: Cpu, B> Stage2<M, C, B> {
    /// Tables that map nothing.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: Config, memory: M, cpu: C) -> Result<Self, ConfigError> {
        let layout = Layout::new(config.ipa_bits)?;
        let root_pa = memory
            .allocate(layout.root_tables)
            .ok_or(ConfigError::NoRoot)?;
        let root_bytes = layout.root_tables as u64 * PAGE_SIZE;
        if root_pa & (root_bytes - 1) != 0 || root_pa & !ADDRESS != 0 {
            memory.free(root_pa, layout.root_tables);
            return Err(ConfigError::NoRoot);
        }
        let lock = TicketLock::new(Regions::new());
        let stage2 = Self {
            config,
            layout,
            memory,
            cpu,
            root_pa,
            lock,
            pass_running: AtomicBool::new(false),
        };
        for at in 0..layout.root_tables as u64 {
            let table = stage2.table_at(root_pa + at * PAGE_SIZE);
            table.clear();
            stage2.clean_table(table);
        }
        stage2.cpu.publish();
        Ok(stage2)
    }

    /// The value of VTCR_EL2 that fits the tables.
    ///
    /// `pa_range` is the PS field (from ID_AA64MMFR0_EL1.PARange); `vmid_16_bits` sets VS.
    pub fn vtcr(&self, pa_range: u8, vmid_16_bits: bool) -> u64 {
        self.layout
            .vtcr(pa_range, vmid_16_bits, self.config.hardware_dirty)
    }

    /// The value of VTTBR_EL2 for this VM under `vmid`.
    pub fn vttbr(&self, vmid: u16) -> u64 {
        u64::from(vmid) << 48 | self.root_pa
    }

    /// What the tables were made for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the tables were made with.
    pub fn cpu(&self) -> &C {
        &self.cpu
    }

    /// The allocator that the tables were made with.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A cache of tables for one vCPU's faults. It may be empty: the fault path fills it before it
    /// takes the lock.
    pub fn table_cache(&self) -> TableCache<'_, M> {
        TableCache::new(&self.memory)
    }

    pub(crate) fn shared(&self) -> ReadGuard<'_, Regions<B>> {
        self.lock.read(|| self.cpu.relax())
    }

    pub(crate) fn exclusive(&self) -> Exclusive<'_, B> {
        self.lock.write(|| self.cpu.relax())
    }

    pub(crate) fn begin_pass(&self) -> Option<PassGuard<'_>> {
        let free =
            self.pass_running
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.is_ok().then_some(PassGuard {
            running: &self.pass_running,
        })
    }

    pub(crate) fn table_at(&self, pa: u64) -> &Table {
        // SAFETY: every address that comes here was handed out by `memory` and not given back: it is
        // the root's, a cached table's, or stands in an entry read under the lock, and tables are
        // unlinked and invalidated before they are freed.
        unsafe { self.memory.table(pa).as_ref() }
    }

    pub(crate) fn below(&self, entry: u64) -> &Table {
        self.table_at(entry & ADDRESS)
    }

    /// The root table that maps `ipa`, of those that stand side by side.
    pub(crate) fn root(&self, ipa: u64) -> &Table {
        self.table_at(self.root_pa_of(ipa))
    }

    pub(crate) fn root_pa_of(&self, ipa: u64) -> u64 {
        self.root_pa + ipa / self.layout.root_span() * PAGE_SIZE
    }

    /// The entry that ends the walk to `ipa`: a leaf, or an invalid one. Call it with the lock held.
    pub(crate) fn last_entry(&self, ipa: u64) -> Place<'_> {
        let mut table = self.root(ipa);
        let mut level = self.layout.start_level;
        loop {
            let slot = index(ipa, level);
            let entry = table.entries()[slot].load(Ordering::Acquire);
            if !is_table(entry, level) {
                let start = ipa & !(span(level) - 1);
                return Place {
                    table,
                    slot,
                    level,
                    entry,
                    start,
                    end: start + span(level),
                };
            }
            table = self.below(entry);
            level += 1;
        }
    }

    /// What is mapped at `ipa`; `None` beyond the input size.
    pub fn lookup(&self, ipa: u64) -> Option<Lookup> {
        if ipa >= self.layout.limit() {
            return None;
        }
        let _guard = self.shared();
        let place = self.last_entry(ipa);
        if !is_valid(place.entry) {
            // The last root table may reach beyond an input size that does not fill it.
            return Some(Lookup::Absent(
                place.start..place.end.min(self.layout.limit()),
            ));
        }
        Some(Lookup::Leaf(Leaf {
            range: place.start..place.end,
            pa: output(place.entry, place.level),
            level: place.level,
            attributes: Attributes::of(place.entry),
            writable: place.entry & WRITE != 0,
            protected: place.entry & PROTECTED != 0,
        }))
    }

    fn free_below(&self, table: &Table, level: u8) {
        for entry in table.entries() {
            let entry = entry.load(Ordering::Relaxed);
            if is_table(entry, level) {
                self.free_below(self.below(entry), level + 1);
                self.memory.free(entry & ADDRESS, 1);
            }
        }
    }
}

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    /// Removes what is mapped in the range; absent parts are no error. When it returns no CPU can reach
    /// the memory through these tables any more, so it may be given to somebody else.
    ///
    /// What another CPU maps in the range meanwhile stays mapped, if it came behind the pass. It comes
    /// after an invalidation: the lock is not given up before what was unmapped is gone from the TLBs.
    ///
    /// Bits of pages that were written before stay set in a dirty log.
    ///
    /// # Errors
    /// `OutOfTables`: a block that reaches out of the range could not be split; nothing was unmapped
    /// (unless a [`merge`](Self::merge) of just these pages ran on another CPU at the same time).
    pub fn unmap(&self, range: Range<u64>) -> Result<PassReport, TableError> {
        self.layout.check(&range)?;
        self.finished(|report| {
            if range.is_empty() {
                return Ok(());
            }
            let mut split = Split {
                eager: false,
                unhint_all: false,
            };
            for edge in [range.start, range.end - PAGE_SIZE] {
                self.pass(range.clone(), edge..edge + PAGE_SIZE, &mut split, report, 0)?;
            }
            self.pass(range.clone(), range, &mut Unmap, report, 0)
        })
    }

    /// Takes write permission from all that is mapped in the range, exactly: a write then comes back from
    /// the fault path as [`Resolution::Protected`](crate::Resolution::Protected), for the caller to act
    /// on and to [`unprotect`](Self::unprotect). Blocks and sets that reach out of the range are split.
    ///
    /// A log may be on, start, be collected and stop meanwhile: none of it lets a write through, and a
    /// write that was refused is not logged. Bits of pages that were written before stay set. What is
    /// mapped afterwards is not protected.
    ///
    /// # Errors
    /// `OutOfTables`: nothing is protected (unless a [`map`](Self::map) across an edge of the range ran
    /// on another CPU at the same time).
    pub fn protect(&self, range: Range<u64>) -> Result<PassReport, TableError> {
        self.permission_pass(range, &mut Freeze)
    }

    /// Undoes [`protect`](Self::protect) in the range, exactly. Where a log is on, the next write faults
    /// once more, and is logged.
    ///
    /// # Errors
    /// `OutOfTables`: a block that reaches out of the range could not be split; nothing was changed.
    pub fn unprotect(&self, range: Range<u64>) -> Result<PassReport, TableError> {
        self.permission_pass(range, &mut Thaw)
    }

    fn permission_pass(
        &self,
        range: Range<u64>,
        visitor: &mut impl Visitor<B>,
    ) -> Result<PassReport, TableError> {
        self.layout.check(&range)?;
        let _pass = self.begin_pass().ok_or(TableError::Busy)?;
        self.finished(|report| {
            let mut split = Split {
                eager: false,
                unhint_all: false,
            };
            self.pass(range.clone(), range.clone(), &mut split, report, 0)?;
            self.pass(range.clone(), range, visitor, report, 0)
        })
    }

    /// Splits every block of the range into pages, whether or not a log will be started: in advance,
    /// while there is time.
    ///
    /// # Errors
    /// `OutOfTables`: some blocks are split, all maps what it mapped.
    pub fn split(&self, range: Range<u64>) -> Result<PassReport, TableError> {
        self.layout.check(&range)?;
        let _pass = self.begin_pass().ok_or(TableError::Busy)?;
        self.finished(|report| {
            let mut split = Split {
                eager: true,
                unhint_all: true,
            };
            self.pass(range.clone(), range, &mut split, report, CACHE_TABLES)
        })
    }

    /// Merges whatever is contiguous and alike in the range into blocks. The contiguous hint is not
    /// given again.
    ///
    /// # Errors
    /// `Logged`: a part of the range is being logged; stop that first.
    pub fn merge(&self, range: Range<u64>) -> Result<PassReport, TableError> {
        self.layout.check(&range)?;
        let _pass = self.begin_pass().ok_or(TableError::Busy)?;
        self.refuse_logged(&range)?;
        self.finished(|report| self.pass(range.clone(), range, &mut Merge, report, 0))
    }

    /// Runs the passes of one operation, and ends them by one invalidation for all entries that they
    /// left out of date in TLBs, whether they succeeded or not.
    pub(crate) fn finished(
        &self,
        passes: impl FnOnce(&mut PassReport) -> Result<(), TableError>,
    ) -> Result<PassReport, TableError> {
        let mut report = PassReport::default();
        let result = passes(&mut report);
        if report.stale {
            self.cpu.invalidate_vm();
            report.invalidations += 1;
            report.stale = false;
        }
        result.map(|()| report)
    }

    fn refuse_logged(&self, range: &Range<u64>) -> Result<(), TableError> {
        if self.shared().wants_pages(range) {
            Err(TableError::Logged)
        } else {
            Ok(())
        }
    }
}

/// Frees all tables. No CPU may be using them: no VTTBR_EL2 names them, and the VMID was invalidated.
impl<M: TableMemory, C: Cpu, B> Drop for Stage2<M, C, B> {
    fn drop(&mut self) {
        for at in 0..self.layout.root_tables as u64 {
            let root = self.table_at(self.root_pa + at * PAGE_SIZE);
            self.free_below(root, self.layout.start_level);
        }
        self.memory.free(self.root_pa, self.layout.root_tables);
    }
}

/// A pass is under way as long as it lives.
pub(crate) struct PassGuard<'a> {
    running: &'a AtomicBool,
}

impl Drop for PassGuard<'_> {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Release);
    }
}

impl From<TableError> for LogError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Range { source } => Self::Range { source },
            TableError::Busy => Self::Busy,
            _ => Self::OutOfTables,
        }
    }
}
