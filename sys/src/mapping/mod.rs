//! Mappings that back guest RAM.

mod foreign;

use std::any::Any;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use crate::{HUGE_PAGE_BYTES, memory, page_size, smaps};

pub use foreign::ForeignError;

/// A mapping could not be made or changed: the host's doing, or the caller's sizes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The length is zero or no multiple of the page size.
    #[error("cannot map {len} bytes in pages of {page} bytes")]
    Length {
        /// Bytes asked for.
        len: usize,
        /// Bytes in a page of this mapping.
        page: usize,
    },
    /// The kernel refused.
    #[error("cannot map {len} bytes of {what}")]
    Map {
        /// What was to be mapped.
        what: &'static str,
        /// Bytes asked for.
        len: usize,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// The kernel refused an advice (or has not got it).
    #[error("the kernel refused {advice:?} on {len} bytes at offset {offset:#x}")]
    Advise {
        /// What was asked.
        advice: Advice,
        /// Byte offset in the mapping.
        offset: usize,
        /// Bytes.
        len: usize,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
}

impl MapError {
    /// Whether pages of a file were to be brought into memory that could not be read: touching them
    /// would end in a SIGBUS.
    pub fn is_unreadable(&self) -> bool {
        matches!(
            self,
            Self::Advise {
                advice: Advice::PopulateRead,
                source: Errno::FAULT,
                ..
            }
        )
    }
}

/// What `madvise(2)` can be told about a part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Use huge pages where possible.
    Huge,
    /// Use no huge pages.
    NoHuge,
    /// Make pages present by reading, without writing (Linux 5.14).
    PopulateRead,
    /// Make pages present for writing (Linux 5.14).
    PopulateWrite,
    /// Replace small pages by huge ones now (Linux 6.1).
    Collapse,
    /// Give the pages back: anonymous memory reads as zeros afterwards.
    DontNeed,
    /// Give the pages back in the file behind the mapping too.
    Remove,
    /// Write the pages out to where the host swaps, if it does (Linux 5.4).
    PageOut,
    /// Merge no pages with equal ones of others, and undo what was merged (KSM).
    Unmergeable,
}

/// Who unmaps.
enum Owner {
    /// This value does.
    Here,
    /// Whoever drops this last.
    Elsewhere(#[allow(dead_code)] Arc<dyn Any + Send + Sync>),
}

/// A piece of mapped memory that guest RAM lives in.
///
/// What is mapped here is `MADV_DONTFORK | MADV_DONTDUMP`: a child process must neither pay for nor leak
/// a guest. What somebody else mapped ([`Mapping::of_region`], [`Mapping::foreign`]) is as he has it:
/// dumps and children are his affair.
/// Access is by copies only; see the crate documentation.
pub struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    page: usize,
    owner: Owner,
}

// SAFETY: the mapping is plain memory, reachable from every thread; all access goes through raw
// copies, which tolerate concurrent writers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Mapping({:#x}, {} bytes, pages of {})",
            self.addr(),
            self.len,
            self.page
        )
    }
}

impl Mapping {
    /// Private anonymous memory of `len` bytes, aligned to 2 MiB so that huge pages fit.
    /// With `hugetlb` it comes from the host's pool of 2 MiB pages and `len` must be a multiple.
    pub fn anonymous(len: usize, hugetlb: bool) -> Result<Self, MapError> {
        let page = check_len(len, hugetlb)?;
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if hugetlb {
            // Reserved on purpose: a pool that is too small answers here, not with SIGBUS later.
            flags = MapFlags::PRIVATE
                | MapFlags::hugetlb_with_size_log2(21).expect("2 MiB is a huge page size");
        }
        let what = if hugetlb {
            "2 MiB pages"
        } else {
            "anonymous memory"
        };
        let addr = place(len, |at, fixed| {
            // SAFETY: `at` is null, or inside a reservation made by `place` a moment ago.
            unsafe {
                mm::mmap_anonymous(at, len, ProtFlags::READ | ProtFlags::WRITE, flags | fixed)
            }
        })
        .map_err(|source| MapError::Map { what, len, source })?;
        Ok(Self::finish(addr, len, page, Owner::Here))
    }

    /// A shared mapping of `file` (a memfd, or a file on tmpfs) from its start.
    pub fn shared(file: BorrowedFd<'_>, len: usize, hugetlb: bool) -> Result<Self, MapError> {
        let page = check_len(len, hugetlb)?;
        Self::of_file(file, 0, len, page, MapFlags::SHARED, "shared file")
    }

