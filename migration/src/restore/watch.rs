//! Watches a file that guest RAM maps.
//!
//! Nobody asks before the kernel reads a page of a mapping, so nothing can be promised for a single
//! page of a file that somebody writes to. What can be done is to look often whether somebody did, and
//! to stop the machine.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use paguro_pager::SourceError;
use paguro_sys::{BusErrors, page_size};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::identity::Identity;
use super::{Failure, RestoreFile, file};

/// How often the file is looked at.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};

/// A RAM block, and where its pages are in the file.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) block: String,
    pub(super) pages_offset: u64,
    pub(super) bus_errors: BusErrors,
}

/// Watches a mapped file until it is dropped.
#[derive(Debug)]
pub struct MapWatch {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: Arc<File>,
    identity: Identity,
    places: Vec<Place>,
    trouble: Mutex<Option<String>>,
    /// The file was written to.
    changed: AtomicBool,
}

impl MapWatch {
    /// Whether RAM is not what it should be, for good. Of pages that are lost it is true from before
    /// anybody can see zeros in their place.
    pub fn has_failed(&self) -> bool {
        self.lost_pages() > 0 || self.shared.changed.load(Ordering::Acquire)
    }

    /// Pages that could not be read, and in whose place zeros are now.
    pub fn lost_pages(&self) -> u64 {
        self.shared.count(BusErrors::lost)
    }

    /// Reads that failed and were tried again.
    pub fn failed_reads(&self) -> u64 {
        self.shared.count(BusErrors::failed)
    }

    /// Why pages cannot be read at the moment, as long as they are tried again.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble().clone()
    }

    /// All that could not be read is tried again, for as long as at first: the machine goes on.
    pub fn renew(&self) {
        for place in &self.shared.places {
            place.bus_errors.renew();
        }
    }
}

impl Drop for MapWatch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        // What is called when something fails may hold the last reference.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

pub(super) fn start(
    file: &RestoreFile,
    places: Vec<Place>,
    on_failure: Failure,
) -> io::Result<Arc<MapWatch>> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
    let its = stop.try_clone()?;
    let (open, identity) = file.identity();
    let shared = Arc::new(Shared {
        path: file.path().to_owned(),
        file: open,
        identity,
        places,
        trouble: Mutex::new(None),
        changed: AtomicBool::new(false),
    });
    let watched = shared.clone();
    let thread = std::thread::Builder::new()
        .name("restore/watch".to_owned())
        .spawn(move || watched.watch(&its, &on_failure))?;
    Ok(Arc::new(MapWatch {
        shared,
        stop,
        thread: Mutex::new(Some(thread)),
    }))
}

impl Shared {
    fn watch(&self, stop: &OwnedFd, on_failure: &Failure) {
        let (mut failed, mut in_vain) = (0, 0);
        loop {
            match self.wait(stop) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return tracing::error!(%error, "the mapped file is not watched"),
            }
            // First: what was cut short cannot be read either.
            if let Some(how) = self.identity.change(&self.file) {
                self.changed.store(true, Ordering::Release);
                on_failure(&file::changed(&self.path, how));
                return;
            }
            let pages = self.count(BusErrors::lost);
            if pages > 0 {
                let what = self.path.display().to_string();
                on_failure(&SourceError::Lost { pages, what });
                return;
            }
            let before = std::mem::replace(&mut failed, self.count(BusErrors::failed));
            self.note(failed > before);
            let before = std::mem::replace(&mut in_vain, self.count(BusErrors::in_vain));
            if in_vain > before {
                on_failure(&self.last_error());
            }
        }
    }

    /// Waits until it is time to look; whether it is to end.
    fn wait(&self, stop: &OwnedFd) -> io::Result<bool> {
        let bells = self.places.iter().map(|place| place.bus_errors.bell());
        let mut fds: Vec<_> = bells
            .map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(stop, PollFlags::IN));
        match poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for place in &self.places {
            let _ = rustix::io::read(place.bus_errors.bell(), &mut [0u8; 8]);
        }
        Ok(fds.last().is_some_and(|stop| !stop.revents().is_empty()))
    }

    /// Tells of trouble, once until it is over.
    fn note(&self, failing: bool) {
        let mut trouble = self.trouble();
        if failing && trouble.is_none() {
            let error = crate::snapshot::chain(&self.last_error());
            tracing::warn!(error, "pages cannot be had; they are tried again");
            *trouble = Some(error);
        } else if !failing && trouble.is_some() && self.last_page_reads().is_ok() {
            tracing::warn!("pages that could not be had are here");
            *trouble = None;
        }
    }

    /// What the file says to a read of the page that could not be read last.
    fn last_error(&self) -> SourceError {
        let (block, page, source) = match self.last_page_reads() {
            Err(failed) => failed,
            Ok((block, page)) => (
                block,
                page,
                io::Error::other("the kernel could not read it"),
            ),
        };
        SourceError::Read {
            block,
            first: page,
            end: page + 1,
            source,
        }
    }

    fn last_page_reads(&self) -> Result<(String, usize), (String, usize, io::Error)> {
        let last = |place: &Place| Some((place.bus_errors.last_page()?, place.pages_offset));
        let Some((place, (page, offset))) = self
            .places
            .iter()
            .find_map(|place| Some((place, last(place)?)))
        else {
            return Ok((String::new(), 0));
        };
        let (block, mut byte) = (place.block.clone(), [0]);
        let at = offset + (page * page_size()) as u64;
        match self.file.read_exact_at(&mut byte, at) {
            Ok(()) => Ok((block, page)),
            Err(error) => Err((block, page, error)),
        }
    }

    fn count(&self, of: impl Fn(&BusErrors) -> u64) -> u64 {
        self.places.iter().map(|place| of(&place.bus_errors)).sum()
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(|e| e.into_inner())
    }
}
