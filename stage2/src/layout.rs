//! How the tree starts for an input size, and the VTCR_EL2 that says so to the hardware.

use crate::descriptor::{shift, span};
use crate::error::{ConfigError, RangeError};
use core::ops::Range;

/// Bytes of a page and of a table.
pub const PAGE_SIZE: u64 = 4096;

/// How a live block may be exchanged for a table, or a table for a block.
///
/// From ID_AA64MMFR2_EL1.BBM, the least of all CPUs that run the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockChange {
    /// Level 0: the entry is made invalid, the TLBs are invalidated, the new entry is made. vCPUs that
    /// touch it meanwhile take a translation fault, wait for the lock, and retry.
    BreakBeforeMake,
    /// Level 1: the block carries nT while the TLBs are invalidated.
    NoTranslate,
    /// Level 2: exchanged at once. Only for CPUs that raise no TLB conflict abort for it, or whose
    /// aborts all reach EL2, where [`FaultKind::Conflict`](crate::FaultKind::Conflict) answers them.
    Direct,
}

/// What the tables of a VM are made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Bits of the guest's physical address space: 32 to 48, and not more than the CPUs' PARange.
    pub ipa_bits: u8,
    /// How blocks may be split and merged while the guest runs.
    pub block_change: BlockChange,
    /// Every CPU that runs the VM has FEAT_HAFDBS with dirty state (ID_AA64MMFR1_EL1.HAFDBS >= 2):
    /// VTCR_EL2.HA and HD are set, entries are changed by atomic read-modify-write only, and
    /// [`LogMode::Hardware`](crate::LogMode::Hardware) may be asked for.
    pub hardware_dirty: bool,
}

impl Config {
    /// The safe choice for any CPU.
    pub fn new(ipa_bits: u8) -> Self {
        Self {
            ipa_bits,
            block_change: BlockChange::BreakBeforeMake,
            hardware_dirty: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) ipa_bits: u8,
    pub(crate) start_level: u8,
    /// Tables that stand side by side as the root.
    pub(crate) root_tables: usize,
}

impl Layout {
    /// As few levels as up to sixteen concatenated root tables allow, as Linux does: it saves one
    /// memory access on every walk.
    pub(crate) fn new(ipa_bits: u8) -> Result<Self, ConfigError> {
        let start_level = match ipa_bits {
            32..=34 => 2,
            35..=43 => 1,
            44..=48 => 0,
            _ => return Err(ConfigError::InputSize { ipa_bits }),
        };
        let root_bits = u32::from(ipa_bits).saturating_sub(shift(start_level) + 9);
        Ok(Self {
            ipa_bits,
            start_level,
            root_tables: 1 << root_bits,
        })
    }

    /// One past the last address.
    pub(crate) fn limit(&self) -> u64 {
        1 << self.ipa_bits
    }

    /// Whether the architecture has blocks at `level` of such a tree.
    pub(crate) fn has_blocks(&self, level: u8) -> bool {
        (1..=2).contains(&level) && level >= self.start_level
    }

    /// Bytes that one root table maps.
    pub(crate) fn root_span(&self) -> u64 {
        span(self.start_level) * 512
    }

    pub(crate) fn check(&self, range: &Range<u64>) -> Result<(), RangeError> {
        if range.start > range.end {
            return Err(RangeError::Reversed {
                start: range.start,
                end: range.end,
            });
        }
        if range.end > self.limit() {
            return Err(RangeError::BeyondInputSize {
                end: range.end,
                ipa_bits: self.ipa_bits,
            });
        }
        match (range.start | range.end) & (PAGE_SIZE - 1) {
            0 => Ok(()),
            _ => Err(RangeError::Unaligned {
                start: range.start,
                end: range.end,
            }),
        }
    }

    /// VTCR_EL2: 4 KiB granule, walks inner shareable and write-back cacheable.
    pub(crate) fn vtcr(&self, pa_range: u8, vmid_16_bits: bool, hardware_dirty: bool) -> u64 {
        let t0sz = 64 - u64::from(self.ipa_bits);
        let sl0 = 2 - u64::from(self.start_level);
        let walks = 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
        let hardware = if hardware_dirty { 1 << 21 | 1 << 22 } else { 0 };
        1 << 31
            | hardware
            | u64::from(vmid_16_bits) << 19
            | u64::from(pa_range & 0b111) << 16
            | walks
            | sl0 << 6
            | t0sz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows are those of the Arm ARM's tables of stage-2 start levels for the 4 KiB granule.
    #[test]
    fn start_level_and_concatenation_follow_the_architecture() {
        let rows = [
            (32, 2, 4),
            (34, 2, 16),
            (35, 1, 1),
            (36, 1, 1),
            (39, 1, 1),
            (40, 1, 2),
            (43, 1, 16),
            (44, 0, 1),
            (48, 0, 1),
        ];
        for (ipa_bits, start_level, root_tables) in rows {
            let layout = Layout::new(ipa_bits).unwrap();
            assert_eq!(
                (layout.start_level, layout.root_tables),
                (start_level, root_tables),
                "{ipa_bits}"
            );
            assert!(layout.root_span() * root_tables as u64 >= layout.limit());
        }
        assert!(Layout::new(31).is_err() && Layout::new(49).is_err());
    }

    #[test]
    fn vtcr_names_size_and_start_level() {
        let vtcr = Layout::new(40).unwrap().vtcr(0b101, true, false);
        assert_eq!(vtcr & 0x3f, 24);
        assert_eq!(vtcr >> 6 & 0b11, 1);
        assert_eq!(vtcr >> 16 & 0b1111, 0b1101);
        assert_eq!(vtcr >> 21 & 0b11, 0);
        assert_eq!(
            Layout::new(48).unwrap().vtcr(0, false, true) >> 21 & 0b11,
            0b11
        );
    }
}
