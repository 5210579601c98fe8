//! Writing a frozen picture to a file: pages in parallel at fixed places, then all the rest.

use std::collections::TryReserveError;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paguro_dirty::{Copied, Freeze, FreezeError};
use paguro_newfile::PartialFile;
use paguro_ram::PageSet;
use paguro_sys::{Pacer, Raised};
use paguro_wire::bitmap;
use paguro_wire::device::DeviceSection;
use paguro_wire::snapshot::extension::{ExtensionPlan, Facts, crc32c, encode_table};
use paguro_wire::snapshot::{Checksums, Layout};

use crate::control::{Counters, add};
use crate::{Control, SnapshotError, SnapshotOptions};

/// Pieces in one write: as many units as a 2 MiB chunk has.
const PIECES: usize = 32;

/// The next pages to be written. Between their claim and their release a vCPU may wait for them,
/// and so for the core of whoever copies them.
pub(crate) fn next(
    freeze: &Freeze,
    options: &SnapshotOptions,
) -> Result<Option<Copied>, SnapshotError> {
    let _raised = options.background.then(Raised::begin);
    freeze.next().map_err(SnapshotError::Freeze)
}

/// Leaves the cores to others for a moment, unless the guest waits: for room, or for the end of it
/// all because it was stopped.
pub(crate) fn breathe(pacer: &mut Pacer, freeze: &Freeze, options: &SnapshotOptions) {
    let due = pacer.due();
    if options.background && !due.is_zero() && !freeze.is_waited_for() {
        std::thread::sleep(due);
    }
}

/// A table of checksums, four bytes a page: 256 MiB for 256 GiB of RAM, which there may not be.
fn unset_crcs(pages: usize) -> Result<Box<[AtomicU32]>, TryReserveError> {
    let mut crcs = Vec::new();
    crcs.try_reserve_exact(pages)?;
    crcs.extend((0..pages).map(|_| AtomicU32::new(0)));
    Ok(crcs.into())
}

/// A picture on its way into a file.
pub(crate) struct Saver<'a> {
    pub(crate) file: &'a PartialFile,
    pub(crate) layout: &'a Layout,
    pub(crate) freeze: &'a Freeze,
    pub(crate) control: &'a Control,
    pub(crate) options: &'a SnapshotOptions,
    present: Vec<PageSet>,
    /// Checksum of each page, by block; empty without checksums.
    crcs: Vec<Box<[AtomicU32]>>,
    started: Instant,
    paced_bytes: AtomicU64,
}

