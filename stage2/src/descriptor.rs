//! Stage-2 descriptors of VMSAv8-64 with the 4 KiB granule, and the attributes a mapper chooses.
//!
//! | bits | name | use here |
//! |---|---|---|
//! | 0, 1 | valid, type | table and page are `0b11`, block is `0b01` |
//! | 5:2 | MemAttr | kept |
//! | 6 | S2AP\[0\] | read permission, kept |
//! | 7 | S2AP\[1\] | write permission: the one bit that protecting clears |
//! | 9:8 | SH | kept |
//! | 10 | AF | kept |
//! | 16 | nT | set on blocks for the length of a change of size under FEAT_BBM level 1 |
//! | 47:12 | output address | |
//! | 51 | DBM | set only while the hardware logs: then a clear S2AP\[1\] means "clean" |
//! | 52 | Contiguous | dropped where entries of one set would come to differ |
//! | 54:53 | XN | kept |
//! | 56:55 | software | the caller's, kept |
//! | 57 | software | ours: `protect` took write permission, and only `unprotect` gives it back |
//! | 58 | software | ours: the mapper granted writes (never changed afterwards) |
//!
//! So a page that could be written and cannot be for now says why: bit 57 is set, or the log did it. A
//! page may be without permission for both reasons, and then gets it back when both are gone.
//!
//! An entry whose valid bit is clear but which is not zero is in the middle of a break-before-make:
//! the walker of the hardware ignores its other bits, and they are what it is made again from. No
//! such entry outlives the lock under which it was broken.

pub(crate) const VALID: u64 = 1;
pub(crate) const TABLE_OR_PAGE: u64 = 1 << 1;
pub(crate) const WRITE: u64 = 1 << 7;
pub(crate) const ACCESSED: u64 = 1 << 10;
pub(crate) const NO_TRANSLATE: u64 = 1 << 16;
pub(crate) const DIRTY_MODIFIER: u64 = 1 << 51;
pub(crate) const CONTIGUOUS: u64 = 1 << 52;
/// Frozen by [`protect`](crate::Stage2::protect): neither [`WRITE`] nor [`DIRTY_MODIFIER`] is set.
pub(crate) const PROTECTED: u64 = 1 << 57;
/// Writes were granted by whoever mapped the entry; a clear [`WRITE`] is then ours to undo.
pub(crate) const GRANTED: u64 = 1 << 58;

pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const READ: u64 = 1 << 6;
const MEMORY_SHIFT: u32 = 2;
const SHARE_SHIFT: u32 = 8;
const XN_SHIFT: u32 = 53;
const SOFTWARE_SHIFT: u32 = 55;

/// log2 of the bytes that one entry of `level` maps.
pub(crate) const fn shift(level: u8) -> u32 {
    39 - 9 * level as u32
}

/// Bytes that one entry of `level` maps.
pub(crate) const fn span(level: u8) -> u64 {
    1 << shift(level)
}

pub(crate) const fn index(ipa: u64, level: u8) -> usize {
    ((ipa >> shift(level)) & 511) as usize
}

pub(crate) const fn is_valid(entry: u64) -> bool {
    entry & VALID != 0
}

pub(crate) const fn is_table(entry: u64, level: u8) -> bool {
    level < 3 && entry & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
}

/// The address in a leaf of `level`, without the attribute bits that lie below it in a block.
pub(crate) const fn output(entry: u64, level: u8) -> u64 {
    entry & ADDRESS & !(span(level) - 1)
}

pub(crate) const fn table_entry(table_pa: u64) -> u64 {
    table_pa | VALID | TABLE_OR_PAGE
}

/// All of a leaf but its address, its type and the hint.
pub(crate) const fn leaf_bits(entry: u64) -> u64 {
    entry & !(ADDRESS | VALID | TABLE_OR_PAGE | CONTIGUOUS)
}

/// A leaf of `level` with the given attribute bits.
pub(crate) const fn leaf(pa: u64, bits: u64, level: u8) -> u64 {
    let kind = if level == 3 { TABLE_OR_PAGE } else { 0 };
    pa | bits | VALID | kind
}

/// Entry `slot` of the table that replaces `block`: the same attributes, one level further down.
pub(crate) const fn child(block: u64, block_level: u8, slot: usize) -> u64 {
    let level = block_level + 1;
    leaf(
        output(block, block_level) + slot as u64 * span(level),
        leaf_bits(block),
        level,
    )
}

