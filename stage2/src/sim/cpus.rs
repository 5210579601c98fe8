//! CPUs with TLBs.

use super::rules::Rules;
use super::{Arena, Gate};
use crate::cpu::Cpu;
use crate::descriptor::{ACCESSED, ADDRESS, Attributes, CONTIGUOUS, DIRTY_MODIFIER, NO_TRANSLATE};
use crate::descriptor::{Execute, WRITE, index, is_table, is_valid, output, span};
use crate::fault::{Access, Fault, FaultKind, Resolution};
use crate::layout::{BlockChange, Config};
use crate::stage2::Stage2;
use crate::sync::{AtomicU64, Mutex, Ordering, thread_local};
use crate::table::{TableCache, TableMemory};
use crate::walk::Place;
use core::cell::Cell;
use core::ops::{Deref, Range};
use core::sync::atomic::{AtomicU64 as Counter, Ordering::Relaxed};

/// Entries of a TLB; the oldest makes room.
const TLB_ENTRIES: usize = 48;
/// Faults of one access that are not the log's, nor somebody's change under way, but a fault path that
/// does not see what is wrong.
const FAULTS_MAX: u64 = 100_000;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Cached {
    range: Range<u64>,
    level: u8,
    pa: u64,
    entry: u64,
}

/// The TLBs of all CPUs, as an invalidation sees them.
pub struct Cpus {
    tlbs: Vec<Mutex<Vec<Cached>>>,
    broadcasts: Counter,
    broken: Broken,
    arena: Option<Arena>,
    gate: Gate,
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
            gate: Gate::new(),
        }
    }

    /// From now on every change of the tables that are made next, by `config` and from `arena`, is held
    /// to what the architecture demands before an entry may be made, or a table be given back. A breach
    /// stops the program where it is committed, whether or not a TLB holds what it should not.
    pub fn strict(mut self, arena: &Arena, config: &Config) -> Self {
        arena.watch(Rules::new(config));
        self.arena = Some(arena.clone());
        self
    }

    /// Strict CPUs stop the program if an entry was changed and not cleaned (for walkers that are not
    /// coherent). To be called while nobody is at work on the tables.
    pub fn assert_cleaned(&self) {
        if let Some((arena, rules)) = self.rules() {
            rules.assert_cleaned(|table_pa, slot| arena.entry(table_pa, slot));
        }
    }

    fn rules(&self) -> Option<(&Arena, &Rules)> {
        let arena = self.arena.as_ref()?;
        Some((arena, arena.rules()?))
    }

    /// Where a pass can be stopped.
    pub fn gate(&self) -> &Gate {
        &self.gate
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

    /// A broadcast invalidation of the whole VM, or of a leaf and the level that is hinted.
    fn broadcast(&self, leaf: Option<(u64, Option<u8>)>) {
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
        let number = self.rules().map(|(_, rules)| rules.begin_invalidation());
        for tlb in &self.tlbs {
            forget(&mut tlb.lock().unwrap(), leaf);
        }
        if let (Some((_, rules)), Some(number)) = (self.rules(), number) {
            rules.end_invalidation(number, leaf);
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

fn forget(tlb: &mut Vec<Cached>, leaf: Option<(u64, Option<u8>)>) {
    let Some((ipa, hint)) = leaf else {
        return tlb.clear();
    };
    let is_other_level = |level| hint.is_some_and(|hint| hint != level);
    tlb.retain(|cached| !cached.range.contains(&ipa) || is_other_level(cached.level));
}

// SAFETY: each invalidation takes the lock of every TLB concerned, which a CPU holds from translation
// to the end of the access, so none is under way through an entry that is gone; mutexes order memory.
unsafe impl Cpu for Cpus {
    fn invalidate_vm(&self) {
        self.broadcast(None);
    }

    fn invalidate_ipa(&self, ipa: u64, level: Option<u8>) {
        self.broadcast(Some((ipa, level)));
    }

    fn invalidate_ipa_here(&self, ipa: u64, level: Option<u8>) {
        if let Some(tlb) = self.tlbs.get(CURRENT.with(Cell::get)) {
            forget(&mut tlb.lock().unwrap(), Some((ipa, level)));
        }
    }

    fn publish(&self) {}

    fn clean(&self, start: *const u8, bytes: usize) {
        if let Some(arena) = &self.arena {
            arena.cleaned(start, bytes);
        }
    }

    fn should_yield(&self) -> bool {
        self.gate.pass()
    }

    fn relax(&self) {
        self.gate.wait();
        #[cfg(not(feature = "shuttle"))]
        std::thread::yield_now();
        #[cfg(feature = "shuttle")]
        crate::sync::spin_loop();
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
        for _ in 0..FAULTS_MAX {
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
        panic!("the same fault comes for ever, at {ipa:#x}");
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
            let pa = cached.pa + (ipa - cached.range.start);
            if self.stage2.cpu.arena.is_some() {
                self.check_hit(ipa, pa);
            }
            if !may(access, cached.entry | WRITE) {
                return Err(fault(FaultKind::Permission));
            }
            if !writes(access) || cached.entry & WRITE != 0 {
                return Ok(operation(pa));
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
        let place = self.walk(ipa);
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
            if !may(access, entry | WRITE) {
                return Err(fault(FaultKind::Permission));
            }
            if writes(access) && entry & WRITE == 0 {
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
            level: place.level,
            entry,
        };
        if entry & NO_TRANSLATE == 0 {
            insert(&mut tlb, cached, self.stage2.config.block_change);
        }
        Ok(operation(pa + (ipa - place.start)))
    }

    /// What the tables say now, if anything, is what the TLB says.
    fn check_hit(&self, ipa: u64, pa: u64) {
        let place = self.walk(ipa);
        let now = output(place.entry, place.level) + (ipa - place.start);
        assert!(
            !is_valid(place.entry) || now == pa,
            "a TLB leads from {ipa:#x} to {pa:#x}, and the tables to {now:#x}"
        );
    }

    /// As hardware does it: without a lock, each entry read once.
    fn walk(&self, ipa: u64) -> Place<'s> {
        let mut level = self.stage2.layout.start_level;
        let mut table_pa = self.stage2.root_pa_of(ipa);
        loop {
            let table = self.stage2.table_at(table_pa);
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
            table_pa = entry & ADDRESS;
            level += 1;
        }
    }
}

fn writes(access: Access) -> bool {
    matches!(access, Access::Write | Access::ReadWrite)
}

/// Whether the permissions of an entry allow the access.
fn may(access: Access, entry: u64) -> bool {
    let attributes = Attributes::of(entry);
    match access {
        Access::Read => attributes.read,
        Access::Write => entry & WRITE != 0,
        Access::ReadWrite => attributes.read && entry & WRITE != 0,
        Access::Execute => attributes.execute == Execute::All,
    }
}

fn insert(tlb: &mut Vec<Cached>, new: Cached, block_change: BlockChange) {
    let overlaps =
        |old: &Cached| old.range.start < new.range.end && new.range.start < old.range.end;
    let agrees = |old: &Cached| {
        old.pa.wrapping_sub(old.range.start) == new.pa.wrapping_sub(new.range.start)
            && (old.range == new.range || block_change == BlockChange::Direct)
    };
    let conflict = tlb.iter().find(|old| overlaps(old) && !agrees(old));
    assert!(
        conflict.is_none(),
        "TLB conflict at {:#x}: an entry changed its size or output without break-before-make",
        new.range.start
    );
    tlb.retain(|old| old.range != new.range);
    if tlb.len() == TLB_ENTRIES {
        tlb.remove(0);
    }
    tlb.push(new);
}
