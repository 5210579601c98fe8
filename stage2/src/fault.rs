//! The fault path: what a vCPU does when stage 2 stops it.
//!
//! The common case, the first write to a logged page, runs under the shared lock beside other faults:
//! set the bit, give the entry its write permission back, drop this CPU's own TLB entry, return to the
//! guest. No allocation, no other CPU disturbed. The first write to a *block* changes the tree, so it
//! needs the lock alone, one or two tables (set aside before), and one broadcast invalidation.

use crate::cpu::Cpu;
use crate::descriptor::{
    ACCESSED, CONTIGUOUS, DIRTY_MODIFIER, GRANTED, NO_TRANSLATE, PROTECTED, VALID, WRITE,
};
use crate::descriptor::{Attributes, Execute, index, is_valid, table_entry};
use crate::layout::{BlockChange, PAGE_SIZE};
use crate::protect::update;
use crate::region::{LogMode, State};
use crate::stage2::Stage2;
use crate::sync::{AtomicU64, Ordering};
use crate::table::{TableCache, TableMemory};
use crate::walk::Place;
use core::ops::Deref;

/// What the guest tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// Both of one place, and the hardware does not say which was stopped: the walker of stage 1, which
    /// reads an entry and sets a flag in it, or cache maintenance.
    ReadWrite,
    /// An instruction fetch.
    Execute,
}

/// What the hardware says was wrong (DFSC/IFSC without the level).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// Nothing is mapped.
    Translation,
    /// The access flag is clear.
    AccessFlag,
    /// The permission is missing.
    Permission,
    /// TLB conflict abort: a TLB holds two translations.
    Conflict,
}

/// A stage-2 fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The guest physical address; the page counts.
    pub ipa: u64,
    /// Why.
    pub kind: FaultKind,
    /// Doing what.
    pub access: Access,
}

/// What an exception from the guest says about stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syndrome {
    /// A fault for [`Stage2::handle_fault`].
    Fault(Fault),
    /// The guest changed its own translation after it faulted, so the address cannot be told any more:
    /// enter it again, and if the fault still stands it comes again.
    Enter,
    /// No abort from a lower exception level, or one that tables have nothing to do with.
    Other,
}

