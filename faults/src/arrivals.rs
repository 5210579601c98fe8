//! Where pages arrive: the one place, wherever they come from.
//!
//! A page *lands*, and is noted as *received* after that. Noted earlier it would be taken for there by
//! whoever looks meanwhile: a fault on it would be answered with zeros, a freeze would save what is
//! not its content.
//!
//! | ground | who is in it | how a page lands | where one is already |
//! |---|---|---|---|
//! | fresh | nobody runs yet | it is copied in | the later one is newer, and replaces it |
//! | served | a guest, which waits for what is absent | it is placed ([`Faults::place`]), which wakes who waits | the first one stays: the guest may have written it |
//!
//! RAM begins as fresh and may become served, never the other way. Memory of another process takes
//! nothing before it is served: only the kernel can place pages there. *Received* is not *present*: a page
//! that the guest gave back is absent again, and so may be one of zeros. A fault on it is answered here,
//! and nobody is asked for it. What must not be asked for any more is received, too: what was given back
//! before it came.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use paguro_ram::{Backing, Located, PageSet, Spans};
use paguro_sys::{Mapping, Places, page_size};
use parking_lot::RwLock;

use crate::{Faults, FaultsError, MissingHandler, Use};

/// Pages that are unregistered in one go: 2 MiB, for which a vCPU that faults waits.
const STEP_PAGES: usize = 512;
/// And how long there is a breath after them.
const BREATH: Duration = Duration::from_micros(30);

/// What of RAM has arrived, and the way in for what has not. Shared by all threads; none of its calls
/// waits for a source of pages.
#[derive(Debug)]
pub struct Arrivals {
    spans: Spans,
    received: Vec<PageSet>,
    /// Whose faults are answered, once RAM is served.
    served: OnceLock<Weak<Faults>>,
    /// Held (shared) from before pages are placed until they are noted.
    landing: RwLock<()>,
}

impl Arrivals {
    /// Nothing has arrived, and nobody runs in this RAM, which is zero.
    pub fn new(spans: Spans) -> Self {
        let sets = spans.all().iter().map(|s| PageSet::new(s.max_pages()));
        Self {
            received: sets.collect(),
            spans,
            served: OnceLock::new(),
            landing: RwLock::default(),
        }
    }

    /// From now on somebody may run in it: all of its blocks are registered for missing pages, and
    /// `handler` hears of faults on them; it is to [`answer`](Self::answer) with this. No page may be
    /// landing meanwhile. To be called once.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Register`], `Thread`; [`Self::end`] undoes what was done. `Served`, if it was called
    /// before.
    pub fn serve(
        &self,
        faults: &Arc<Faults>,
        handler: Arc<dyn MissingHandler>,
    ) -> Result<(), FaultsError> {
        if self.served.set(Arc::downgrade(faults)).is_err() {
            return Err(FaultsError::Served);
        }
        // Before anything is registered, and before anybody reads of those who wait already.
        faults.barrier().missing = Some(handler);
        faults.listen()?;
        for block in 0..self.received.len() {
            faults.register(block, Use::Missing)?;
        }
        Ok(())
    }

    /// All has arrived, or nobody waits any more: nothing is registered for missing pages then. What is
    /// absent reads as zeros from there on.
    pub fn end(&self, faults: &Faults) {
        for (block, received) in self.received.iter().enumerate() {
            let pages = received.pages();
            let parts: Vec<_> = (0..pages)
                .step_by(STEP_PAGES)
                .map(|first| first..(first + STEP_PAGES).min(pages))
                .collect();
            let breathe = || std::thread::sleep(BREATH);
            if let Err(error) = faults.unregister(block, Use::Missing, &parts, breathe) {
                tracing::error!(%error, "a part of guest RAM stays registered");
            }
        }
        faults.barrier().missing = None;
    }

    /// The RAM that fills.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The pages of a block that have arrived, or must not come any more.
    pub fn received(&self, block: usize) -> &PageSet {
        &self.received[block]
    }

    /// Waits until no page is between landing and being noted. What is not received when this returns
    /// has not been there for anybody to write before.
    pub fn settle(&self) {
        drop(self.landing.write());
    }

    /// Content of a block, from this offset in bytes on, lands. In served ground it is of whole pages
    /// of the host, of hugetlbfs of whole huge ones, and what was received meanwhile is left out.
    /// `noted` is told of pages that count as received from now on.
    ///
    /// A page whose mapping changed counts, too: nobody can use it. What the host has no room for does
    /// not: whoever waits for it would be given zeros.
    ///
    /// What was given back while it was on its way stays zero. That leaves the moment between this look
    /// and the placing: an event that is read, and pages that are dropped, in it. Nothing here could
    /// hold that off, because placing may have to read the very event.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Place`], in served ground only; [`FaultsError::Elsewhere`], in fresh ground only.
    ///
    /// # Panics
    ///
    /// If it is not inside the block: a bug of the caller.
    pub fn land(
        &self,
        block: usize,
        offset: usize,
        content: &[u8],
        noted: impl FnMut(Range<usize>),
    ) -> Result<(), FaultsError> {
        let pages = touched(offset, content.len());
        let Some(served) = self.served.get() else {
            self.mapping(block)?.copy_in(offset, content);
            self.note(block, pages, noted);
            return Ok(());
        };
        // Without an owner of its faults there is nobody in it any more.
        match served.upgrade() {
            Some(faults) => self.place(&faults, block, pages, noted, |part| {
                let from = part.start * page_size() - offset;
                let content = &content[from..from + part.len() * page_size()];
                faults.place(block, part.start, content)
            }),
            None => Ok(()),
        }
    }

