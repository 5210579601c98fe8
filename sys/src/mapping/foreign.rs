//! Memory that somebody else mapped.
//!
//! It stays as its owner made it. Our own is kept from children (`MADV_DONTFORK`) and dumps
//! (`MADV_DONTDUMP`); of this it is his decision: he may want his dumps, or fork devices that share it,
//! and what was changed would stay so when the engine is done. A fork does not harm a freeze: a child
//! has its own copies of private memory, and who writes to shared memory from another process is a
//! writer that no freeze sees, forked or not. It costs memory, and shows the child the guest.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};

use super::{Mapping, Owner};
use crate::{HUGE_PAGE_BYTES, page_size, smaps};

/// The magic of hugetlbfs, as `statfs(2)` tells it.
const HUGETLBFS: u64 = 0x9584_58f6;
/// Where the flags of a mapping say how large its huge pages are, as a power of two.
const HUGE_SHIFT: u32 = 26;

/// Memory of somebody else cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// The caller's: the region does not unmap its memory, so that keeping it alive keeps nothing
    /// mapped. Whoever knows what does, says so to [`Mapping::foreign`].
    #[error("the region does not own its memory: use Mapping::foreign, with what keeps it mapped")]
    NotOwned,
    /// The caller's: it is empty, not of whole pages, or at no address.
    #[error("{bytes:#x} bytes at {address:#x} are not whole pages of {page_bytes} bytes")]
    Addresses {
        /// The first address.
        address: usize,
        /// Its length.
        bytes: usize,
        /// Bytes in a page of it.
        page_bytes: usize,
    },
    /// The caller's: nothing is mapped in a part of it.
    #[error("nothing is mapped at {address:#x}")]
    NotMapped {
        /// The first address of the part.
        address: usize,
    },
    /// The caller's: its pages are of a size that this engine does not use, or of two.
    #[error("it has pages of {page_bytes} bytes")]
    Pages {
        /// Bytes in a page.
        page_bytes: usize,
    },
    /// The caller's: it cannot be read and written.
    #[error("it is not mapped to be read and written")]
    Access,
    /// The host's: it does not say how large the pages are. Taken for small ones, huge pages would be
    /// protected and placed wrongly.
    #[error("it cannot be found out how large its pages are")]
    Unknown(#[source] std::io::Error),
}

impl Mapping {
    /// The memory of a `vm-memory` region that mapped it itself, and is kept alive by this value.
    ///
    /// # Errors
    ///
    /// [`ForeignError::NotOwned`], for a region that was made of a pointer; `Access`; `Pages`; `Unknown`.
    pub fn of_region<B>(region: Arc<vm_memory::MmapRegion<B>>) -> Result<Self, ForeignError>
    where
        B: vm_memory::bitmap::Bitmap + Send + Sync + 'static,
    {
        if !region.owned() {
            return Err(ForeignError::NotOwned);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        if region.prot() as u32 & access.bits() != access.bits() {
            return Err(ForeignError::Access);
        }
        let (address, bytes) = (region.as_ptr() as usize, region.size());
        // An owned region was mapped with its flags and its file, so these are to be believed.
        let page_bytes = match region.file_offset() {
            Some(file) => {
                let system = rustix::fs::fstatfs(file.file())
                    .map_err(|errno| ForeignError::Unknown(errno.into()))?;
                if system.f_type as u64 == HUGETLBFS {
                    system.f_bsize as usize
                } else {
                    page_size()
                }
            }
            None if region.flags() as u32 & MapFlags::HUGETLB.bits() == 0 => page_size(),
            None => match region.flags() as u32 >> HUGE_SHIFT {
                // What the host has by default.
                0 => ask(&(address..address + bytes))?,
                log2 => 1 << log2,
            },
        };
        Self::elsewhere(address, bytes, page_bytes, region)
    }

    /// Memory at `address` that somebody else mapped, readable and writable. How large its pages are is
    /// asked of the kernel, in `/proc/self/smaps`.
    ///
    /// # Errors
    ///
    /// [`ForeignError`].
    ///
    /// # Safety
    ///
    /// As long as `owner` lives, all of it stays mapped with pages of the same size, and nobody holds a
    /// reference into it (in the sense of the language): the engine reads and writes it raw, from any
    /// thread.
    pub unsafe fn foreign(
        address: usize,
        bytes: usize,
        owner: impl Send + Sync + 'static,
    ) -> Result<Self, ForeignError> {
        let range = address..address.saturating_add(bytes);
        let page_bytes = ask(&range)?;
        Self::elsewhere(address, bytes, page_bytes, Arc::new(owner))
    }

    fn elsewhere(
        address: usize,
        bytes: usize,
        page_bytes: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, ForeignError> {
        if page_bytes != page_size() && page_bytes != HUGE_PAGE_BYTES {
            return Err(ForeignError::Pages { page_bytes });
        }
        let whole = address.is_multiple_of(page_bytes) && bytes.is_multiple_of(page_bytes);
        match NonNull::new(address as *mut u8) {
            Some(addr) if whole && bytes > 0 => Ok(Self {
                addr,
                len: bytes,
                page: page_bytes,
                owner: Owner::Elsewhere(owner),
            }),
            _ => Err(ForeignError::Addresses {
                address,
                bytes,
                page_bytes,
            }),
        }
    }
}

/// Bytes in a page of a range, all of which must be mapped with pages of the same size.
fn ask(range: &Range<usize>) -> Result<usize, ForeignError> {
    let areas = smaps::areas(range).map_err(ForeignError::Unknown)?;
    let mut at = range.start;
    let mut sizes = areas.iter().map(|area| area.page_bytes);
    for area in &areas {
        if area.addresses.start > at {
            return Err(ForeignError::NotMapped { address: at });
        }
        at = area.addresses.end;
    }
    let first = sizes.next();
    match first {
        Some(page_bytes) if at >= range.end => match sizes.find(|&other| other != page_bytes) {
            Some(page_bytes) => Err(ForeignError::Pages { page_bytes }),
            None => Ok(page_bytes),
        },
        _ => Err(ForeignError::NotMapped { address: at }),
    }
}
