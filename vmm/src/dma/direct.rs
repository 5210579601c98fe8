//! Filling pages by direct reads, several in flight.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use paguro_workload::layout::PAGE_BYTES;
use rustix::fs::{Mode, OFlags};

use super::filler::{Fill, Job, read_into, write_page};
use crate::VmError;
use crate::caught::caught;

/// Reads in flight at once.
const IN_FLIGHT: usize = 4;

/// Where the file may be: the first that takes direct reads.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Fills up to [`IN_FLIGHT`] pages at once, each by a thread of its own.
pub(super) struct ByDirectRead {
    file: Arc<File>,
    jobs: Vec<Sender<Job>>,
    results: Receiver<io::Result<()>>,
}

impl ByDirectRead {
    pub(super) fn new() -> Result<Self, VmError> {
        let file = Arc::new(open().map_err(VmError::host(
            "make a file for direct reads of the device x-dma in /var/tmp or /tmp",
        ))?);
        let (done, results) = channel();
        let mut jobs = Vec::new();
        for slot in 0..IN_FLIGHT {
            let (sender, receiver) = channel();
            jobs.push(sender);
            let (file, done) = (file.clone(), done.clone());
            paguro_sys::NewThread::named(format!("x-dma-read{slot}"))
                .spawn(move || reader(slot, &file, &receiver, &done))
                .map_err(VmError::host("start a thread of the device x-dma"))?;
        }
        Ok(Self {
            file,
            jobs,
            results,
        })
    }
}

/// Reads into guest RAM what the slot of the file holds, job by job.
fn reader(slot: usize, file: &File, jobs: &Receiver<Job>, done: &Sender<io::Result<()>>) {
    for mut job in jobs {
        // Whoever waits for the job would not learn that this thread is gone: the others are there.
        let result = caught(|| Ok(read_into(file.as_fd(), slot as u64 * PAGE_BYTES, &mut job)));
        let result = result.unwrap_or_else(|why| Err(io::Error::other(why)));
        if done.send(result).is_err() {
            return;
        }
    }
}

impl Fill for ByDirectRead {
    fn batch(&self) -> usize {
        IN_FLIGHT
    }

    fn fill(&mut self, jobs: Vec<Job>) -> io::Result<()> {
        for (slot, job) in jobs.iter().enumerate() {
            write_page(self.file.as_fd(), slot as u64 * PAGE_BYTES, &job.content)?;
        }
        let gone = |_| io::Error::other("a reading thread is gone");
        let mut sent = 0;
        let mut result = Ok(());
        for (reader, job) in self.jobs.iter().zip(jobs) {
            match reader.send(job) {
                Ok(()) => sent += 1,
                Err(_) => result = Err(io::Error::other("a reading thread is gone")),
            }
        }
        // All that were started are waited for, whatever became of the others.
        for _ in 0..sent {
            result = result.and(self.results.recv().map_err(gone).flatten());
        }
        result
    }
}

/// A file without a name that is read past the page cache.
fn open() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::DIRECT | OFlags::CLOEXEC;
    let mut result = Err(io::ErrorKind::NotFound.into());
    for folder in FOLDERS {
        result = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(io::Error::from);
        match &result {
            Ok(file) => {
                file.set_len(IN_FLIGHT as u64 * PAGE_BYTES)?;
                break;
            }
            Err(error) => tracing::debug!(folder, %error, "no direct reads here"),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use paguro_dirty::tracker::Marks;
    use paguro_ram::{Backing, GuestRam, PageKind, RamBlock};

    use super::super::filler::Page;
    use super::*;

    #[test]
    fn a_reader_that_panics_is_waited_for_no_longer_than_others() {
        let blocks = crate::ram_layout(4 << 20, None, Backing::Anonymous, PageKind::Small);
        let block = RamBlock::new(blocks.unwrap().remove(0)).unwrap();
        let ram = GuestRam::new(vec![block]);
        let marks = Marks::default();
        let job = |offset_bytes| Job {
            block: ram.blocks()[0].clone(),
            index: 0,
            offset_bytes,
            content: Box::new(Page([1; PAGE_BYTES as usize])),
            marks: marks.clone(),
        };
        let mut readers = ByDirectRead::new().unwrap();
        // One is told to read into what is not there.
        let why = readers.fill(vec![job(4096), job(4 << 20), job(8192)]);
        let why = why.unwrap_err().to_string();
        assert!(
            why.starts_with("its thread x-dma-read1 panicked: "),
            "{why}"
        );
        readers.fill(vec![job(0), job(12288)]).unwrap();
        let mut bytes = [0; 4 * 4096];
        ram.blocks()[0].mapping().copy_out(0, &mut bytes);
        assert_eq!(bytes, [1; 4 * 4096]);
    }
}
