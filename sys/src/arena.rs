//! A bounded piece of our own memory, cut into units that are handed around by value.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rustix::io::Errno;

use crate::{Advice, MapError, Mapping};

/// A part of an arena, owned by whoever holds it. The memory is given back to the host when the
/// last unit of its arena is dropped.
#[derive(Debug)]
pub struct Unit {
    arena: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Unit {
    /// `count` units of `unit_bytes` each, made present now so that nobody waits for memory later.
    ///
    /// # Errors
    ///
    /// [`MapError`]: the host has not got that much.
    pub fn split(count: usize, unit_bytes: usize) -> Result<Vec<Self>, MapError> {
        let bytes = count.saturating_mul(unit_bytes);
        let arena = Arc::new(Mapping::anonymous(bytes, false)?);
        let _ = arena.advise(0, bytes, Advice::Huge);
        match arena.advise(0, bytes, Advice::PopulateWrite) {
            // Before Linux 5.14.
            Err(MapError::Advise {
                source: Errno::INVAL,
                ..
            }) => {
                for at in (0..bytes).step_by(arena.page_bytes()) {
                    arena.copy_in(at, &[0]);
                }
            }
            // Touching what the host has not got would cost the process.
            populated => populated?,
        }
        let unit = |index| Self {
            arena: arena.clone(),
            start: index * unit_bytes,
            len: unit_bytes,
        };
        Ok((0..count).map(unit).collect())
    }
}

impl Deref for Unit {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the arena by construction; `split` is the only maker and gives each part
        // out once, so a shared borrow of the unit is a shared borrow of its part. The mapping is
        // readable, initialised (zeros), and lives as long as `self.arena`.
        unsafe { std::slice::from_raw_parts(self.arena.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Unit {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.arena.as_ptr().add(self.start), self.len) }
    }
}