impl<'a> Saver<'a> {
    pub(crate) fn new(
        file: &'a PartialFile,
        layout: &'a Layout,
        freeze: &'a Freeze,
        control: &'a Control,
        options: &'a SnapshotOptions,
    ) -> Result<Self, TryReserveError> {
        let pages = || layout.blocks.iter().map(|block| block.pages() as usize);
        let crcs = match options.checksums {
            true => pages().map(unset_crcs).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        Ok(Self {
            file,
            layout,
            freeze,
            control,
            options,
            present: pages().map(PageSet::try_new).collect::<Result<_, _>>()?,
            crcs,
            started: Instant::now(),
            paced_bytes: AtomicU64::new(0),
        })
    }

    /// Bytes that the tables of the file occupy meanwhile.
    pub(crate) fn table_bytes(&self) -> usize {
        self.crcs.iter().map(|table| table.len() * 4).sum::<usize>()
            + self.present.iter().map(PageSet::size_bytes).sum::<usize>()
    }

    /// Saves all pages, in as many threads as the options say. The first failure ends all.
    pub(crate) fn save_pages(&self) -> Result<(), SnapshotError> {
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for index in 0..self.options.channels.max(1) {
                let name = format!("save/{index}");
                let work = || {
                    // A panic must not leave the others waiting for pages that this one claimed.
                    let saved = catch_unwind(AssertUnwindSafe(|| self.copy_and_write()));
                    let bug = |_| Err(SnapshotError::Freeze(FreezeError::Bug));
                    if let Err(error) = saved.unwrap_or_else(bug) {
                        let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
                        // "Ended" is what the others are told: the reason is somebody else's.
                        if matches!(
                            *failed,
                            None | Some(SnapshotError::Freeze(FreezeError::Ended))
                        ) {
                            *failed = Some(error);
                        }
                        drop(failed);
                        // Nobody may go on waiting for room that will never come.
                        self.freeze.abandon();
                    }
                };
                if let Err(error) = paguro_sys::NewThread::named(name).spawn_scoped(scope, work) {
                    self.freeze.abandon();
                    failed
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .get_or_insert(SnapshotError::Thread(error));
                }
            }
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn copy_and_write(&self) -> Result<(), SnapshotError> {
        let mut pacer = Pacer::of_this_thread();
        while let Some(copied) = next(self.freeze, self.options)? {
            if self.control.is_cancelled() {
                return Err(SnapshotError::Cancelled);
            }
            self.write(&copied)?;
            let counters: &Counters = &self.control.counters;
            add(&counters.normal_pages, copied.pages().len());
            add(&counters.zero_pages, copied.zero_pages());
            add(
                &counters.done_pages,
                copied.pages().len() + copied.zero_pages(),
            );
            counters
                .transferred_bytes
                .store(self.file.written_bytes(), Ordering::Relaxed);
            self.control.note_waits(self.freeze.buffer_waits());
            self.pace(copied);
            breathe(&mut pacer, self.freeze, self.options);
        }
        Ok(())
    }

    fn write(&self, copied: &Copied) -> Result<(), SnapshotError> {
        let block = copied.block();
        let place = &self.layout.blocks[block];
        let pages = copied.pages();
        let mut index = 0;
        while index < pages.len() {
            // As many pieces as follow each other in RAM, and so in the file.
            let first = pages[index];
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let (mut used, mut end) = (0, first);
            while index < pages.len() && pages[index] == end && used < PIECES {
                let (bytes, count) = copied.piece(index);
                self.note(block, copied, index..index + count);
                pieces[used] = IoSlice::new(bytes);
                used += 1;
                index += count;
                end += count;
            }
            self.file
                .write_pieces_at(place.page_offset(first as u64), &pieces[..used])?;
            self.present[block].insert_range(first..end);
        }
        Ok(())
    }

    fn note(&self, block: usize, copied: &Copied, slots: std::ops::Range<usize>) {
        if let Some(table) = self.crcs.get(block) {
            for slot in slots {
                let crc = crc32c(copied.content(slot));
                table[copied.pages()[slot]].store(crc, Ordering::Relaxed);
            }
        }
    }

    /// Sleeps as long as the limit of bandwidth asks for. The room of the copy is given back
    /// first: nobody else has to wait for it.
    fn pace(&self, copied: Copied) {
        let bytes = (copied.pages().len() * paguro_sys::page_size()) as u64;
        drop(copied);
        let limit = self.options.max_bandwidth;
        if limit == 0 {
            return;
        }
        let so_far = self.paced_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(so_far as f64 / limit as f64);
        while let Some(rest) = due.checked_sub(self.started.elapsed()) {
            if self.control.is_cancelled() || rest.is_zero() {
                return;
            }
            std::thread::sleep(rest.min(Duration::from_millis(20)));
        }
    }

    /// Writes everything that is not pages: what stands in front of each block, the bitmaps, the
    /// devices, the description, the checksums.
    pub(crate) fn write_rest(
        &self,
        devices: &[DeviceSection],
        facts: &Facts,
    ) -> Result<(), SnapshotError> {
        let checksums = if self.options.checksums {
            Checksums::On
        } else {
            Checksums::Off
        };
        let tail = self.layout.tail(devices, checksums)?;
        for piece in &self.layout.pieces {
            self.file.write_at(piece.offset, &piece.bytes)?;
        }
        let bitmaps: Vec<Vec<u64>> = self.present.iter().map(PageSet::to_words).collect();
        for (block, words) in self.layout.blocks.iter().zip(&bitmaps) {
            self.file
                .write_at(block.bitmap_offset, &bitmap::to_bytes(words))?;
        }
        self.file.write_at(self.layout.resume_offset, &tail)?;
        if self.options.checksums {
            let metadata = self.layout.metadata_crc32c(&bitmaps, &tail);
            self.write_extension(ExtensionPlan::new(self.layout, tail.len()), metadata, facts)?;
        }
        let transferred = &self.control.counters.transferred_bytes;
        transferred.store(self.file.written_bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Writes the table of checksums piece by piece, then what finds it.
    fn write_extension(
        &self,
        plan: ExtensionPlan,
        metadata_crc: u32,
        facts: &Facts,
    ) -> Result<(), SnapshotError> {
        use paguro_wire::snapshot::extension::crc32c_append;
        let mut table_crcs = Vec::with_capacity(self.crcs.len());
        for (block, table) in self.crcs.iter().enumerate() {
            let mut offset = plan.table_offset(block);
            let mut crc = crc32c(&[]);
            for part in table.chunks(1 << 16) {
                let part: Vec<u32> = part.iter().map(|crc| crc.load(Ordering::Relaxed)).collect();
                let bytes = encode_table(&part);
                crc = crc32c_append(crc, &bytes);
                self.file.write_at(offset, &bytes)?;
                offset += bytes.len() as u64;
            }
            table_crcs.push(crc);
        }
        let directory = plan.finish(metadata_crc, &table_crcs, facts);
        Ok(self.file.write_at(plan.directory_offset(), &directory)?)
    }
}
