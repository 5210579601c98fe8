//! Write-protection that tells nobody.
//!
//! A userfaultfd of this kind lets a write take the protection away by itself; a walk over the page
//! tables finds the pages without it and protects them again in the same step. Nothing of KVM is
//! needed, and every write through this process' mapping is seen, whoever makes it. Not seen is
//! what does not look at page tables when it writes: a direct read into pages that were pinned
//! before ([`Marks`](super::Marks) are for those).
//!
//! A mapping has one userfaultfd, so this goes with neither a snapshot nor a pager. Memory that
//! does not exist is protected too, which costs page tables (2 MiB a GiB).

use std::ops::Range;

use paguro_ram::{Backing, GuestRam, HUGE_PAGES, PageKind, PageSet, RamBlock};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Features, Host, RegisterMode, Uffd, UffdError, Waiting, page_size};
use parking_lot::Mutex;

use super::report::{check, report, sets};
use super::{Tracker, TrackerError};

/// Tracks by protection that tells nobody, and a walk over the page tables.
#[derive(Debug)]
pub struct AsyncProtect {
    host: Host,
    ram: GuestRam,
    watch: Mutex<Option<Watch>>,
}

#[derive(Debug)]
struct Watch {
    uffd: Uffd,
    pagemap: Pagemap,
    /// Pages of each block that are registered, from its first on.
    registered: Vec<usize>,
    /// Found, and not reported yet.
    written: Vec<PageSet>,
}

impl AsyncProtect {
    /// A tracker of all that this process writes to `ram`.
    pub fn new(host: Host, ram: GuestRam) -> Self {
        Self {
            host,
            ram,
            watch: Mutex::new(None),
        }
    }

    fn can(&self, block: &RamBlock) -> Result<(), TrackerError> {
        let shared = block.backing() == Backing::Memfd || block.page_kind() == PageKind::Huge;
        let why = if !block.can_be_protected() {
            "it is a private mapping of a file, which the kernel cannot protect"
        } else if shared && !self.host.features.contains(Features::WP_SHARED) {
            "this kernel protects anonymous memory only"
        } else {
            return Ok(());
        };
        Err(TrackerError::Unprotectable {
            block: block.id().to_owned(),
            why,
        })
    }
}

impl Watch {
    /// Registers and protects what a block has grown by.
    fn extend(&mut self, ram: &GuestRam, block: usize) -> Result<(), TrackerError> {
        let ram_block = &ram.blocks()[block];
        let new = self.registered[block]..ram_block.pages();
        if ram_block.is_read_only() || new.is_empty() {
            return Ok(());
        }
        let failed = |source| match source {
            UffdError::Busy => TrackerError::Watched {
                block: ram_block.id().to_owned(),
            },
            source => TrackerError::Protect {
                block: ram_block.id().to_owned(),
                source,
            },
        };
        let addresses = ram_block.addresses_of(&new);
        self.retry(|| {
            self.uffd
                .register(addresses.clone(), RegisterMode::WriteProtect)
        })
        .map_err(failed)?;
        self.registered[block] = new.end;
        for part in steps(new) {
            let addresses = ram_block.addresses_of(&part);
            self.retry(|| self.uffd.protect(addresses.clone()))
                .map_err(failed)?;
        }
        Ok(())
    }

    fn collect(&mut self, ram: &GuestRam, block: usize) -> Result<(), TrackerError> {
        let ram_block = &ram.blocks()[block];
        let old = self.registered[block];
        self.extend(ram, block)?;
        let (page, written) = (page_size(), &self.written[block]);
        if self.registered[block] > old {
            // Written before it was looked at, maybe.
            written.insert_range(old..self.registered[block]);
        }
        let bytes = ram_block.bytes_of(&(0..self.registered[block]));
        if bytes.is_empty() {
            return Ok(());
        }
        let found = |part: Range<usize>| {
            written.insert_range(part.start / page..part.end.div_ceil(page));
        };
        self.pagemap
            .take_written(ram_block.mapping(), bytes, found)
            .map_err(|source| TrackerError::Written {
                block: ram_block.id().to_owned(),
                source,
            })
    }

    /// The address space may be changing: then it is tried again.
    fn retry(&self, mut call: impl FnMut() -> Result<(), UffdError>) -> Result<(), UffdError> {
        let mut waiting = Waiting::default();
        loop {
            match call() {
                Err(UffdError::Again) => waiting.step(&self.uffd),
                done => return done,
            }
        }
    }

    /// Ends protection and registration in steps: at once they would hold up all who fault.
    fn end(&self, ram: &GuestRam) {
        for (block, &pages) in ram.blocks().iter().zip(&self.registered) {
            for part in steps(0..pages) {
                let addresses = block.addresses_of(&part);
                if let Err(error) = self.retry(|| self.uffd.unregister(addresses.clone())) {
                    // Closing the descriptor does the rest.
                    tracing::debug!(block = block.id(), %error, "not unregistered in steps");
                    break;
                }
            }
        }
    }
}

impl Tracker for AsyncProtect {
    fn start(&self) -> Result<(), TrackerError> {
        let mut watch = self.watch.lock();
        if watch.is_some() {
            return Err(TrackerError::Busy);
        }
        if !self.host.can_track() {
            return Err(TrackerError::Unsupported(
                "it needs userfaultfd with asynchronous write-protection, and PAGEMAP_SCAN \
                 (Linux 6.7)",
            ));
        }
        let writable = self.ram.blocks().iter().filter(|b| !b.is_read_only());
        writable.into_iter().try_for_each(|block| self.can(block))?;
        let uffd = self
            .host
            .open_tracking_uffd()
            .map_err(|source| TrackerError::Protect {
                block: self.ram.blocks().first().map_or("", |b| b.id()).to_owned(),
                source,
            })?;
        let pagemap = Pagemap::open(&self.host).map_err(|source| TrackerError::Written {
            block: self.ram.blocks().first().map_or("", |b| b.id()).to_owned(),
            source,
        })?;
        let mut begun = Watch {
            uffd,
            pagemap,
            registered: vec![0; self.ram.blocks().len()],
            written: sets(&self.ram),
        };
        for block in 0..begun.registered.len() {
            if let Err(error) = begun.extend(&self.ram, block) {
                begun.end(&self.ram);
                return Err(error);
            }
        }
        *watch = Some(begun);
        Ok(())
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        check(&self.ram, dirty)?;
        let mut watch = self.watch.lock();
        let watch = watch.as_mut().ok_or(TrackerError::NotStarted)?;
        let mut new = 0;
        for (block, dirty) in dirty.iter().enumerate() {
            let collected = watch.collect(&self.ram, block);
            let written = &watch.written[block];
            let all = 0..written.pages();
            let take = |word, mask| written.take_word(word, mask);
            new += report(&self.ram, block, all.clone(), dirty, take);
            // What is left has no content.
            written.remove_range(all);
            collected?;
        }
        Ok(new)
    }

    /// Nothing is left to be done: the sync has protected what it reported.
    fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
        match *self.watch.lock() {
            Some(_) => Ok(()),
            None => Err(TrackerError::NotStarted),
        }
    }

    fn stop(&self) {
        if let Some(watch) = self.watch.lock().take() {
            watch.end(&self.ram);
        }
    }
}

impl Drop for AsyncProtect {
    fn drop(&mut self) {
        self.stop();
    }
}

fn steps(pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = pages.end;
    pages
        .step_by(HUGE_PAGES)
        .map(move |start| start..end.min(start + HUGE_PAGES))
}
