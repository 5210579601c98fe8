//! A frozen picture on its way into a file: pages in parallel at fixed places, then all the rest.

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use paguro_dirty::{Copied, FreezeError};
use paguro_newfile::PartialFile;
use paguro_sys::{NewThread, Pacer, RateLimit, page_size};
use paguro_wire::bitmap;
use paguro_wire::device::DeviceSection;
use paguro_wire::snapshot::extension::{ExtensionPlan, Facts, crc32c, crc32c_append, encode_table};
use paguro_wire::snapshot::{BlockPlan, Checksums, Layout};

use super::tables::Tables;
use super::{Opened, Outlet};
use crate::error::unconfirmed;
use crate::snapshot::picture::Picture;
use crate::snapshot::request::Request;
use crate::{Control, SnapshotError};

/// Pieces in one write: as many units as a 2 MiB chunk has.
const PIECES: usize = 32;
/// How soon a thread that waits sees a cancel, or another limit.
const LOOK: Duration = Duration::from_millis(20);

/// A file in which each page has its place.
pub(in crate::snapshot) struct FileOutlet {
    file: PartialFile,
    layout: Layout,
    tables: Tables,
    checksums: bool,
    /// Of all threads together.
    limit: Mutex<RateLimit>,
    limited_bytes: AtomicU64,
}

impl Opened for PartialFile {
    type Outlet = FileOutlet;

    fn lay_out(self, request: Request<'_>, lengths: &[usize]) -> Result<FileOutlet, SnapshotError> {
        let Request {
            machine, options, ..
        } = request;
        let blocks = machine.memory().ram().blocks().iter().zip(lengths);
        let blocks: Vec<_> = blocks
            .map(|(block, &bytes)| BlockPlan {
                id: block.id().to_owned(),
                used_length_bytes: bytes as u64,
            })
            .collect();
        let layout = Layout::plan(machine.machine_name(), &blocks)?;
        self.set_len(layout.resume_offset)?;
        Ok(FileOutlet {
            file: self,
            tables: Tables::new(&layout, options.checksums)?,
            layout,
            checksums: options.checksums,
            limit: Mutex::new(RateLimit::new(0, options.max_bandwidth)),
            limited_bytes: AtomicU64::new(0),
        })
    }
}

impl Outlet for FileOutlet {
    /// In as many threads as the options say.
    fn save_pages(&mut self, picture: &Picture<'_>) -> Result<(), SnapshotError> {
        let this = &*self;
        let failed = Mutex::new(None);
        let fail = |error| {
            let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
            // "Ended" is what the others are told: the reason is somebody else's.
            if matches!(
                *failed,
                None | Some(SnapshotError::Freeze(FreezeError::Ended))
            ) {
                *failed = Some(error);
            }
            drop(failed);
            picture.abandon();
        };
        std::thread::scope(|scope| {
            for index in 0..picture.options.threads.max(1) {
                let work = || {
                    // A panic must not leave the others waiting for pages that this one claimed.
                    let saved = catch_unwind(AssertUnwindSafe(|| this.copy_and_write(picture)));
                    let bug = |_| Err(SnapshotError::Freeze(FreezeError::Bug));
                    if let Err(error) = saved.unwrap_or_else(bug) {
                        fail(error);
                    }
                };
                let thread = NewThread::named(format!("save/{index}"));
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    fail(SnapshotError::Thread(error));
                }
            }
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn table_bytes(&self) -> usize {
        self.tables.size_bytes()
    }

    /// What stands in front of each block, the bitmaps, the devices, the description, the checksums. The
    /// tables are given back: from here on nobody needs them.
    fn write_rest(
        &mut self,
        devices: &[DeviceSection],
        facts: &Facts,
    ) -> Result<(), SnapshotError> {
        let tables = std::mem::take(&mut self.tables);
        let checksums = if self.checksums {
            Checksums::On
        } else {
            Checksums::Off
        };
        let tail = self.layout.tail(devices, checksums)?;
        for piece in &self.layout.pieces {
            self.file.write_at(piece.offset, &piece.bytes)?;
        }
        let bitmaps = tables.bitmaps();
        for (block, words) in self.layout.blocks.iter().zip(&bitmaps) {
            self.file
                .write_at(block.bitmap_offset, &bitmap::to_bytes(words))?;
        }
        self.file.write_at(self.layout.resume_offset, &tail)?;
        if self.checksums {
            let metadata = self.layout.metadata_crc32c(&bitmaps, &tail);
            let plan = ExtensionPlan::new(&self.layout, tail.len());
            self.write_extension(plan, &tables, metadata, facts)?;
        }
        Ok(())
    }

    fn written_bytes(&self) -> u64 {
        self.file.written_bytes()
    }

    /// On the disk, and not under its name yet.
    fn settle(&mut self, control: &Control) -> Result<(), SnapshotError> {
        self.file.settle()?;
        if control.is_cancelled() {
            Err(SnapshotError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    /// Gives the file its name.
    fn complete(self) -> Result<Option<String>, SnapshotError> {
        let what = self.file.complete()?.map(SnapshotError::from);
        Ok(what.map(|what| unconfirmed(&what)))
    }
}

impl FileOutlet {
    fn copy_and_write(&self, picture: &Picture<'_>) -> Result<(), SnapshotError> {
        let mut pacer = Pacer::of_this_thread();
        while let Some(copied) = picture.next_pages()? {
            self.write(&copied)?;
            picture.count(&copied, self.file.written_bytes());
            self.pace(copied, picture);
            picture.breathe(&mut pacer);
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
                self.tables.note(copied, index..index + count);
                pieces[used] = IoSlice::new(bytes);
                used += 1;
                index += count;
                end += count;
            }
            self.file
                .write_pieces_at(place.page_offset(first as u64), &pieces[..used])?;
            self.tables.insert(block, first..end);
        }
        Ok(())
    }

    /// Sleeps as long as the limit of bandwidth asks for. The room of the copy is given back
    /// first: nobody else has to wait for it.
    fn pace(&self, copied: Copied, picture: &Picture<'_>) {
        let bytes = (copied.pages().len() * page_size()) as u64;
        drop(copied);
        self.limited_bytes.fetch_add(bytes, Ordering::Relaxed);
        let rest = || {
            // Also where there is none: what is written without a limit counts under no later one.
            let rate = picture.max_bandwidth();
            let done = self.limited_bytes.load(Ordering::Relaxed);
            let limit = self.limit.lock();
            limit
                .unwrap_or_else(PoisonError::into_inner)
                .due(done, rate)
        };
        while let Some(rest) = rest()
            && !picture.control.is_cancelled()
        {
            std::thread::sleep(rest.min(LOOK));
        }
    }

    /// Writes the table of checksums piece by piece, then what finds it.
    fn write_extension(
        &self,
        plan: ExtensionPlan,
        tables: &Tables,
        metadata_crc: u32,
        facts: &Facts,
    ) -> Result<(), SnapshotError> {
        let mut table_crcs = Vec::with_capacity(tables.crcs().len());
        for (block, table) in tables.crcs().iter().enumerate() {
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
