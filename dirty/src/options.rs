//! How a freeze behaves.

use std::time::Duration;

use paguro_sys::Host;

use crate::Sabotage;
use crate::sizes::GRANULE;

/// What happens to huge anonymous pages while they are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePolicy {
    /// Protected and released whole: the guest keeps its huge pages.
    #[default]
    Keep,
    /// Released in smaller chunks: less is copied for a write, and the huge page is split.
    Split,
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

impl FreezeOptions {
    /// Pages copied and released at once, at most, whatever was asked for.
    pub(crate) fn most_pages(&self) -> usize {
        self.chunk_pages.clamp(1, GRANULE)
    }
}
