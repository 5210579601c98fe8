//! Reading before claiming.
//!
//! Whoever has claimed pages keeps their writers waiting until they are copied. So what has to come
//! from a disk or from further away is read first, while nobody waits for it; there it may also be
//! tried again for as long as it takes.

use std::ops::Range;
use std::time::{Duration, Instant};

use paguro_ram::Backing;
use paguro_sys::{Advice, page_size};

use super::context::Context;
use crate::FreezeError;

/// How long is waited before a page of a mapped file is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Pages of a granule that had not arrived, as their source has them: at most 2 MiB.
#[derive(Default)]
pub(super) struct Ahead {
    /// Ascending; page *i* of the list is at place *i* of the bytes.
    pages: Vec<usize>,
    bytes: Vec<u8>,
}

impl Ahead {
    /// Reads what of a range has not arrived yet, or has what its file has of it come into memory.
    /// Called without a claim. What is claimed is left alone: it is saved, or will be by others, or it
    /// is discarded, and then nobody may read it, nor fail because he cannot.
    ///
    /// # Errors
    ///
    /// [`FreezeError::Unarrived`], when it was tried long enough or the freeze is over.
    pub(super) fn read(
        context: &Context,
        index: usize,
        pages: Range<usize>,
    ) -> Result<Self, FreezeError> {
        let block = &context.blocks[index];
        let mut free = Vec::new();
        block.claimed.gaps(pages, |gap| free.push(gap));
        if block.ram.backing() == Backing::PrivateFile {
            free.iter()
                .try_for_each(|part| populate(context, index, part))?;
        }
        let mut ahead = Self::default();
        let Some(source) = &context.source else {
            return Ok(ahead);
        };
        for part in free {
            source.to_come(index, part, &mut |run| ahead.pages.extend(run));
        }
        ahead.bytes.resize(ahead.pages.len() * page_size(), 0);
        let places = ahead.bytes.chunks_exact_mut(page_size());
        for (&page, to) in ahead.pages.iter().zip(places) {
            source
                .read(index, page, to, &mut || !context.life.is_over())
                .map_err(|source| block.unarrived(page, source))?;
        }
        Ok(ahead)
    }

    /// The content of a page, if it was read.
    pub(super) fn get(&self, page: usize) -> Option<&[u8]> {
        let at = self.pages.binary_search(&page).ok()? * page_size();
        self.bytes.get(at..at + page_size())
    }
}

/// Pages of a mapped file come one by one, each with a fault, if they are not asked for at once;
/// and one that cannot be read is an error here, where it is a signal later.
fn populate(context: &Context, index: usize, pages: &Range<usize>) -> Result<(), FreezeError> {
    let block = &context.blocks[index];
    let bytes = block.ram.bytes_of(pages);
    let begun = Instant::now();
    loop {
        let asked = (block.ram.mapping()).advise(bytes.start, bytes.len(), Advice::PopulateRead);
        let source = match asked {
            Err(error) if error.is_unreadable() => std::io::Error::other(error),
            Err(error) => {
                tracing::debug!(%error, "no read-ahead");
                return Ok(());
            }
            Ok(()) => return Ok(()),
        };
        if begun.elapsed() >= context.options.retry || context.life.is_over() {
            return Err(block.unarrived(pages.start, source));
        }
        std::thread::sleep(AGAIN);
    }
}