    /// A shared mapping of `len` bytes of `file`, which is in memory, from byte `offset`, a multiple of
    /// the page size.
    ///
    /// # Errors
    ///
    /// [`MapError`].
    pub fn shared_at(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, MapError> {
        let page = check_len(len, false)?;
        Self::of_file(file, offset, len, page, MapFlags::SHARED, "shared file")
    }

    /// A private (copy-on-write) mapping of `len` bytes of `file` from byte `offset`, which must
    /// be a multiple of the page size.
    pub fn private_file(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, MapError> {
        let page = check_len(len, false)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        Self::of_file(file, offset, len, page, flags, "snapshot file")
    }

    fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        page: usize,
        flags: MapFlags,
        what: &'static str,
    ) -> Result<Self, MapError> {
        let addr = place(len, |at, fixed| {
            // SAFETY: `at` is null, or inside a reservation made by `place` a moment ago.
            unsafe {
                mm::mmap(
                    at,
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    flags | fixed,
                    file,
                    offset,
                )
            }
        })
        .map_err(|source| MapError::Map { what, len, source })?;
        Ok(Self::finish(addr, len, page, Owner::Here))
    }

    fn finish(addr: NonNull<u8>, len: usize, page: usize, owner: Owner) -> Self {
        let mapping = Self {
            addr,
            len,
            page,
            owner,
        };
        // Where all memory of the process is to be merged, so would be this.
        for advice in [
            mm::Advice::LinuxDontFork,
            mm::Advice::LinuxDontDump,
            mm::Advice::LinuxUnmergeable,
        ] {
            // SAFETY: the range is the mapping just made; none of the advice changes its content.
            let done = unsafe { mm::madvise(mapping.addr.as_ptr().cast(), len, advice) };
            if let Err(error) = done {
                tracing::debug!(?advice, %error, "guest RAM keeps the default");
            }
        }
        mapping
    }

    /// Host virtual address of the first byte.
    pub fn addr(&self) -> usize {
        self.addr.as_ptr() as usize
    }

    /// The first byte, for those who build their own view of the memory (`vmm`).
    pub fn as_ptr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes (it never has none).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in a page of this mapping: the smallest step of protection and of population.
    pub fn page_bytes(&self) -> usize {
        self.page
    }

    /// Copies from the mapping. Pages that are absent become present (as zeros), and a page that
    /// a pager serves is waited for.
    ///
    /// # Panics
    ///
    /// If the range is outside the mapping: a bug of the caller.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: checked above; `to` is our own memory and cannot overlap guest RAM.
        unsafe {
            self.addr
                .as_ptr()
                .add(offset)
                .copy_to_nonoverlapping(to.as_mut_ptr(), to.len());
        }
    }

    /// Copies into the mapping.
    ///
    /// # Panics
    ///
    /// If the range is outside the mapping: a bug of the caller.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: as in `copy_out`.
        unsafe {
            self.addr
                .as_ptr()
                .add(offset)
                .copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
    }

    /// Whether `len` bytes at `offset` are zero. Touches the pages.
    ///
    /// # Panics
    ///
    /// If the range is outside the mapping: a bug of the caller.
    pub fn is_zero(&self, offset: usize, len: usize) -> bool {
        self.check(offset, len);
        // SAFETY: checked above.
        unsafe { memory::is_zero(self.addr.as_ptr().add(offset), len) }
    }

    /// Whether the bytes at `offset` equal `other`. Touches the pages.
    ///
    /// # Panics
    ///
    /// If the range is outside the mapping: a bug of the caller.
    pub fn is_equal(&self, offset: usize, other: &[u8]) -> bool {
        self.check(offset, other.len());
        // SAFETY: checked above.
        unsafe { memory::is_equal(self.addr.as_ptr().add(offset), other) }
    }

    /// Reads one byte of each page of a range, which makes absent pages present without writing.
    pub fn touch(&self, offset: usize, len: usize) {
        self.check(offset, len);
        for at in (offset..offset + len).step_by(self.page) {
            // SAFETY: checked above. Volatile, so that the read happens.
            let _ = unsafe { self.addr.as_ptr().add(at).read_volatile() };
        }
    }

