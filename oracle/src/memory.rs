//! What a picture of guest RAM is to the checker.

use std::io;

/// Guest RAM that can be read. It must not change while it is checked: a file, or a process
/// whose VM is stopped.
pub trait Memory {
    /// All of RAM, as (guest-physical address, bytes), ascending.
    fn ram(&self) -> &[(u64, u64)];

    /// Fills `buffer` from `gpa` on. The range lies within one entry of [`ram`](Self::ram).
    ///
    /// # Errors
    ///
    /// What the file or the process gave.
    fn read(&self, gpa: u64, buffer: &mut [u8]) -> io::Result<()>;
}
