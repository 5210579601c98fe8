//! What the architecture demands of whoever changes live tables, checked at each change.
//!
//! The TLBs of [`SoftCpu`](super::SoftCpu) hold what their CPUs happened to use. Hardware walks ahead of
//! what it needs, and may hold whatever any walk could have found since the last invalidation: tables on
//! the way, and leaves that nobody touched. So the rules keep, of every entry, the values that it had
//! and that no invalidation has reached since, and refuse
//!
//! - an entry made where TLBs may hold one with another output, memory type or shareability, or another
//!   table: at every level of FEAT_BBM;
//! - one of another size, or in a contiguous set that is not all alike, unless it carries nT or the CPUs
//!   have level 2 (where output and type have to agree all the same);
//! - a table given back that is still linked, or that TLBs may still walk through.
//!
//! Permissions, the access flag and bits of software may change at any time.
//!
//! What was stored is learned from [`Cpu::clean`](crate::Cpu::clean), which an entry passes through
//! after each change: so the rules see the tables as a walker sees them that is not coherent with the
//! caches, and [`assert_cleaned`](Rules::assert_cleaned) finds what was forgotten.

use crate::descriptor::{ACCESSED, ADDRESS, CONTIGUOUS, NO_TRANSLATE, WRITE};
use crate::descriptor::{index, is_table, is_valid, output, span};
use crate::layout::{BlockChange, Config, Layout, PAGE_SIZE};
use crate::sync::Mutex;
use core::ops::{DerefMut, Range};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// MemAttr and SH.
const KIND: u64 = 0b1111 << 2 | 0b11 << 8;
/// What may not change without a break in between; nT is among the address bits of a block.
const MATERIAL: u64 = 0b11 | KIND | ADDRESS | CONTIGUOUS;

pub(super) struct Rules {
    layout: Layout,
    block_change: BlockChange,
    hardware_dirty: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Broadcast invalidations that began.
    begun: u64,
    /// The last one to have begun of those of the whole VM that are over.
    over: u64,
    /// By address: the tables that are handed out.
    tables: BTreeMap<u64, Known>,
    /// By level and first address: what entries were, and TLBs may still hold.
    held: BTreeMap<(u8, u64), Vec<Held>>,
    /// A table that was given back while an entry led to it. Dropping the tree does that, as the last
    /// thing that is done with it.
    dangling: Option<u64>,
}

struct Known {
    entries: Box<[u64; 512]>,
    /// Level and first address; `None` as long as no entry of the tree leads to it.
    place: Option<(u8, u64)>,
    /// Nothing leads to it any more since so many invalidations had begun.
    unlinked: Option<u64>,
}

#[derive(Clone, Copy)]
struct Held {
    value: u64,
    /// The invalidations that had begun when it was taken away do not reach it.
    since: u64,
}

/// An entry and what it maps.
#[derive(Clone, Copy)]
struct Made {
    level: u8,
    start: u64,
    value: u64,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            layout: Layout::new(config.ipa_bits).expect("an input size that tables exist for"),
            block_change: config.block_change,
            hardware_dirty: config.hardware_dirty,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> impl DerefMut<Target = State> {
        // A test that was stopped by the rules is taken apart under them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first tables to be handed out are the root.
    pub(super) fn allocated(&self, pa: u64, tables: usize) {
        let mut state = self.state();
        state.check_dangling();
        let is_root = state.tables.is_empty();
        for at in 0..tables as u64 {
            let place = (self.layout.start_level, at * self.layout.root_span());
            let known = Known {
                entries: Box::new([0; 512]),
                place: is_root.then_some(place),
                unlinked: None,
            };
            state.tables.insert(pa + at * PAGE_SIZE, known);
        }
    }

    pub(super) fn freed(&self, pa: u64, tables: usize) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.state();
        for pa in (0..tables as u64).map(|at| pa + at * PAGE_SIZE) {
            let known = state.tables.remove(&pa).expect("handed out before");
            assert!(
                known.unlinked.is_none_or(|since| state.over > since),
                "a table was given back too early, {pa:#x}: TLBs may walk through it"
            );
            if known.place.is_some() {
                state.dangling = Some(pa);
            }
        }
    }

