//! All of RAM is read before the machine runs: in parallel, straight into place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_pager::SourceError;
use paguro_ram::{GuestRam, RamBlock};
use paguro_sys::page_size;

use super::{RestoreError, RestoreFile};

/// Pages that a thread takes at once: 2 MiB, so that huge pages are made by one thread.
const PART: usize = 512;

pub(super) fn read(file: &RestoreFile, ram: &GuestRam, threads: usize) -> Result<(), RestoreError> {
    let parts: Vec<(usize, usize)> = ram
        .blocks()
        .iter()
        .enumerate()
        .flat_map(|(index, block)| {
            (0..block.pages())
                .step_by(PART)
                .map(move |first| (index, first))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<SourceError>> = Mutex::new(None);
    let work = || {
        while let Some(&(index, first)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let block = &ram.blocks()[index];
            if let Err(error) = read_part(file, index, block, first) {
                next.store(parts.len(), Ordering::Relaxed);
                failed
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(RestoreError::Page(error)),
        None => Ok(()),
    }
}

fn read_part(
    file: &RestoreFile,
    index: usize,
    block: &RamBlock,
    first: usize,
) -> Result<(), SourceError> {
    let page = page_size();
    let end = (first + PART).min(block.pages());
    let mut runs = Vec::new();
    file.present(index).runs(first..end, |run| runs.push(run));
    // A page at a time through the cache for the checksum: guest RAM cannot be borrowed.
    let mut bytes = vec![0; page];
    for run in runs {
        let offset = file.blocks()[index].page_offset(run.start as u64);
        block
            .mapping()
            .read_file_at(file.fd(), offset, run.start * page, run.len() * page)
            .map_err(|source| file.unreadable(index, &run, source))?;
        if file.parsed().extension.is_none() {
            continue;
        }
        for number in run {
            block.mapping().copy_out(number * page, &mut bytes);
            file.check(index, number..number + 1, &bytes)?;
        }
    }
    Ok(())
}