/// The block that `children` would merge into, if they are contiguous and alike; read one by one, as
/// the hardware may be changing them.
pub(crate) fn merged(mut children: impl Iterator<Item = u64>, block_level: u8) -> Option<u64> {
    let level = block_level + 1;
    let leaf_type = if level == 3 {
        VALID | TABLE_OR_PAGE
    } else {
        VALID
    };
    let first = children.next()?;
    let base = output(first, level);
    let bits = leaf_bits(first);
    if first & (VALID | TABLE_OR_PAGE) != leaf_type || base & (span(block_level) - 1) != 0 {
        return None;
    }
    let alike = children.enumerate().all(|(slot, entry)| {
        entry & !CONTIGUOUS == leaf(base + (slot as u64 + 1) * span(level), bits, level)
    });
    alike.then(|| leaf(base, bits, block_level))
}

/// MemAttr\[3:0\] of stage 2. The constants are the encodings without FEAT_S2FWB; with it, give the
/// four bits that your HCR_EL2 asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryType(
    /// The four bits.
    pub u8,
);

impl MemoryType {
    /// Device-nGnRE.
    pub const DEVICE: Self = Self(0b0001);
    /// Normal, inner and outer non-cacheable.
    pub const NON_CACHEABLE: Self = Self(0b0101);
    /// Normal, inner and outer write-back.
    pub const NORMAL: Self = Self(0b1111);

    /// With FEAT_S2FWB too.
    pub(crate) const fn is_device(self) -> bool {
        self.0 & 0b1100 == 0
    }
}

/// SH\[1:0\].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shareability {
    /// Not shared.
    None = 0b00,
    /// Outer shareable.
    Outer = 0b10,
    /// Inner shareable.
    Inner = 0b11,
}

/// XN\[1:0\]: who may execute. The two middle ones need FEAT_XNX.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Execute {
    /// EL1 and EL0.
    All = 0b00,
    /// EL0 only.
    UnprivilegedOnly = 0b01,
    /// Nobody.
    None = 0b10,
    /// EL1 only.
    PrivilegedOnly = 0b11,
}

/// What a mapper says of a range. Everything but `write` stays as it is through protecting, splitting,
/// logging and merging; `write` is what the mapper granted, whether or not it is taken away for now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// Memory type.
    pub memory: MemoryType,
    /// Shareability.
    pub shareability: Shareability,
    /// Reads are permitted.
    pub read: bool,
    /// Writes are permitted (a page without it is never logged and never made writable).
    pub write: bool,
    /// Execution.
    pub execute: Execute,
    /// Access flag. A fault on a clear one sets it.
    pub accessed: bool,
    /// Give the contiguous hint wherever sixteen entries allow it.
    pub contiguous: bool,
    /// Two bits of the caller's own (bits 56:55); higher bits are ignored.
    pub software: u8,
}

impl Attributes {
    /// Guest RAM: normal write-back, inner shareable, everything permitted.
    pub const RAM: Self = Self {
        memory: MemoryType::NORMAL,
        shareability: Shareability::Inner,
        read: true,
        write: true,
        execute: Execute::All,
        accessed: true,
        contiguous: false,
        software: 0,
    };

    /// As [`RAM`](Self::RAM), but read-only.
    pub const ROM: Self = Self {
        write: false,
        ..Self::RAM
    };

    pub(crate) fn bits(self) -> u64 {
        let mut bits = u64::from(self.memory.0 & 0xf) << MEMORY_SHIFT
            | (self.shareability as u64) << SHARE_SHIFT
            | (self.execute as u64) << XN_SHIFT
            | u64::from(self.software & 0b11) << SOFTWARE_SHIFT;
        if self.read {
            bits |= READ;
        }
        if self.write {
            bits |= WRITE | GRANTED;
        }
        if self.accessed {
            bits |= ACCESSED;
        }
        bits
    }

    pub(crate) fn of(entry: u64) -> Self {
        Self {
            memory: MemoryType((entry >> MEMORY_SHIFT) as u8 & 0xf),
            shareability: match entry >> SHARE_SHIFT & 0b11 {
                0b00 => Shareability::None,
                0b10 => Shareability::Outer,
                _ => Shareability::Inner,
            },
            read: entry & READ != 0,
            write: entry & GRANTED != 0,
            execute: match entry >> XN_SHIFT & 0b11 {
                0b00 => Execute::All,
                0b01 => Execute::UnprivilegedOnly,
                0b10 => Execute::None,
                _ => Execute::PrivilegedOnly,
            },
            accessed: entry & ACCESSED != 0,
            contiguous: entry & CONTIGUOUS != 0,
            software: (entry >> SOFTWARE_SHIFT) as u8 & 0b11,
        }
    }
}
