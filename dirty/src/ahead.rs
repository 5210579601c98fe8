//! Reading before claiming.
//!
//! Whoever has claimed pages keeps their writers waiting until they are copied. So what has to come
//! from a disk or from further away is read first, while nobody waits for it; there it may also be
//! tried again for as long as it takes.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paguro_ram::Backing;
use paguro_sys::{Advice, page_size};

use crate::freeze::OVER;
use crate::{Freeze, FreezeError};

/// How long is waited before a page of a mapped file is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Pages of a granule that had not arrived, as their source has them: at most 2 MiB.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Ascending; page *i* of the list is at place *i* of the bytes.
    pages: Vec<usize>,
    bytes: Vec<u8>,
}

impl Ahead {
    /// The content of a page, if it was read.
    pub(crate) fn get(&self, page: usize) -> Option<&[u8]> {
        let at = self.pages.binary_search(&page).ok()? * page_size();
        self.bytes.get(at..at + page_size())
    }
}

impl Freeze {
    /// Reads what of a range has not arrived yet, or has what its file has of it come into memory.
    /// Called without a claim. What is claimed is left alone: it is saved, or will be by others, or it
    /// is discarded, and then nobody may read it, nor fail because he cannot.
    pub(crate) fn read_ahead(
        &self,
        index: usize,
        pages: Range<usize>,
    ) -> Result<Ahead, FreezeError> {
        let mut free = Vec::new();
        let claimed = &self.blocks[index].claimed;
        claimed.gaps(pages, |gap| free.push(gap));
        if self.blocks[index].ram.backing() == Backing::PrivateFile {
            free.iter()
                .try_for_each(|part| self.populate(index, part))?;
        }
        let mut ahead = Ahead::default();
        let Some(source) = &self.source else {
            return Ok(ahead);
        };
        let (has, arrived) = (source.has(index), source.arrived(index));
        for part in free {
            let end = part.end.min(has.pages());
            has.runs(part.start.min(end)..end, |run| {
                arrived.gaps(run, |gap| ahead.pages.extend(gap));
            });
        }
        ahead.bytes.resize(ahead.pages.len() * page_size(), 0);
        let places = ahead.bytes.chunks_exact_mut(page_size());
        for (&page, to) in ahead.pages.iter().zip(places) {
            source
                .read(index, page, to, &mut || !self.is_over())
                .map_err(|source| self.unarrived(index, page, source))?;
        }
        Ok(ahead)
    }

    /// Pages of a mapped file come one by one, each with a fault, if they are not asked for at once;
    /// and one that cannot be read is an error here, where it is a signal later.
    fn populate(&self, index: usize, pages: &Range<usize>) -> Result<(), FreezeError> {
        let ram = &self.blocks[index].ram;
        let bytes = ram.bytes_of(pages);
        let begun = Instant::now();
        loop {
            let asked = (ram.mapping()).advise(bytes.start, bytes.len(), Advice::PopulateRead);
            let source = match asked {
                Err(error) if error.is_unreadable() => std::io::Error::other(error),
                Err(error) => {
                    tracing::debug!(%error, "no read-ahead");
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            };
            if begun.elapsed() >= self.options.retry || self.is_over() {
                return Err(self.unarrived(index, pages.start, source));
            }
            std::thread::sleep(AGAIN);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == OVER
    }

    pub(crate) fn unarrived(
        &self,
        index: usize,
        page: usize,
        source: std::io::Error,
    ) -> FreezeError {
        FreezeError::Unarrived {
            block: self.blocks[index].ram.id().to_owned(),
            page,
            source,
        }
    }
}