    /// Entries were stored and cleaned; `read` gives their values as they are now.
    pub(super) fn cleaned(&self, pa: u64, slots: Range<usize>, read: impl Fn(usize) -> u64) {
        let mut state = self.state();
        state.check_dangling();
        for slot in slots {
            let Some(known) = state.tables.get_mut(&pa) else {
                panic!("entries of a table were changed that is not handed out");
            };
            let new = read(slot);
            let old = core::mem::replace(&mut known.entries[slot], new);
            if let Some((level, base)) = known.place
                && (old ^ new) & MATERIAL != 0
            {
                let start = base + slot as u64 * span(level);
                let made = |value| Made {
                    level,
                    start,
                    value,
                };
                self.changed(&mut state, pa, made(old), made(new));
            }
        }
    }

    /// What was taken away before the invalidation that begins now, is reached by it.
    pub(super) fn begin_invalidation(&self) -> u64 {
        let mut state = self.state();
        state.check_dangling();
        state.begun += 1;
        state.begun
    }

    /// `leaf`: the address that was named, and the level that was hinted, if not the whole VM.
    pub(super) fn end_invalidation(&self, number: u64, leaf: Option<(u64, Option<u8>)>) {
        let mut state = self.state();
        if leaf.is_none() {
            state.over = state.over.max(number);
        }
        state.held.retain(|(level, start), held| {
            let is_reached = |value| match leaf {
                None => true,
                Some((ipa, hint)) => {
                    ipa & !(span(*level) - 1) == *start
                        && (is_table(value, *level) || hint.is_none_or(|hint| hint == *level))
                }
            };
            held.retain(|held| held.since >= number || !is_reached(held.value));
            !held.is_empty()
        });
    }

    /// Every entry was cleaned since it was changed; `read` gives an entry of a table as it is now. To
    /// be called while nobody is at work on the tables.
    pub(super) fn assert_cleaned(&self, read: impl Fn(u64, usize) -> u64) {
        let by_hardware = if self.hardware_dirty {
            ACCESSED | WRITE
        } else {
            0
        };
        let state = self.state();
        for (pa, known) in &state.tables {
            let Some((level, base)) = known.place else {
                continue;
            };
            for (slot, cleaned) in known.entries.iter().enumerate() {
                let now = read(*pa, slot);
                assert!(
                    (now ^ cleaned) & !by_hardware == 0,
                    "the entry at {:#x}, level {level}, is {now:#x}, and was cleaned as {cleaned:#x}",
                    base + slot as u64 * span(level)
                );
            }
        }
    }

    fn changed(&self, state: &mut State, table_pa: u64, old: Made, new: Made) {
        if is_valid(old.value) && !is_kept_out(old) {
            let held = state.held.entry((old.level, old.start)).or_default();
            held.push(Held {
                value: old.value,
                since: state.begun,
            });
        }
        if is_table(old.value, old.level) {
            state.unlink(old.value & ADDRESS);
        }
        self.made(state, table_pa, new);
    }

    /// Checks an entry, and all that it leads to.
    fn made(&self, state: &mut State, table_pa: u64, new: Made) {
        if !is_valid(new.value) {
            return;
        }
        self.check(state, table_pa, new);
        if !is_table(new.value, new.level) {
            return;
        }
        let level = new.level + 1;
        let pa = new.value & ADDRESS;
        let Some(known) = state.tables.get_mut(&pa) else {
            panic!(
                "an entry leads to a table that is not handed out, at {:#x}",
                new.start
            );
        };
        known.place = Some((level, new.start));
        known.unlinked = None;
        for (slot, value) in known.entries.clone().into_iter().enumerate() {
            let start = new.start + slot as u64 * span(level);
            self.made(
                state,
                pa,
                Made {
                    level,
                    start,
                    value,
                },
            );
        }
    }

