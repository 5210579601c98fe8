//! How a freeze behaves.

use std::time::Duration;

use paguro_sys::Host;

/// What happens to huge anonymous pages while they are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePolicy {
    /// Protected and released whole: the guest keeps its huge pages.
    #[default]
    Keep,
    /// Released in smaller chunks: less is copied for a write, and the huge page is split.
    Split,
}

/// One thing broken on purpose, so that a test can show that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// Nothing is broken.
    #[default]
    None,
    /// A chunk is released before it is copied (P3).
    ReleaseBeforeCopy,
    /// A page may be claimed twice (P2, P1).
    ClaimTwice,
    /// What was released while arming is armed again before the readers stand still (P1).
    RearmBeforeBarrier,
    /// What was released while arming is not armed again (P1).
    NoRearm,
    /// Device state is collected after the freeze (P1).
    DevicesAfterFreeze,
    /// One page is left out (P1).
    SkipPage,
    /// Pages that arrive while frozen are placed without protection (P1).
    PlaceUnprotected,
}

impl Sabotage {
    /// The names under which a program offers them.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("break-release-before-copy", Self::ReleaseBeforeCopy),
        ("break-claim-twice", Self::ClaimTwice),
        ("break-rearm-before-barrier", Self::RearmBeforeBarrier),
        ("break-no-rearm", Self::NoRearm),
        ("break-devices-after-freeze", Self::DevicesAfterFreeze),
        ("break-skip-page", Self::SkipPage),
        ("break-place-unprotected", Self::PlaceUnprotected),
    ];
}

/// How a freeze behaves.
#[derive(Clone, Debug)]
pub struct FreezeOptions {
    /// What the host can do.
    pub host: Host,
    /// Pages copied and released at once, at most (1 to 512).
    pub chunk_pages: usize,
    /// Bytes of page copies that may wait to be written.
    pub buffer_bytes: usize,
    /// What happens to huge pages.
    pub huge: HugePolicy,
    /// How long a page of a file that RAM maps is tried again if it cannot be read.
    pub retry: Duration,
    /// Read all of RAM in the pause, which takes longer by some 0.2 ms a MiB, and compare each copy
    /// with what was there: finds writers that no freeze sees.
    pub check: bool,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}
