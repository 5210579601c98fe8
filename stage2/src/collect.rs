//! Reading the log: taking bits while their pages are protected again.

use crate::bitmap::words_for;
use crate::cpu::Cpu;
use crate::descriptor::{DIRTY_MODIFIER, VALID, WRITE, index, is_valid, span};
use crate::error::LogError;
use crate::layout::PAGE_SIZE;
use crate::protect::update;
use crate::region::{LogMode, Region, RegionId, Regions, State};
use crate::stage2::Stage2;
use crate::sync::{AtomicU64, Ordering};
use crate::table::TableMemory;
use crate::walk::{PassReport, Place};
use core::ops::Deref;

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    /// Takes dirty bits and protects their pages again: of the words from `first_word` on, as many as
    /// `out` has; with a `mask`, only the bits that it names, the others stay. When it returns, the
    /// invalidation is complete, and the pages in `out` may be read: any later write is logged again.
    ///
    /// Small chunks, collected just before their pages are read, give the guest the least to fault on.
    ///
    /// # Errors
    /// `NoRegion`, `NotLogging`, `BeyondRegion`, `TooShort` (the mask), `Busy`: nothing was taken.
    pub fn collect(
        &self,
        id: RegionId,
        first_word: usize,
        mask: Option<&[u64]>,
        out: &mut [u64],
    ) -> Result<PassReport, LogError> {
        let _pass = self.begin_pass().ok_or(LogError::Busy)?;
        if mask.is_some_and(|mask| mask.len() < out.len()) {
            return Err(LogError::TooShort {
                words_needed: out.len(),
            });
        }
        // Holds until the end: what changes regions or their state is kept away by the pass.
        self.check_words(id, first_word, out.len())?;
        let report = self.finished(|report| {
            let mut done = 0;
            let mut held = self.exclusive();
            while done < out.len() {
                let Some((region, mode)) = logged_words(&held, id, first_word, out.len()) else {
                    break;
                };
                let masked = mask.map_or(u64::MAX, |mask| mask[done]);
                out[done] = self.collect_word(region, mode, first_word + done, masked, report);
                done += 1;
                // 512 pages are what one table maps, and as much as a vCPU should have to wait for.
                if done % 8 == 0 && (held.contended() || self.cpu.should_yield()) {
                    drop(held);
                    report.lock_yields += 1;
                    held = self.exclusive();
                }
            }
            Ok(())
        })?;
        Ok(report)
    }

    fn collect_word(
        &self,
        region: &Region<B>,
        mode: LogMode,
        word: usize,
        mask: u64,
        report: &mut PassReport,
    ) -> u64 {
        let mask = mask & region.bitmap.valid_bits(word);
        let mut dirty = region.bitmap.take(word, mask);
        let logged = dirty;
        let by_hardware = mode == LogMode::Hardware;
        let mut left = if by_hardware { mask } else { logged };
        let base = region.range.start + word as u64 * 64 * PAGE_SIZE;
        let mut found: Option<Place<'_>> = None;
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left &= !bit;
            let ipa = base + u64::from(bit.trailing_zeros()) * PAGE_SIZE;
            let mut place = match found {
                Some(place) if place.level == 3 && ipa / span(2) == place.start / span(2) => place,
                _ => self.last_entry(ipa),
            };
            if place.level == 3 {
                place.slot = index(ipa, 3);
                place.entry = place.slot().load(Ordering::Relaxed);
            }
            found = Some(place);
            if place.entry & (VALID | WRITE) != VALID | WRITE {
                continue;
            }
            match (place.level, by_hardware) {
                (3, true) => {
                    update(place.slot(), |raw| raw & !WRITE | DIRTY_MODIFIER);
                    dirty |= bit;
                }
                (3, false) => {
                    place.slot().fetch_and(!WRITE, Ordering::Relaxed);
                }
                // A block is writable as long as none of its bits was taken since they were all set.
                _ if logged & bit != 0 => {
                    place.slot().fetch_and(!WRITE, Ordering::Relaxed);
                }
                _ => continue,
            }
            self.clean_entry(place.slot());
            report.entries_changed += 1;
            report.stale = true;
        }
        dirty
    }

    /// Reads dirty bits and leaves them, for planning. Nothing is protected again, so do not read the
    /// pages on the strength of it.
    ///
    /// # Errors
    /// `NoRegion`, `NotLogging`, `BeyondRegion`.
    pub fn peek(&self, id: RegionId, first_word: usize, out: &mut [u64]) -> Result<(), LogError> {
        self.check_words(id, first_word, out.len())?;
        let guard = self.shared();
        for (at, dirty) in out.iter_mut().enumerate() {
            let Some((region, mode)) = logged_words(&guard, id, first_word, at + 1) else {
                break;
            };
            let word = first_word + at;
            *dirty = region.bitmap.peek(word) & region.bitmap.valid_bits(word);
            if mode == LogMode::Hardware {
                let base = region.range.start + word as u64 * 64 * PAGE_SIZE;
                for bit in (0..64).filter(|bit| region.bitmap.valid_bits(word) >> bit & 1 != 0) {
                    let place = self.last_entry(base + bit * PAGE_SIZE);
                    let is_dirty =
                        is_valid(place.entry) && place.level == 3 && place.entry & WRITE != 0;
                    *dirty |= u64::from(is_dirty) << bit;
                }
            }
        }
        Ok(())
    }

    fn check_words(&self, id: RegionId, first_word: usize, len: usize) -> Result<(), LogError> {
        let guard = self.shared();
        let region = guard.get(id).ok_or(LogError::NoRegion)?;
        let words = words_for(region.pages());
        match region.state {
            State::Logging(_) if first_word.checked_add(len).is_some_and(|end| end <= words) => {
                Ok(())
            }
            State::Logging(_) => Err(LogError::BeyondRegion { words }),
            _ => Err(LogError::NotLogging),
        }
    }
}

/// The region, if it is being logged and has these words.
fn logged_words<B>(
    regions: &Regions<B>,
    id: RegionId,
    first_word: usize,
    len: usize,
) -> Option<(&Region<B>, LogMode)> {
    let region = regions.get(id)?;
    let end = first_word.checked_add(len)?;
    match region.state {
        State::Logging(mode) if end <= words_for(region.pages()) => Some((region, mode)),
        _ => None,
    }
}
