//! Errors. All of them are the caller's: a wrong argument, a wrong moment, or no memory for a table.
//!
//! Written out by hand: a hypervisor's build should not need a procedural macro for a few enums.

use core::error::Error;
use core::fmt;

macro_rules! errors {
    ($($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident $({ $($(#[$fmeta:meta])* $field:ident: $ty:ty),* })? => $text:literal),* $(,)? })*) => {
        $($(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $ty),* })?),* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                #[allow(unused_variables)] // a source is printed by whoever prints the chain
                match self { $(Self::$variant $({ $($field),* })? => write!(f, $text)),* }
            }
        })*
    };
}

errors! {
    /// The tables cannot be made.
    ConfigError {
        /// The 4 KiB granule without LPA2 has input sizes up to 48 bits; below 32 nothing is gained.
        InputSize {
            /// What was asked for.
            ipa_bits: u8
        } => "input size of {ipa_bits} bits is not between 32 and 48",
        /// No memory for the root, or it is not aligned to its size.
        NoRoot => "no aligned memory for the root tables",
    }

    /// A range of guest physical addresses that no operation takes. An empty range is not an error.
    RangeError {
        /// Ranges are whole pages; rounding would touch pages that were not named.
        Unaligned {
            /// First byte.
            start: u64,
            /// One past the last byte.
            end: u64
        } => "range {start:#x}..{end:#x} is not aligned to pages",
        /// It ends before it starts.
        Reversed {
            /// First byte.
            start: u64,
            /// One past the last byte.
            end: u64
        } => "range {start:#x}..{end:#x} ends before it starts",
        /// It reaches beyond the input size.
        BeyondInputSize {
            /// One past the last byte.
            end: u64,
            /// The input size.
            ipa_bits: u8
        } => "range ends at {end:#x}, beyond the input size of {ipa_bits} bits",
    }

    /// Mapping, unmapping, splitting or protecting failed.
    TableError {
        /// See the source.
        Range {
            /// What is wrong with the range.
            source: RangeError
        } => "the range is not usable",
        /// The output address is not a page's, or reaches beyond 48 bits.
        OutputAddress {
            /// The address of the first byte.
            pa: u64
        } => "output address {pa:#x} is not usable",
        /// Something is mapped there; what this call had mapped is unmapped again.
        AlreadyMapped {
            /// The first address found mapped.
            ipa: u64
        } => "{ipa:#x} is mapped already",
        /// A table could not be allocated. What the operation says about failure holds.
        OutOfTables => "no memory for a table",
        /// Another pass over this VM is under way, on another CPU.
        Busy => "another pass is under way",
        /// The range meets a region that is being logged, where blocks are not wanted.
        Logged => "the range is being logged",
    }

    /// The dirty log refused.
    LogError {
        /// See the source.
        Range {
            /// What is wrong with the range.
            source: RangeError
        } => "the range is not usable",
        /// A region has at least one page.
        Empty => "the region is empty",
        /// Regions do not overlap.
        Overlap => "the region overlaps another",
        /// All places for regions are taken.
        TooManyRegions => "no place for another region",
        /// The bitmap, mask or buffer is shorter than the pages it stands for.
        TooShort {
            /// Words of 64 pages needed.
            words_needed: usize
        } => "needs {words_needed} words",
        /// The words reach beyond the region's last page.
        BeyondRegion {
            /// Words that the region has.
            words: usize
        } => "the region has {words} words",
        /// No such region.
        NoRegion => "no such region",
        /// The region is being logged already; nothing was changed.
        AlreadyLogging => "the region is being logged already",
        /// The region is not being logged.
        NotLogging => "the region is not being logged",
        /// `Config::hardware_dirty` is off.
        NoHardwareDirty => "the VM runs without hardware dirty state",
        /// A table could not be allocated: logging is off, nothing is protected, the VM runs on.
        OutOfTables => "no memory for a table",
        /// Another pass over this VM is under way, on another CPU.
        Busy => "another pass is under way",
    }
}

impl Error for ConfigError {}
impl Error for RangeError {}

impl Error for TableError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Range { source } => Some(source),
            _ => None,
        }
    }
}

impl Error for LogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Range { source } => Some(source),
            _ => None,
        }
    }
}

impl From<RangeError> for TableError {
    fn from(source: RangeError) -> Self {
        Self::Range { source }
    }
}

impl From<RangeError> for LogError {
    fn from(source: RangeError) -> Self {
        Self::Range { source }
    }
}
