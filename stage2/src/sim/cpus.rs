//! CPUs with TLBs.

use super::Arena;
use crate::cpu::Cpu;
use crate::descriptor::{ACCESSED, ADDRESS, CONTIGUOUS, DIRTY_MODIFIER, NO_TRANSLATE, WRITE};
use crate::descriptor::{index, is_table, is_valid, output, span};
use crate::fault::{Access, Fault, FaultKind, Resolution};
use crate::layout::BlockChange;
use crate::stage2::Stage2;
use crate::sync::{AtomicU64, Mutex, Ordering, thread_local};
use crate::table::{TableCache, TableMemory};
use crate::walk::Place;
use core::cell::Cell;
use core::ops::{Deref, Range};
use core::sync::atomic::{AtomicU64 as Counter, Ordering::Relaxed};

/// Entries of a TLB; the oldest makes room.
const TLB_ENTRIES: usize = 48;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Cached {
    range: Range<u64>,
    pa: u64,
    entry: u64,
    /// How the walker came to it.
    path: Vec<Step>,
}

/// An entry that the walker read.
#[derive(Clone, Copy)]
struct Step {
    table_pa: u64,
    slot: usize,
    level: u8,
    entry: u64,
}

/// The TLBs of all CPUs, as an invalidation sees them.
pub struct Cpus {
    tlbs: Vec<Mutex<Vec<Cached>>>,
    broadcasts: Counter,
    broken: Broken,
    arena: Option<Arena>,
}

/// Accesses by which a late invalidation is late.
const LATE_ACCESSES: u64 = 1000;

/// What is wrong with broadcast invalidation.
enum Broken {
    Not,
    Missing,
    /// Of each CPU, the accesses it still makes before it does what it was asked for; 0: nothing was.
    Late(Vec<Counter>),
}

impl Cpus {
    /// `count` CPUs with empty TLBs.
    pub fn new(count: usize) -> Self {
        let tlbs = (0..count).map(|_| Mutex::new(Vec::new())).collect();
        Self {
            tlbs,
            broadcasts: Counter::new(0),
            broken: Broken::Not,
            arena: None,
        }
    }

    /// From now on every invalidation looks whether a TLB holds an entry that has changed its size, or
    /// lost its hint, in tables from `arena`: there it should have been broken, or marked nT.
    pub fn check_break_before_make(mut self, arena: &Arena) -> Self {
        self.arena = Some(arena.clone());
        self
    }

    /// CPUs on which broadcast invalidation does nothing: to see that a test would notice.
    pub fn without_invalidation(count: usize) -> Self {
        Self {
            broken: Broken::Missing,
            ..Self::new(count)
        }
    }

    /// CPUs on which broadcast invalidation is not waited for: each does it some accesses later, so bits
    /// are handed out before the invalidation of their pass. To see that a test would notice.
    pub fn with_late_invalidation(count: usize) -> Self {
        Self {
            broken: Broken::Late((0..count).map(|_| Counter::new(0)).collect()),
            ..Self::new(count)
        }
    }

    /// Broadcast invalidations so far.
    pub fn broadcasts(&self) -> u64 {
        self.broadcasts.load(Relaxed)
    }

    fn each_tlb(&self, change: impl Fn(&mut Vec<Cached>)) {
        self.broadcasts.fetch_add(1, Relaxed);
        match &self.broken {
            Broken::Not => {}
            Broken::Missing => return,
            Broken::Late(left) => {
                left.iter()
                    .for_each(|left| left.store(LATE_ACCESSES, Relaxed));
                return;
            }
        }
        for tlb in &self.tlbs {
            let mut tlb = tlb.lock().unwrap();
            if let Some(arena) = &self.arena {
                tlb.iter().for_each(|cached| check_path(arena, cached));
            }
            change(&mut tlb);
        }
    }

