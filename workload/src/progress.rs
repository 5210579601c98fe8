//! The counters that a vCPU posts outside RAM, for the host to watch.
//!
//! A vCPU has [`PROGRESS_BYTES`] of memory that it shares with the host: no part of RAM, in no
//! snapshot, zero when a machine starts or is restored. After each write it posts there how
//! far it is and how long ago it posted last. All counters only grow; whoever wants the
//! figures of a window subtracts. A *gap* is the time in ticks between two posts that follow
//! each other, waits for the rate left out; where the clock went backwards (a restore on
//! another host) it counts as 0.
//!
//! Words are 8 bytes, in the host's byte order, at these byte offsets.

/// Size of one vCPU's memory.
pub const PROGRESS_BYTES: usize = 64 << 10;

/// Writes complete, as in the mailbox.
pub const WRITES: usize = 0x00;
/// Ticks at the last post.
pub const LAST_TICKS: usize = 0x08;
/// The longest gap, in ticks.
pub const MAX_GAP_TICKS: usize = 0x10;
/// Sum of the gaps that reached the threshold, in ticks.
pub const LONG_GAPS_TICKS: usize = 0x18;
/// Number of the gaps that reached the threshold; gap `g` is entry `g % RING_ENTRIES`.
pub const LONG_GAPS: usize = 0x20;
/// Times that the vCPU was more than 10 ms behind its rate and took the loss.
pub const REBASES: usize = 0x28;
/// Times that the vCPU waited because it was ahead of its rate.
pub const WAITS: usize = 0x30;
/// The longest that such a wait lasted beyond what was asked, in ticks: a pause that falls
/// into a wait shows here.
pub const MAX_LATE_TICKS: usize = 0x38;

/// Entry `b` counts the gaps of `2^b <= ticks < 2^(b+1)`; entry 0 those of 0 ticks too.
pub const HISTOGRAM: usize = 0x200;
/// Entries of the histogram.
pub const HISTOGRAM_ENTRIES: usize = 64;

/// The gaps that reached the threshold: pairs of (ticks at the end, length in ticks).
pub const RING: usize = 0x400;
/// Entries of the ring; older ones are overwritten.
pub const RING_ENTRIES: u64 = ((PROGRESS_BYTES - RING) / 16) as u64;

/// A gap that reached the threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// Ticks when it ended.
    pub end_ticks: u64,
    /// How long it was, in ticks.
    pub length_ticks: u64,
}

/// The counters of one vCPU as the host read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// See [`WRITES`].
    pub writes: u64,
    /// See [`LAST_TICKS`].
    pub last_ticks: u64,
    /// See [`MAX_GAP_TICKS`].
    pub max_gap_ticks: u64,
    /// See [`LONG_GAPS_TICKS`].
    pub long_gaps_ticks: u64,
    /// See [`LONG_GAPS`].
    pub long_gaps: u64,
    /// See [`REBASES`].
    pub rebases: u64,
    /// See [`WAITS`].
    pub waits: u64,
    /// See [`MAX_LATE_TICKS`].
    pub max_late_ticks: u64,
    /// See [`HISTOGRAM`].
    pub histogram: [u64; HISTOGRAM_ENTRIES],
}

impl Progress {
    /// Reads the counters through `load`, which returns the word at a byte offset. The vCPU
    /// may be running: each word is right by itself, and `writes` is read first.
    pub fn read(mut load: impl FnMut(usize) -> u64) -> Self {
        Self {
            writes: load(WRITES),
            last_ticks: load(LAST_TICKS),
            max_gap_ticks: load(MAX_GAP_TICKS),
            long_gaps_ticks: load(LONG_GAPS_TICKS),
            long_gaps: load(LONG_GAPS),
            rebases: load(REBASES),
            waits: load(WAITS),
            max_late_ticks: load(MAX_LATE_TICKS),
            histogram: core::array::from_fn(|bucket| load(HISTOGRAM + 8 * bucket)),
        }
    }
}

/// Calls `each` with the listed gaps numbered `from..to` (values of [`LONG_GAPS`]) that are
/// still in the ring, oldest first; returns how many had been overwritten.
pub fn gaps(
    from: u64,
    to: u64,
    mut load: impl FnMut(usize) -> u64,
    mut each: impl FnMut(Gap),
) -> u64 {
    let oldest = to.saturating_sub(RING_ENTRIES).max(from);
    for gap in oldest..to {
        let entry = ring_entry(gap);
        each(Gap {
            end_ticks: load(entry),
            length_ticks: load(entry + 8),
        });
    }
    oldest - from
}

#[inline(always)]
pub(crate) const fn ring_entry(gap: u64) -> usize {
    RING + (gap % RING_ENTRIES) as usize * 16
}

#[inline(always)]
pub(crate) const fn bucket(gap_ticks: u64) -> usize {
    HISTOGRAM + 8 * (63 - (gap_ticks | 1).leading_zeros() as usize)
}
