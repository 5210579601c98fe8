//! What the checker found.

use serde::{Deserialize, Serialize};

/// The counter of a device whose thread writes guest RAM, from the device's saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceWriter {
    /// Its writer number.
    pub writer: u64,
    /// All its writes below this number are complete, no other is begun.
    pub done: u64,
}

/// The counters of a vCPU, from its mailbox page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuCounters {
    /// Writes begun.
    pub begun: u64,
    /// Writes complete: `begun`, or one less.
    pub done: u64,
}

/// A page that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Its number in the workload area, if it belongs to that.
    pub page: Option<u64>,
    /// Byte offset in the page of the first wrong 8-byte word.
    pub offset: u64,
    /// That word as it must be. In a page that may be half written: as it was before.
    pub expected: u64,
    /// That word as it is.
    pub found: u64,
    /// What the page is, and where the wrong content seems to come from.
    pub why: String,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Pages compared, 4 KiB each: all of RAM, unless the parameters are not readable.
    pub pages_checked: u64,
    /// Findings: pages, and mailboxes with counters that no pause leaves.
    pub wrong_count: u64,
    /// The first [`MAX_LISTED`](Self::MAX_LISTED) of them.
    pub wrong: Vec<Wrong>,
    /// Pages found all zero.
    pub zero_pages: u64,
    /// Pages found with words of two writes, where that is right: at most one a vCPU.
    pub half_written_pages: u64,
    /// Counters of each vCPU.
    pub vcpus: Vec<VcpuCounters>,
    /// Counters of each device, as given.
    pub devices: Vec<DeviceWriter>,
}

impl Report {
    /// Most findings that are listed.
    pub const MAX_LISTED: usize = 16;

    /// Whether everything was as it must be.
    pub fn is_right(&self) -> bool {
        self.wrong_count == 0
    }

    pub(crate) fn add(&mut self, wrong: Wrong) {
        self.wrong_count += 1;
        if self.wrong.len() < Self::MAX_LISTED {
            self.wrong.push(wrong);
        }
    }
}
