//! How large the page buffer is made, before guest RAM is armed.
//!
//! A guest that writes everywhere writes everything again in the first moments after the pause,
//! faster than any file takes it, and what has no room keeps a vCPU waiting. Room has its price:
//! memory that a host hands out for the first time costs up to 12 us a page, which is more than a
//! copy, so it must be there before anybody waits. And most guests need little of it.
//!
//! So the guest is asked first: a few granules, spread over all that exists, are armed, and after a
//! moment it is known which share of them was written. While the buffer is then made as large as
//! all the rest would need, at the lowest priority, next to nothing is armed: the guest loses
//! nothing by it. (Made later, while arming goes on, it prolongs what the guest pays for; made in
//! faults, it is a stall of some milliseconds each.)

use std::ops::Range;
use std::time::{Duration, Instant};

use paguro_sys::{Priority, page_size};

use crate::buffer::START_BYTES;
use crate::picture::CHUNK;
use crate::{Freeze, FreezeError};

/// Granules that are armed to see whether they are written.
const SAMPLES: usize = 16;
/// How long they are watched.
const WATCH: Duration = Duration::from_millis(5);

impl Freeze {
    /// Makes room for what the guest is about to write, as far as the buffer's limit allows.
    pub(crate) fn make_room(&self, go_on: &impl Fn() -> bool) -> Result<(), FreezeError> {
        let hot: usize = self.blocks.iter().map(|block| block.hot.count()).sum();
        let hot = hot.max(self.estimate(go_on)?);
        if hot == 0 {
            return Ok(());
        }
        let priority = Priority::of_this_thread();
        priority.background();
        self.buffer
            .grow(START_BYTES + hot * CHUNK * page_size(), go_on);
        priority.foreground();
        Ok(())
    }

    /// Granules that the guest writes all the time, from a sample.
    fn estimate(&self, go_on: &impl Fn() -> bool) -> Result<usize, FreezeError> {
        // While a pager fills, what arming must not touch is decided elsewhere.
        if self.source.is_some() || !self.buffer.may_grow() {
            return Ok(0);
        }
        let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            if block.is_protected() {
                let touched = self.touched(block, block.ram.pages())?;
                runs.extend(touched.into_iter().map(|run| (index, run)));
            }
        }
        let granules: usize = runs.iter().map(|(_, run)| run.len()).sum();
        let step = granules.div_ceil(SAMPLES).max(1);
        let places = runs
            .iter()
            .flat_map(|(index, run)| run.clone().map(move |granule| (*index, granule)));
        let samples: Vec<(usize, usize)> = places.step_by(step).collect();
        for &(index, granule) in &samples {
            let block = &self.blocks[index];
            let pages = granule * CHUNK..((granule + 1) * CHUNK).min(block.ram.pages());
            block.armed.insert(granule);
            self.arm_range(index, pages, true)?;
        }
        let watched = Instant::now();
        while watched.elapsed() < WATCH && go_on() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let written = samples.iter().filter(|&&(index, granule)| {
            let released = &self.blocks[index].released;
            let end = released.pages().min((granule + 1) * CHUNK);
            released.count_in(granule * CHUNK..end) > 0
        });
        Ok((written.count() * step).min(granules))
    }
}