    fn check(&self, state: &State, table_pa: u64, new: Made) {
        let siblings = state.tables.get(&table_pa).map(|known| &known.entries);
        let set = index(new.start, new.level) & !15;
        let hints = |entries: &[u64; 512]| {
            let made = |value| Made { value, ..new };
            (set..set + 16).any(|slot| is_valid(entries[slot]) && is_hinted(made(entries[slot])))
        };
        if state.held.is_empty() && !siblings.is_some_and(|entries| hints(entries)) {
            return;
        }
        for level in self.layout.start_level..=new.level {
            let own = new.start & !(span(level) - 1);
            let set = own & !(16 * span(level) - 1);
            for start in (0..16).map(|at| set + at * span(level)) {
                let held = state.held.get(&(level, start)).into_iter().flatten();
                let now = siblings.map_or(0, |entries| entries[index(start, level)]);
                let now = (level == new.level && start != own && is_valid(now)).then_some(now);
                for value in held.map(|held| held.value).chain(now) {
                    self.check_pair(
                        state,
                        Made {
                            level,
                            start,
                            value,
                        },
                        new,
                    );
                }
            }
        }
    }

    /// `old` is of the same level as `new` or above it, and may be in a TLB.
    fn check_pair(&self, state: &State, old: Made, new: Made) {
        let own = new.start & !(span(old.level) - 1) == old.start;
        let (hint, new_hint) = (is_hinted(old), is_hinted(new) && old.level == new.level);
        let may_resize = self.block_change == BlockChange::Direct || is_kept_out(new);
        if !own && !hint && !new_hint {
            return;
        }
        match (
            is_table(old.value, old.level),
            is_table(new.value, new.level),
        ) {
            // The table that the walk to `new` goes through, or went through: checked as it was linked.
            (true, _) if old.level < new.level => {}
            (true, true) => assert!(
                !own || old.value & ADDRESS == new.value & ADDRESS,
                "break-before-make was forgotten at {:#x}: another table",
                new.start
            ),
            (true, false) => {
                assert!(may_resize, "{}", Resized(new));
                state.leaves(old, &mut |leaf| self.check_output(leaf, new));
            }
            // Its leaves are checked one by one.
            (false, true) => assert!(may_resize, "{}", Resized(new)),
            (false, false) => {
                let resized = old.level != new.level || hint != new_hint;
                assert!(may_resize || !resized, "{}", Resized(new));
                self.check_output(old, new);
            }
        }
    }

    fn check_output(&self, old: Made, new: Made) {
        let to_new = new.start.wrapping_sub(old.start);
        assert!(
            output(old.value, old.level).wrapping_add(to_new) == output(new.value, new.level),
            "break-before-make was forgotten at {:#x}: another output",
            new.start
        );
        assert!(
            (old.value ^ new.value) & KIND == 0,
            "break-before-make was forgotten at {:#x}: another memory type or shareability",
            new.start
        );
    }
}

impl State {
    fn check_dangling(&self) {
        assert!(
            self.dangling.is_none(),
            "a table was given back that is still linked, {:x?}",
            self.dangling
        );
    }

    /// Nothing leads to the table any more, nor to those below it.
    fn unlink(&mut self, pa: u64) {
        let Some(known) = self.tables.get_mut(&pa) else {
            return;
        };
        let Some((level, _)) = known.place.take() else {
            return;
        };
        known.unlinked = Some(self.begun);
        for entry in known.entries.clone().into_iter() {
            if is_table(entry, level) {
                self.unlink(entry & ADDRESS);
            }
        }
    }

    /// All leaves below the table that `from` leads to.
    fn leaves(&self, from: Made, each: &mut impl FnMut(Made)) {
        let level = from.level + 1;
        let Some(known) = self.tables.get(&(from.value & ADDRESS)) else {
            return;
        };
        for (slot, &value) in known.entries.iter().enumerate() {
            let start = from.start + slot as u64 * span(level);
            let entry = Made {
                level,
                start,
                value,
            };
            match is_table(value, level) {
                true => self.leaves(entry, each),
                false if is_valid(value) => each(entry),
                false => {}
            }
        }
    }
}

/// nT on a block: no TLB keeps it.
fn is_kept_out(made: Made) -> bool {
    made.level < 3 && !is_table(made.value, made.level) && made.value & NO_TRANSLATE != 0
}

fn is_hinted(made: Made) -> bool {
    !is_table(made.value, made.level) && made.value & CONTIGUOUS != 0
}

struct Resized(Made);

impl core::fmt::Display for Resized {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "break-before-make was forgotten at {:#x}: another size",
            self.0.start
        )
    }
}
