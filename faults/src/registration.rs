//! Which blocks are registered, and for whom.
//!
//! A block is registered for all its users at once. The only way to drop a mode is to unregister,
//! which lets absent pages read as zeros from then on. So a block stays registered
//! until *nobody* uses it, and is then unregistered in small steps: doing a gigabyte at once keeps
//! every vCPU that faults waiting for tens of milliseconds.

use std::ops::Range;

use paguro_sys::{RegisterMode, UffdError};

use crate::holes::Holes;
use crate::{Faults, FaultsError};

/// What the kernel says to a range without a mapping that could be registered.
const INVALID: UffdError = UffdError::Other {
    call: "UFFDIO_UNREGISTER",
    errno: rustix::io::Errno::INVAL,
};

/// What it says where the process has as many mappings as it may.
const NO_MAPPINGS: UffdError = UffdError::Other {
    call: "UFFDIO_UNREGISTER",
    errno: rustix::io::Errno::NOMEM,
};

/// What a block is registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A pager fills it.
    Missing,
    /// A freeze protects it.
    WriteProtect,
}

/// Per block, who uses it, and what of it is not registered any more.
#[derive(Debug)]
pub(crate) struct Registered {
    blocks: Vec<Uses>,
    holes: Holes,
}

#[derive(Debug, Default, Clone, Copy)]
struct Uses {
    missing: bool,
    write_protect: bool,
}

impl Uses {
    fn of(&mut self, used: Use) -> &mut bool {
        match used {
            Use::Missing => &mut self.missing,
            Use::WriteProtect => &mut self.write_protect,
        }
    }
}

impl Registered {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![Uses::default(); blocks],
            holes: Holes::new(blocks),
        }
    }
}

impl Faults {
    /// Registers the used part of a block.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Register`].
    pub fn register(&self, block: usize, used: Use) -> Result<(), FaultsError> {
        let ram = self.block(block);
        let range = ram.addresses_of(&(0..ram.pages()));
        let mut registered = self.registered.lock();
        let mut uses = registered.blocks[block];
        *uses.of(used) = true;
        // Always for all its users: the kernel adds a mode to a superset of what is there, but
        // replaces modes by others.
        let mode = match (uses.missing, uses.write_protect) {
            (true, true) => RegisterMode::Both,
            (true, false) => RegisterMode::Missing,
            _ => RegisterMode::WriteProtect,
        };
        if !range.is_empty() {
            self.retry(|| self.uffd.register(range.clone(), mode))
                .map_err(|source| FaultsError::Register {
                    block: ram.id().to_owned(),
                    source,
                })?;
        }
        // For a user who is new: he may come long after the last one.
        if !*registered.blocks[block].of(used) {
            registered.holes.allow(self.most_mappings());
        }
        registered.holes.clear(block);
        registered.blocks[block] = uses;
        Ok(())
    }

    /// Whether a block is registered for that.
    pub fn is_registered(&self, block: usize, used: Use) -> bool {
        *self.registered.lock().blocks[block].of(used)
    }

    /// Unregisters a few pages of a block ahead of [`Faults::unregister`], for a user who is done
    /// with them: protection goes with it and waiters are woken, in one step instead of two.
    ///
    /// Returns false, and does nothing, if the block has another user than `used`, or if it would be
    /// in too many pieces then: the part goes with all the rest.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Register`].
    pub fn unregister_part(
        &self,
        block: usize,
        used: Use,
        pages: Range<usize>,
    ) -> Result<bool, FaultsError> {
        {
            let mut registered = self.registered.lock();
            let mut others = registered.blocks[block];
            *others.of(used) = false;
            let alone = !others.missing && !others.write_protect;
            if !alone || !registered.holes.add(block, &pages) {
                return Ok(false);
            }
        }
        match self.unregister_pages(block, pages) {
            // Others use mappings, too.
            Err(FaultsError::Register { source, .. }) if source == NO_MAPPINGS => {
                tracing::debug!(
                    block,
                    "no more mappings: the rest stays registered until the end"
                );
                self.registered.lock().holes.exhausted();
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Says that one user of a block is done with it. If he was the last, its `parts` are
    /// unregistered one after the other, small ones so that vCPUs need not wait long, with a call
    /// of `between` after each. They ascend, and with what was unregistered ahead of them they are
    /// all of the block: so no part makes more pieces of it.
    ///
    /// # Errors
    ///
    /// [`FaultsError::Register`]; the other parts were tried all the same.
    pub fn unregister(
        &self,
        block: usize,
        used: Use,
        parts: &[Range<usize>],
        mut between: impl FnMut(),
    ) -> Result<(), FaultsError> {
        let alone = {
            let mut registered = self.registered.lock();
            let uses = &mut registered.blocks[block];
            *uses.of(used) = false;
            !uses.missing && !uses.write_protect
        };
        let mut result = Ok(());
        if alone {
            for part in parts {
                {
                    // Somebody may have come since: what he has registered, and perhaps protected
                    // already, is his.
                    let registered = self.registered.lock();
                    let uses = registered.blocks[block];
                    if uses.missing || uses.write_protect {
                        return result;
                    }
                    let done = self.unregister_pages(block, part.clone());
                    if let Err(FaultsError::Register { source, .. }) = &done
                        && *source == NO_MAPPINGS
                    {
                        // Whole it needs none.
                        let end = parts.last().map_or(part.end, |last| last.end);
                        return result.and(self.unregister_pages(block, part.start..end));
                    }
                    result = result.and(done);
                }
                between();
            }
        }
        result
    }

    fn unregister_pages(&self, block: usize, pages: Range<usize>) -> Result<(), FaultsError> {
        let ram = self.block(block);
        let range = ram.addresses_of(&pages);
        let answer = self.retry(|| self.uffd.unregister(range.clone()));
        // The kernel wakes waiters of a range that it unregisters only if it was registered for
        // missing pages; a writer that waits on a protected page would wait for ever.
        self.wake(block, pages);
        match answer {
            // Nothing, or something else, is mapped there by now, or the process has ended: there is
            // nothing left to undo.
            Ok(()) | Err(UffdError::Gone | UffdError::Ended | INVALID) => Ok(()),
            Err(source) => Err(FaultsError::Register {
                block: ram.id().to_owned(),
                source,
            }),
        }
    }
}