    /// Fills the range from a file, in place, at byte `from` of the file.
    ///
    /// # Errors
    ///
    /// The file's error; `UnexpectedEof` if the file ends before.
    pub fn read_file_at(
        &self,
        file: BorrowedFd<'_>,
        from: u64,
        offset: usize,
        len: usize,
    ) -> std::io::Result<()> {
        self.check(offset, len);
        let mut done = 0;
        while done < len {
            // SAFETY: the part is inside the mapping (checked above), and `MaybeUninit<u8>` makes
            // no claim about what is there while the kernel fills it.
            let part = unsafe {
                std::slice::from_raw_parts_mut(
                    self.addr
                        .as_ptr()
                        .add(offset + done)
                        .cast::<std::mem::MaybeUninit<u8>>(),
                    len - done,
                )
            };
            let count = match rustix::io::pread(file, part, from + done as u64) {
                Ok((filled, _)) => filled.len(),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            done += count;
        }
        Ok(())
    }

    /// Tells the kernel something about a page-aligned range.
    ///
    /// # Errors
    ///
    /// [`MapError::Advise`]; `EINVAL` where this kernel does not know the advice.
    pub fn advise(&self, offset: usize, len: usize, advice: Advice) -> Result<(), MapError> {
        self.check(offset, len);
        let at = self.addr.as_ptr().wrapping_add(offset).cast::<c_void>();
        let known = match advice {
            Advice::Huge => mm::Advice::LinuxHugepage,
            Advice::NoHuge => mm::Advice::LinuxNoHugepage,
            Advice::PopulateRead => mm::Advice::LinuxPopulateRead,
            Advice::PopulateWrite => mm::Advice::LinuxPopulateWrite,
            Advice::DontNeed => mm::Advice::LinuxDontNeed,
            Advice::Remove => mm::Advice::LinuxRemove,
            Advice::PageOut => mm::Advice::LinuxPageOut,
            Advice::Unmergeable => mm::Advice::LinuxUnmergeable,
            Advice::Collapse => {
                // SAFETY: the range is ours; collapsing moves content without changing it.
                let done = unsafe { libc::madvise(at, len, libc::MADV_COLLAPSE) };
                return if done == 0 {
                    Ok(())
                } else {
                    let source = std::io::Error::last_os_error();
                    let source = Errno::from_io_error(&source).unwrap_or(Errno::INVAL);
                    Err(MapError::Advise {
                        advice,
                        offset,
                        len,
                        source,
                    })
                };
            }
        };
        // SAFETY: the range is ours. `DontNeed` and `Remove` drop content, which is what the
        // caller asks for; no reference into the memory exists.
        unsafe { mm::madvise(at, len, known) }.map_err(|source| MapError::Advise {
            advice,
            offset,
            len,
            source,
        })
    }

    /// Keeps the kernel from merging its pages with equal ones of others (KSM) if it was mapped here;
    /// that was so from its start, but the process may have asked for merging since. Of memory that
    /// somebody else made, it is his decision: see [`Mapping::is_mergeable`].
    ///
    /// # Errors
    ///
    /// The kernel's: no memory to undo what was merged.
    pub fn keep_unmerged(&self) -> std::io::Result<()> {
        match self.owner {
            Owner::Elsewhere(_) => Ok(()),
            Owner::Here => match self.advise(0, self.len, Advice::Unmergeable) {
                Err(MapError::Advise { source, .. }) if source != Errno::INVAL => {
                    Err(source.into())
                }
                // A kernel without it does not know the advice.
                _ => Ok(()),
            },
        }
    }

    /// Whether the kernel may merge pages of it with equal ones of others (KSM).
    ///
    /// # Errors
    ///
    /// The host's: `/proc` is not mounted.
    pub fn is_mergeable(&self) -> std::io::Result<bool> {
        match self.owner {
            // Just now `keep_unmerged` was asked, and reading all of a large process costs milliseconds.
            Owner::Here => Ok(false),
            Owner::Elsewhere(_) => smaps::may_merge(self.range(0, self.len)),
        }
    }

    /// Host address of a range, checked.
    ///
    /// # Panics
    ///
    /// If the range is outside the mapping: a bug of the caller.
    pub fn range(&self, offset: usize, len: usize) -> std::ops::Range<usize> {
        self.check(offset, len);
        self.addr() + offset..self.addr() + offset + len
    }

    pub(crate) fn check(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {offset:#x} are outside a mapping of {} bytes",
            self.len
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Owner::Here = self.owner {
            // SAFETY: the mapping was made here, nothing else unmaps it, and no reference into it
            // was ever handed out.
            if let Err(error) = unsafe { mm::munmap(self.addr.as_ptr().cast(), self.len) } {
                tracing::warn!(%error, "guest RAM stays mapped");
            }
        }
    }
}

fn check_len(len: usize, hugetlb: bool) -> Result<usize, MapError> {
    let page = if hugetlb {
        HUGE_PAGE_BYTES
    } else {
        page_size()
    };
    if len == 0 || !len.is_multiple_of(page) {
        return Err(MapError::Length { len, page });
    }
    Ok(page)
}

/// Maps through `map`, aligned to 2 MiB: reserves more than needed, maps over the aligned part,
/// gives the rest back. A huge page, and a chunk that is armed in one step, can start nowhere else.
fn place(
    len: usize,
    map: impl FnOnce(*mut c_void, MapFlags) -> rustix::io::Result<*mut c_void>,
) -> rustix::io::Result<NonNull<u8>> {
    let room = len.checked_add(HUGE_PAGE_BYTES).ok_or(Errno::NOMEM)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping at an address that the kernel chooses touches nothing that exists.
    let start =
        unsafe { mm::mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), flags)? };
    let aligned = (start as usize).next_multiple_of(HUGE_PAGE_BYTES) as *mut c_void;
    let mapped = map(aligned, MapFlags::FIXED);
    let (from, to) = match mapped {
        Ok(_) => (aligned as usize, aligned as usize + len),
        Err(_) => (start as usize, start as usize),
    };
    let end = start as usize + room;
    for (begin, end) in [
        (start as usize, from),
        (to.next_multiple_of(page_size()), end),
    ] {
        if begin < end {
            // SAFETY: inside the reservation, outside of what was mapped over it.
            let _ = unsafe { mm::munmap(begin as *mut c_void, end - begin) };
        }
    }
    mapped?;
    NonNull::new(aligned.cast()).ok_or(Errno::NOMEM)
}
