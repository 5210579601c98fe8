//! All of RAM is read before the machine runs: in parallel, straight into place. A read that fails is
//! tried again, as one that a running machine waits for.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use paguro_pager::{PageSource, SourceError, patiently};
use paguro_ram::{GuestRam, RamBlock};
use paguro_sys::page_size;

use super::{RestoreError, RestoreFile};

/// Pages that a thread takes at once: 2 MiB, so that huge pages are made by one thread.
const PART: usize = 512;

pub(super) fn read(
    file: &RestoreFile,
    ram: &GuestRam,
    threads: usize,
    retry: Duration,
) -> Result<(), RestoreError> {
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
    let all_failed = AtomicBool::new(false);
    let go_on = || !file.is_given_up() && !all_failed.load(Ordering::Relaxed);
    let work = || {
        while let Some(&(index, first)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let block = &ram.blocks()[index];
            let read =
                |run| patiently(retry, &mut { go_on }, || read_run(file, index, block, &run));
            if let Err(error) = runs(file, index, block, first)
                .into_iter()
                .try_for_each(read)
            {
                next.store(parts.len(), Ordering::Relaxed);
                all_failed.store(true, Ordering::Relaxed);
                failed
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            let named = paguro_sys::NewThread::named("restore/read".to_owned());
            if let Err(error) = named.spawn_scoped(scope, work) {
                tracing::warn!(%error, "fewer threads read");
                break;
            }
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(RestoreError::Page(error)),
        None => Ok(()),
    }
}

fn runs(file: &RestoreFile, index: usize, block: &RamBlock, first: usize) -> Vec<Range<usize>> {
    let end = (first + PART).min(block.pages());
    let mut runs = Vec::new();
    file.present(index).runs(first..end, |run| runs.push(run));
    runs
}

fn read_run(
    file: &RestoreFile,
    index: usize,
    block: &RamBlock,
    run: &Range<usize>,
) -> Result<(), SourceError> {
    let page = page_size();
    let offset = file.blocks()[index].page_offset(run.start as u64);
    block
        .mapping()
        .read_file_at(file.fd(), offset, run.start * page, run.len() * page)
        .map_err(|source| file.unreadable(index, run, source))?;
    if !file.has_checksums() {
        return file.change().map_or(Ok(()), Err);
    }
    // A page at a time through the cache for the checksum: guest RAM cannot be borrowed.
    let mut bytes = vec![0; page];
    for number in run.clone() {
        block.mapping().copy_out(number * page, &mut bytes);
        file.check(index, number..number + 1, &bytes)?;
    }
    Ok(())
}