    /// A CPU whose invalidations are late is about to make an access.
    fn catch_up(&self, cpu: usize, tlb: &mut Vec<Cached>) {
        if let Broken::Late(left) = &self.broken {
            match left[cpu].load(Relaxed) {
                0 => {}
                1 => {
                    left[cpu].store(0, Relaxed);
                    tlb.clear();
                }
                more => left[cpu].store(more - 1, Relaxed),
            }
        }
    }
}

/// A walk that starts now, from anywhere in what is cached, must not find another size; and what was
/// walked through must not be given back before it is invalidated.
fn check_path(arena: &Arena, cached: &Cached) {
    let now = |step: &Step| {
        let entry = arena.entry(step.table_pa, step.slot);
        entry.unwrap_or_else(|| {
            panic!(
                "a table was given back too early, at {:#x}",
                cached.range.start
            )
        })
    };
    cached.path.iter().for_each(|step| {
        now(step);
    });
    for step in &cached.path {
        let now = now(step);
        if !is_valid(now) || !is_table(now, step.level) && now & NO_TRANSLATE != 0 {
            return;
        }
        let same_size = is_table(now, step.level) == is_table(step.entry, step.level)
            && (is_table(now, step.level) || (now ^ step.entry) & CONTIGUOUS == 0);
        assert!(
            same_size,
            "break-before-make was forgotten at {:#x}",
            cached.range.start
        );
    }
}

// SAFETY: each invalidation takes the lock of every TLB concerned, which a CPU holds from translation
// to the end of the access, so none is under way through an entry that is gone; mutexes order memory.
unsafe impl Cpu for Cpus {
    fn invalidate_vm(&self) {
        self.each_tlb(Vec::clear);
    }

    fn invalidate_ipa(&self, ipa: u64, _level: u8) {
        self.each_tlb(|tlb| tlb.retain(|cached| !cached.range.contains(&ipa)));
    }

    fn invalidate_ipa_here(&self, ipa: u64, _level: u8) {
        if let Some(tlb) = self.tlbs.get(CURRENT.with(Cell::get)) {
            tlb.lock()
                .unwrap()
                .retain(|cached| !cached.range.contains(&ipa));
        }
    }

    fn publish(&self) {}

    #[cfg(not(feature = "shuttle"))]
    fn relax(&self) {
        std::thread::yield_now();
    }
}

/// Why a guest's access did not come to pass: the resolutions that are the hypervisor's to act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// What the fault path said.
    pub resolution: Resolution,
    /// About which fault.
    pub fault: Fault,
}

/// One guest CPU. Each belongs to one thread at a time.
pub struct SoftCpu<'s, M: TableMemory, B> {
    stage2: &'s Stage2<M, Cpus, B>,
    index: usize,
    tables: TableCache<'s, M>,
    /// Faults taken so far.
    pub faults: u64,
    /// Pages that these faults marked dirty.
    pub pages_logged: u64,
}

impl<'s, M: TableMemory, B: Deref<Target = [AtomicU64]>> SoftCpu<'s, M, B> {
    /// CPU number `index` of those that the tables were made with.
    pub fn new(stage2: &'s Stage2<M, Cpus, B>, index: usize) -> Self {
        assert!(index < stage2.cpu.tlbs.len(), "no such CPU");
        Self {
            stage2,
            index,
            tables: stage2.table_cache(),
            faults: 0,
            pages_logged: 0,
        }
    }

    /// Runs one access to the end, through all faults that can be resolved. `operation` gets the
    /// physical address, and is the access.
    ///
    /// # Errors
    /// What the hypervisor has to decide on: nothing mapped, not permitted, or protected.
    pub fn access<R>(
        &mut self,
        ipa: u64,
        access: Access,
        operation: impl Fn(u64) -> R,
    ) -> Result<R, Stopped> {
        loop {
            let fault = match self.instruction(ipa, access, &operation) {
                Ok(result) => return Ok(result),
                Err(fault) => fault,
            };
            self.faults += 1;
            CURRENT.with(|current| current.set(self.index));
            match self.stage2.handle_fault(&fault, &mut self.tables) {
                Resolution::Logged { pages } => self.pages_logged += pages,
                Resolution::Retry => {}
                resolution => return Err(Stopped { resolution, fault }),
            }
        }
    }

