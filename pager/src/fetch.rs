//! Pages are read from their source, and land.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use paguro_faults::{Faults, Supply};
use paguro_sys::page_size;

use crate::{Pager, SourceError};

impl Pager {
    /// Fetches what of a range has not arrived yet; zeros come with it where the source has nothing. A
    /// panic in it or in the source is an error like others, so that who waits for the page is let go.
    pub(crate) fn fetch(
        &self,
        faults: &Faults,
        block: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let _underway = self.trouble.reads(block, range.clone());
        let fetched = catch_unwind(AssertUnwindSafe(|| {
            match faults.block(block).unit_pages() {
                1 => self.fetch_pages(block, range, bytes),
                unit => self.fetch_units(block, range, unit, bytes),
            }
        }));
        fetched.unwrap_or(Err(SourceError::Bug))
    }

    fn fetch_pages(
        &self,
        block: usize,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let mut runs = Vec::new();
        self.to_come(block, range, &mut |run| runs.push(run));
        for run in runs {
            bytes.resize(run.len() * page_size(), 0);
            self.source.read(block, run.clone(), bytes)?;
            self.land(block, run.start, bytes)?;
        }
        Ok(())
    }

    /// On hugetlbfs 512 pages come together, zeros between them included.
    fn fetch_units(
        &self,
        block: usize,
        range: Range<usize>,
        unit: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let page = page_size();
        for first in range.step_by(unit) {
            let has = self.source.has(block);
            let known = self.known(block, first..first + unit);
            if has.count_in(known.clone()) == 0 || self.arrivals.received(block).contains(first) {
                continue;
            }
            bytes.clear();
            bytes.resize(unit * page, 0);
            let mut runs = Vec::new();
            has.runs(known, |run| runs.push(run));
            for run in runs {
                let part = (run.start - first) * page..(run.end - first) * page;
                self.source.read(block, run, &mut bytes[part])?;
            }
            self.land(block, first, bytes)?;
        }
        Ok(())
    }

    fn land(&self, block: usize, first: usize, bytes: &[u8]) -> Result<(), SourceError> {
        let count = |run| self.count(block, run);
        (self.arrivals)
            .land(block, first * page_size(), bytes, count)
            .map_err(SourceError::Place)
    }

    /// Pages count as received from now on.
    pub(crate) fn count(&self, block: usize, run: Range<usize>) {
        let got = self.source.has(block).count_in(self.known(block, run));
        self.left.fetch_sub(got, Ordering::AcqRel);
    }

    /// What of a range the source knows of: a block may be longer here.
    pub(crate) fn known(&self, block: usize, range: Range<usize>) -> Range<usize> {
        let end = range.end.min(self.source.has(block).pages());
        range.start.min(end)..end
    }
}
