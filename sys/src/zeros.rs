//! Zeros that take no memory.

use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::{MapError, page_size};

/// So many zeros, of which each page is the kernel's own page of zeros. A constant of that size would be
/// in the program's file.
///
/// All of it is mapped from the start, and stays so: a huge page that is placed from memory that is not
/// takes a second one for as long, because the kernel reads such a source first, and the host may have
/// none.
#[derive(Debug)]
pub struct Zeros {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: nobody can write to it, so that all threads may read.
unsafe impl Send for Zeros {}
// SAFETY: as above.
unsafe impl Sync for Zeros {}

impl Zeros {
    /// `len` of them, a multiple of the page size.
    ///
    /// # Errors
    ///
    /// [`MapError`]: the process may have no more mappings or addresses.
    pub fn map(len: usize) -> Result<Self, MapError> {
        let page = page_size();
        if len == 0 || !len.is_multiple_of(page) {
            return Err(MapError::Length { len, page });
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let mapped =
            unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ, flags) };
        let start = mapped.map_err(|source| MapError::Map {
            what: "zeros",
            len,
            source,
        })?;
        let start = NonNull::new(start.cast()).expect("the kernel chooses no null address");
        Ok(Self { start, len })
    }
}

impl Deref for Zeros {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped by `map`, readable, initialised (zeros), never writable, and unmapped by
        // `drop` only, which no borrow outlives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: made by `map`, unmapped here only, and nothing borrows it any more.
        if let Err(error) = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::warn!(%error, "zeros stay mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_there_and_no_memory() {
        let zeros = Zeros::map(2 << 20).unwrap();
        let (first, count) = (zeros.as_ptr() as u64 / 4096, (2 << 20) / 4096);
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mut entries = vec![0; count * 8];
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, first * 8).unwrap();
        assert!(
            entries.chunks(8).all(|entry| entry[7] & 0x80 != 0),
            "absent"
        );
        assert!(zeros.len() == 2 << 20 && zeros.iter().all(|&byte| byte == 0));
        let status = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", zeros.as_ptr() as usize);
        let own = status.split(&start).nth(1).unwrap();
        let anonymous = own.lines().find(|line| line.starts_with("Anonymous:"));
        assert!(anonymous.unwrap().ends_with(" 0 kB"), "{anonymous:?}");
        assert!(Zeros::map(1).is_err() && Zeros::map(0).is_err());
    }
}
