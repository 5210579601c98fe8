//! Who follows a long work, and may end it.

use std::io;

/// A terminal, or whatever stands in its place. The work tells how far it is; how that is shown, and
/// where lines go, is not its business.
pub trait Console {
    /// From now on `total` steps of `what` are counted, from 0.
    fn begin(&self, what: &'static str, total: u64);

    /// One more is done.
    fn step(&self);

    /// So many are done.
    fn set(&self, done: u64);

    /// What is being done.
    fn at(&self, what: &str);

    /// A line of the outcome.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    fn print(&self, line: &str) -> io::Result<()>;

    /// A line that is beside the outcome.
    fn note(&self, line: &str);

    /// Whether the work is to end.
    fn is_interrupted(&self) -> bool;
}