    /// The tables set aside for this CPU's faults.
    pub fn tables(&mut self) -> &mut TableCache<'s, M> {
        &mut self.tables
    }

    /// Translates and accesses, as one step for whoever invalidates.
    fn instruction<R>(
        &self,
        ipa: u64,
        access: Access,
        operation: impl Fn(u64) -> R,
    ) -> Result<R, Fault> {
        let fault = |kind| Fault { ipa, kind, access };
        let mut tlb = self.stage2.cpu.tlbs[self.index].lock().unwrap();
        self.stage2.cpu.catch_up(self.index, &mut tlb);
        let hit = tlb.iter().position(|cached| cached.range.contains(&ipa));
        if let Some(at) = hit {
            let cached = &tlb[at];
            if access != Access::Write || cached.entry & WRITE != 0 {
                return Ok(operation(cached.pa + (ipa - cached.range.start)));
            }
            if cached.entry & DIRTY_MODIFIER == 0 || !self.stage2.config.hardware_dirty {
                return Err(fault(FaultKind::Permission));
            }
            // Clean: the walker has to look at the entry in memory again.
            tlb.remove(at);
        }
        if ipa >= self.stage2.layout.limit() {
            return Err(fault(FaultKind::Translation));
        }
        let mut path = Vec::with_capacity(4);
        let place = self.walk(ipa, &mut path);
        let mut entry = place.entry;
        loop {
            if !is_valid(entry) {
                return Err(fault(FaultKind::Translation));
            }
            let mut wanted = entry;
            if entry & ACCESSED == 0 {
                if !self.stage2.config.hardware_dirty {
                    return Err(fault(FaultKind::AccessFlag));
                }
                wanted |= ACCESSED;
            }
            if access == Access::Write && entry & WRITE == 0 {
                if !self.stage2.config.hardware_dirty || entry & DIRTY_MODIFIER == 0 {
                    return Err(fault(FaultKind::Permission));
                }
                wanted |= WRITE;
            }
            if wanted == entry {
                break;
            }
            match place
                .slot()
                .compare_exchange(entry, wanted, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => entry = wanted,
                Err(now) => entry = now,
            }
        }
        let sets = if entry & CONTIGUOUS != 0 { 16 } else { 1 };
        let start = place.start & !(sets * (place.end - place.start) - 1);
        let pa = output(entry, place.level);
        let range = start..start + sets * (place.end - place.start);
        let cached = Cached {
            pa: pa - (place.start - start),
            range,
            entry,
            path,
        };
        if entry & NO_TRANSLATE == 0 {
            insert(&mut tlb, cached, self.stage2.config.block_change);
        }
        Ok(operation(pa + (ipa - place.start)))
    }

    /// As hardware does it: without a lock, each entry read once.
    fn walk(&self, ipa: u64, path: &mut Vec<Step>) -> Place<'s> {
        let mut level = self.stage2.layout.start_level;
        let mut table_pa = self.stage2.root_pa_of(ipa);
        loop {
            let table = self.stage2.table_at(table_pa);
            let slot = index(ipa, level);
            let entry = table.entries()[slot].load(Ordering::Acquire);
            path.push(Step {
                table_pa,
                slot,
                level,
                entry,
            });
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
            table_pa = entry & ADDRESS;
            level += 1;
        }
    }
}

fn insert(tlb: &mut Vec<Cached>, new: Cached, block_change: BlockChange) {
    let overlaps =
        |old: &Cached| old.range.start < new.range.end && new.range.start < old.range.end;
    if block_change != BlockChange::Direct {
        let conflict = tlb
            .iter()
            .find(|old| overlaps(old) && old.range != new.range);
        assert!(
            conflict.is_none(),
            "TLB conflict at {:#x}: an entry changed its size without break-before-make",
            new.range.start
        );
    }
    tlb.retain(|old| old.range != new.range);
    if tlb.len() == TLB_ENTRIES {
        tlb.remove(0);
    }
    tlb.push(new);
}
