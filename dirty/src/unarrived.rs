//! What a freeze must know of a machine that is still being filled.

use std::ops::Range;

use paguro_ram::PageSet;

/// Pages that have a picture elsewhere because they have not arrived in RAM yet: a snapshot that
/// is taken while RAM is still being filled from another one.
pub trait Unarrived: Send + Sync + std::fmt::Debug {
    /// Pages of a block that the source has content for.
    fn has(&self, block: usize) -> &PageSet;

    /// Those of them that are in RAM now.
    fn arrived(&self, block: usize) -> &PageSet;

    /// Reads one page from the source. A read that fails is tried again as long as it makes sense and
    /// the caller shall `go_on`.
    ///
    /// # Errors
    ///
    /// The source's.
    fn read(
        &self,
        block: usize,
        page: usize,
        to: &mut [u8],
        go_on: &mut dyn FnMut() -> bool,
    ) -> std::io::Result<()>;

    /// Has pages come into RAM, as [`Unarrived::read`] tries: for who is about to touch them, and must
    /// not wait for ever. Whoever cannot has them come by being touched.
    ///
    /// # Errors
    ///
    /// The source's.
    fn bring(
        &self,
        _block: usize,
        _pages: Range<usize>,
        _go_on: &mut dyn FnMut() -> bool,
    ) -> std::io::Result<()> {
        Ok(())
    }

    /// Waits until no page is between arriving and being counted in [`Unarrived::arrived`]. Called
    /// in the pause: what is not counted then has not been there for the guest to write.
    fn settle(&self) {}
}
