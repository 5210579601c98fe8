//! Several trackers as one.

use std::ops::Range;
use std::sync::Arc;

use paguro_ram::PageSet;

use super::{Tracker, TrackerError};

/// Reports what any of its members reports.
pub struct Union {
    members: Vec<Arc<dyn Tracker>>,
}

impl std::fmt::Debug for Union {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Union of {}", self.members.len())
    }
}

impl Union {
    /// Of these, all over the same RAM.
    pub fn new(members: Vec<Arc<dyn Tracker>>) -> Self {
        Self { members }
    }
}

impl Tracker for Union {
    fn start(&self) -> Result<(), TrackerError> {
        for (index, member) in self.members.iter().enumerate() {
            if let Err(error) = member.start() {
                self.members[..index].iter().for_each(|begun| begun.stop());
                return Err(error);
            }
        }
        Ok(())
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        self.members.iter().map(|member| member.sync(dirty)).sum()
    }

    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError> {
        let mut members = self.members.iter();
        members.try_for_each(|member| member.clear(block, pages.clone()))
    }

    fn stop(&self) {
        self.members.iter().for_each(|member| member.stop());
    }

    fn vcpu_rates(&self) -> Vec<u64> {
        let mut rates = self.members.iter().map(|member| member.vcpu_rates());
        rates.find(|rates| !rates.is_empty()).unwrap_or_default()
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        self.stop();
    }
}