    /// So many zeros land. In fresh ground they are written only where there is content: what never
    /// came is zero, and need not be there for that.
    ///
    /// # Errors
    ///
    /// As [`Self::land`].
    ///
    /// # Panics
    ///
    /// As [`Self::land`].
    pub fn zero(
        &self,
        block: usize,
        offset: usize,
        bytes: usize,
        noted: impl FnMut(Range<usize>),
    ) -> Result<(), FaultsError> {
        let pages = touched(offset, bytes);
        match self.served.get().map(Weak::upgrade) {
            None => {
                let mapping = self.mapping(block)?;
                self.received[block].runs(pages, |run| {
                    let from = (run.start * page_size()).max(offset);
                    let to = (run.end * page_size()).min(offset + bytes);
                    clear(mapping, from..to);
                });
                Ok(())
            }
            Some(None) => Ok(()),
            Some(Some(faults)) => self.place(&faults, block, pages, noted, |part| {
                faults.place_zeros(block, part)
            }),
        }
    }

    /// Where content can be copied to by whoever has it.
    fn mapping(&self, block: usize) -> Result<&Mapping, FaultsError> {
        let span = &self.spans.all()[block];
        let elsewhere = || FaultsError::Elsewhere {
            block: span.id().to_owned(),
        };
        span.mapping()
            .map(|mapping| &**mapping)
            .ok_or_else(elsewhere)
    }

    /// Where pages belong that begin at these offsets and are of so many bytes each, no more than
    /// [`Places::MOST`] of them: for whoever can put what comes there by himself, and says so then
    /// ([`Self::filled`]). `None` where nobody can: in served ground, and in another process' memory.
    pub fn places(
        &self,
        block: usize,
        offsets: impl Iterator<Item = usize>,
        bytes: usize,
    ) -> Option<Places<'_>> {
        if self.served.get().is_some() {
            return None;
        }
        let mut places = Places::new(self.mapping(block).ok()?);
        offsets.for_each(|offset| places.push(offset, bytes));
        Some(places)
    }

    /// All of these [`places`](Self::places) are filled.
    pub fn filled(&self, block: usize, offsets: impl Iterator<Item = usize>, bytes: usize) {
        for offset in offsets {
            self.note(block, touched(offset, bytes), |_| {});
        }
    }

    /// Pages were given back, and with them what is still to come for them. Of shared memory only those
    /// that are there were given up: the event does not say whether the file lost them too.
    pub fn given_back(&self, block: usize, pages: Range<usize>, noted: impl FnMut(Range<usize>)) {
        if self.spans.all()[block].backing() == Backing::Anonymous {
            self.note(block, pages, noted);
        }
    }

    /// Answers a fault: what was received is zero if it is not there; for everything else `asks` is
    /// called, and tells whether it will come. If it will not, it is zero as well.
    pub fn answer(&self, faults: &Faults, at: Located, asks: impl FnOnce() -> bool) {
        if self.received[at.block].contains(at.page) || !asks() {
            faults.answer_with_zeros(at);
        }
    }

    /// Places what of a range was not received, part by part, and notes it.
    fn place(
        &self,
        faults: &Faults,
        block: usize,
        pages: Range<usize>,
        mut noted: impl FnMut(Range<usize>),
        mut place: impl FnMut(Range<usize>) -> Result<crate::Outcome, FaultsError>,
    ) -> Result<(), FaultsError> {
        let _landing = self.landing.read();
        let (received, mut due) = (&self.received[block], Vec::new());
        match faults.block(block).unit_pages() {
            1 => received.gaps(pages, |gap| due.push(gap)),
            // Of the pool a whole one is given back, or nothing of it.
            unit => due.extend(
                pages
                    .step_by(unit)
                    .filter(|&first| !received.contains(first))
                    .map(|first| first..first + unit),
            ),
        }
        for part in due {
            place(part.clone())?;
            self.note(block, part, &mut noted);
        }
        Ok(())
    }

    fn note(&self, block: usize, pages: Range<usize>, noted: impl FnMut(Range<usize>)) {
        let received = &self.received[block];
        // An atomic write waits until all that was copied has left the core, a look does not.
        if !received.contains_all(pages.clone()) {
            received.claim(pages, noted);
        }
    }
}

fn clear(mapping: &Mapping, bytes: Range<usize>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for at in bytes.clone().step_by(ZEROS.len()) {
        mapping.copy_in(at, &ZEROS[..ZEROS.len().min(bytes.end - at)]);
    }
}

/// The pages of the host that some bytes are in.
fn touched(offset: usize, bytes: usize) -> Range<usize> {
    offset / page_size()..(offset + bytes).div_ceil(page_size())
}