impl Syndrome {
    /// Reads ESR_EL2, HPFAR_EL2 and FAR_EL2, of a VM that is not secure: HPFAR_EL2.NS is not looked at.
    ///
    /// HPFAR_EL2 does not hold the address of a permission fault, the very one that a log is made of,
    /// unless a walk of stage 1 met it. `translate` is then asked for the guest physical address of the
    /// guest's virtual one (`at s1e1r`); `el2::read_syndrome` does all of it.
    pub fn decode(
        esr_el2: u64,
        hpfar_el2: u64,
        far_el2: u64,
        translate: impl FnOnce(u64) -> Option<u64>,
    ) -> Self {
        let is_fetch = match esr_el2 >> 26 & 0x3f {
            0x20 => true,
            0x24 => false,
            _ => return Self::Other,
        };
        let kind = match esr_el2 & 0x3f {
            0x04..=0x07 => FaultKind::Translation,
            0x08..=0x0b => FaultKind::AccessFlag,
            0x0c..=0x0f => FaultKind::Permission,
            0x30 => FaultKind::Conflict,
            _ => return Self::Other,
        };
        let in_stage_1_walk = esr_el2 & 1 << 7 != 0;
        let is_cache_maintenance = esr_el2 & 1 << 8 != 0;
        let access = match (in_stage_1_walk, is_fetch) {
            // A walk of stage 1 only reads, unless it is stopped by a permission: then it may have been
            // about to set a flag in the guest's table, too. WnR speaks of the guest's access.
            (true, _) if kind == FaultKind::Permission => Access::ReadWrite,
            (true, _) => Access::Read,
            (false, true) => Access::Execute,
            // WnR is set for all of it, and some of it needs no more than to read.
            (false, false) if is_cache_maintenance => Access::ReadWrite,
            (false, false) if esr_el2 & 1 << 6 != 0 => Access::Write,
            (false, false) => Access::Read,
        };
        let page = match kind {
            FaultKind::Permission if !in_stage_1_walk => match translate(far_el2) {
                Some(ipa) => ipa & !(PAGE_SIZE - 1),
                None => return Self::Enter,
            },
            // FIPA, bits 43:4, is IPA[51:12].
            _ => (hpfar_el2 >> 4 & 0xff_ffff_ffff) << 12,
        };
        Self::Fault(Fault {
            ipa: page,
            kind,
            access,
        })
    }
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The write was logged, or had been by another vCPU; enter the guest again. `pages` is 1, or all
    /// pages of a block that could not be split for lack of a table and so counts as dirty as a whole.
    Logged {
        /// Pages that were marked dirty.
        pages: u64,
    },
    /// Nothing is in the way any more (somebody else's change, or a stale TLB entry, now dropped).
    Retry,
    /// Nothing is mapped there: emulate a device, or [`map_page`](Stage2::map_page), or refuse.
    Unmapped,
    /// The mapper does not permit the access: refuse it, or emulate it.
    Denied,
    /// A write to a page under [`protect`](Stage2::protect).
    Protected,
}

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    /// Handles a fault on the vCPU that took it. `cache` is that vCPU's own.
    pub fn handle_fault(&self, fault: &Fault, cache: &mut TableCache<'_, M>) -> Resolution {
        if fault.kind == FaultKind::Conflict {
            self.cpu.invalidate_vm();
            return Resolution::Retry;
        }
        if fault.ipa >= self.layout.limit() {
            return Resolution::Unmapped;
        }
        let guard = self.shared();
        let place = self.last_entry(fault.ipa);
        let mut entry = place.entry;
        if !is_valid(entry) {
            return Resolution::Unmapped;
        }
        if entry & ACCESSED == 0 {
            entry = update(place.slot(), |raw| raw | ACCESSED) | ACCESSED;
            self.clean_entry(place.slot());
            self.cpu.publish();
        }
        let attributes = Attributes::of(entry);
        let writes = match fault.access {
            Access::Write => true,
            Access::ReadWrite => attributes.read,
            Access::Read | Access::Execute => false,
        };
        if !writes || entry & WRITE != 0 {
            let is_logged = guard.wants_pages(&(place.start..place.end));
            return self.settle(fault, &place, entry, is_logged);
        }
        if entry & GRANTED == 0 {
            return Resolution::Denied;
        }
        if entry & PROTECTED != 0 {
            return Resolution::Protected;
        }
        let resolution = match guard.at(fault.ipa).map(|region| (region, region.state)) {
            // Neither reason to take the permission is left.
            None | Some((_, State::Off)) => Resolution::Retry,
            Some((region, State::Logging(_) | State::Preparing)) => {
                if place.level < 3 {
                    drop(guard);
                    return self.split_and_log(fault.ipa, cache);
                }
                // The bit first: whoever finds the page writable finds it dirty.
                region.bitmap.set(region.page(fault.ipa));
                Resolution::Logged { pages: 1 }
            }
            Some((_, State::Stopping)) => Resolution::Retry,
        };
        update(place.slot(), |raw| raw | WRITE);
        self.clean_entry(place.slot());
        self.cpu.invalidate_ipa_here(place.start, self.hint(&place));
        resolution
    }

    /// A fault on an entry that, by now, has nothing against a write; or that was no write.
    fn settle(&self, fault: &Fault, place: &Place<'_>, entry: u64, is_logged: bool) -> Resolution {
        let attributes = Attributes::of(entry);
        let permitted = match fault.access {
            Access::Read => attributes.read,
            Access::Write => entry & WRITE != 0,
            // A walk may also be refused because the guest's table is in device memory (HCR_EL2.PTW),
            // whatever the permissions are: where no log changes them, trying again would not help.
            Access::ReadWrite => {
                let refuses_walks = attributes.memory.is_device() && !is_logged;
                attributes.read && entry & WRITE != 0 && !refuses_walks
            }
            Access::Execute => attributes.execute == Execute::All,
        };
        if fault.kind == FaultKind::Permission {
            if !permitted {
                return Resolution::Denied;
            }
            // A TLB may hold on to an entry that has become more permissive.
            self.cpu.invalidate_ipa_here(place.start, self.hint(place));
        }
        Resolution::Retry
    }

    /// The first write to a block: exchanges it for tables down to pages, all protected but the one.
    fn split_and_log(&self, ipa: u64, cache: &mut TableCache<'_, M>) -> Resolution {
        // Before the lock. If it fails, what is needed may still be there.
        let _ = cache.fill(2);
        let guard = self.exclusive();
        // From the root again: the lock was free in between.
        let place = self.last_entry(ipa);
        let Some(region) = guard.at(ipa) else {
            return Resolution::Retry;
        };
        let by_hardware = match region.state {
            State::Logging(mode) => mode == LogMode::Hardware,
            State::Preparing => false,
            State::Off | State::Stopping => return Resolution::Retry,
        };
        let unwritable = place.entry & (VALID | GRANTED | PROTECTED | WRITE) == VALID | GRANTED;
        if place.level == 3 || !unwritable {
            return Resolution::Retry;
        }
        let is_divisible = place.entry & CONTIGUOUS == 0 && place.is_within(&region.range);
        if !is_divisible || cache.len() < usize::from(3 - place.level) {
            // Dirty as a whole, but nothing is lost and the guest runs on.
            guard.mark(place.start, place.end - place.start);
            place.slot().fetch_or(WRITE, Ordering::AcqRel);
            self.clean_entry(place.slot());
            self.cpu.invalidate_ipa_here(place.start, self.hint(&place));
            return Resolution::Logged {
                pages: (place.end - place.start) / PAGE_SIZE,
            };
        }
        region.bitmap.set(region.page(ipa));
        let mut block = place.entry;
        let mut slot = place.slot();
        let mut top = None;
        // From the top down. What is built stays invisible until the one exchange at the end.
        for level in place.level..3 {
            let Some(table_pa) = cache.take() else {
                return Resolution::Retry;
            };
            let dirty_modifier = if by_hardware && level == 2 {
                DIRTY_MODIFIER
            } else {
                0
            };
            self.fill_with_children(table_pa, block | dirty_modifier, level);
            if top.is_some() {
                slot.store(table_entry(table_pa), Ordering::Relaxed);
                self.clean_entry(slot);
            }
            top = top.or(Some(table_pa));
            slot = &self.table_at(table_pa).entries()[index(ipa, level + 1)];
            block = slot.load(Ordering::Relaxed);
        }
        slot.fetch_or(WRITE, Ordering::Relaxed);
        self.clean_entry(slot);
        self.cpu.publish();
        if let Some(table_pa) = top {
            self.exchange_block(&place, table_pa);
        }
        Resolution::Logged { pages: 1 }
    }

    /// The level that an invalidation may name. Under FEAT_BBM level 2 none: a split that is under way,
    /// or just done, leaves the block in the TLBs until the end of its pass.
    fn hint(&self, place: &Place<'_>) -> Option<u8> {
        (self.config.block_change != BlockChange::Direct).then_some(place.level)
    }

    /// One block for one table, with an invalidation of its own; see [`batch`](crate::batch) for many.
    fn exchange_block(&self, place: &Place<'_>, table_pa: u64) {
        let new = table_entry(table_pa);
        let before = match self.config.block_change {
            BlockChange::BreakBeforeMake => place.slot().fetch_and(!VALID, Ordering::AcqRel),
            BlockChange::NoTranslate => place.slot().fetch_or(NO_TRANSLATE, Ordering::AcqRel),
            BlockChange::Direct => place.slot().swap(new, Ordering::AcqRel),
        };
        debug_assert!(is_valid(before));
        self.clean_entry(place.slot());
        self.cpu.invalidate_ipa(place.start, self.hint(place));
        place.slot().store(new, Ordering::Release);
        self.clean_entry(place.slot());
        self.cpu.publish();
    }
}
