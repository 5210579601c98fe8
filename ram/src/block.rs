//! A named piece of guest RAM.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use paguro_sys::{Advice, HUGE_PAGE_BYTES, Mapping, page_size};
use rustix::mm::MapFlags;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

use crate::{Backing, RamError, Span};

/// Which pages a block wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// The host's base pages.
    Small,
    /// Base pages that the kernel may join into huge ones.
    Thp,
    /// 2 MiB pages of hugetlbfs.
    Huge,
}

/// What a new block shall be.
#[derive(Clone, Debug)]
pub struct BlockConfig {
    /// Its name in streams and files.
    pub id: String,
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Bytes; a multiple of the page size.
    pub bytes: usize,
    /// What is behind it ([`Backing::PrivateFile`] is made by [`RamBlock::of_file`]).
    pub backing: Backing,
    /// Which pages.
    pub pages: PageKind,
}

/// A named piece of guest RAM. Its maximum length is that of its mapping; its used length may
/// change below that.
#[derive(Debug)]
pub struct RamBlock {
    span: Arc<Span>,
    mapping: Arc<Mapping>,
    guest_address: u64,
    pages: PageKind,
    file: Option<OwnedFd>,
    file_offset: u64,
    others_write: bool,
    read_only: bool,
}

impl RamBlock {
    /// Makes fresh memory: all zero, nothing present.
    ///
    /// # Errors
    ///
    /// [`RamError::Map`] and [`RamError::Memfd`]: the host has no such memory.
    pub fn new(config: BlockConfig) -> Result<Self, RamError> {
        let BlockConfig {
            id,
            guest_address,
            bytes,
            backing,
            pages,
        } = config;
        let huge = pages == PageKind::Huge;
        let map = |source| RamError::Map {
            id: id.clone(),
            source,
        };
        let (mapping, file) = match backing {
            Backing::Memfd => {
                let file = memfd(&id, bytes, huge).map_err(|source| RamError::Memfd {
                    id: id.clone(),
                    bytes,
                    source,
                })?;
                (
                    Mapping::shared(file.as_fd(), bytes, huge).map_err(map)?,
                    Some(file),
                )
            }
            _ => (Mapping::anonymous(bytes, huge).map_err(map)?, None),
        };
        // A kernel without huge pages refuses the advice, and there is nothing to lose by it.
        let advice = match pages {
            PageKind::Thp => Some(Advice::Huge),
            PageKind::Small => Some(Advice::NoHuge),
            PageKind::Huge => None,
        };
        if let Some(advice) = advice
            && let Err(error) = mapping.advise(0, bytes, advice)
        {
            tracing::debug!(block = %id, %error, "page size advice has no effect");
        }
        let backing = match file {
            Some(_) => Backing::Memfd,
            None => Backing::Anonymous,
        };
        Ok(Self {
            pages,
            file,
            ..Self::adopt(&id, guest_address, Arc::new(mapping), backing)
        })
    }

    /// A private mapping of `bytes` bytes of `file` at `offset`: reads come from the file as they
    /// are needed, writes stay here.
    ///
    /// # Errors
    ///
    /// [`RamError::Map`].
    pub fn of_file(
        id: &str,
        guest_address: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: usize,
    ) -> Result<Self, RamError> {
        let mapping =
            Mapping::private_file(file, offset, bytes).map_err(|source| RamError::Map {
                id: id.to_owned(),
                source,
            })?;
        Ok(Self::adopt(
            id,
            guest_address,
            Arc::new(mapping),
            Backing::PrivateFile,
        ))
    }

    /// The memory of a `vm-memory` region that mapped it itself, whatever its bitmap is. What is behind
    /// it follows from the region's flags and file.
    ///
    /// # Errors
    ///
    /// [`RamError::Foreign`]: the region does not own its memory, or has pages of another size than 2 MiB
    /// and the host's. [`RamError::File`].
    pub fn of_region<B>(id: &str, region: &GuestRegionMmap<B>) -> Result<Self, RamError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let mapped = region.get_mmap();
        let shared = mapped.flags() as u32 & MapFlags::SHARED.bits() != 0;
        let backing = match (shared, mapped.file_offset()) {
            (true, _) => Backing::Memfd,
            (false, Some(_)) => Backing::PrivateFile,
            (false, None) => Backing::Anonymous,
        };
        let mapping = Mapping::of_region(mapped).map_err(|source| RamError::Foreign {
            id: id.to_owned(),
            source,
        })?;
        let block = Self::adopt(id, region.start_addr().0, Arc::new(mapping), backing);
        let Some(file) = region.file_offset() else {
            return Ok(block);
        };
        let cloned = file.file().try_clone().map_err(|source| RamError::File {
            id: id.to_owned(),
            source,
        })?;
        Ok(block.with_file(cloned.into(), file.start()))
    }

    /// A block over memory that is mapped already, by whoever it was: [`Mapping::foreign`] is the way in
    /// for memory of a VMM that is no region of `vm-memory`, or one of another version of it.
    pub fn adopt(id: &str, guest_address: u64, mapping: Arc<Mapping>, backing: Backing) -> Self {
        let pages = if mapping.page_bytes() > page_size() {
            PageKind::Huge
        } else {
            PageKind::Small
        };
        Self {
            span: Arc::new(Span::here(id.to_owned(), mapping.clone(), backing)),
            mapping,
            guest_address,
            pages,
            file: None,
            file_offset: 0,
            others_write: false,
            read_only: false,
        }
    }

    /// The same block with the file behind its shared mapping (for [`Backing::Memfd`]), which
    /// begins at byte `offset` of it. Others may write to it at any time. Where its pages are
    /// [`PageKind::Huge`] and not all of the file has pages, each look at which ones exist then takes
    /// some 100 us a page that does not; [`RamBlock::left_by_others`] saves that.
    pub fn with_file(mut self, file: OwnedFd, offset: u64) -> Self {
        self.file = Some(file);
        self.file_offset = offset;
        self.others_write = true;
        self
    }

    /// The same block, whose file others have written to and do not any more: they handed it over.
    pub fn left_by_others(mut self) -> Self {
        self.others_write = false;
        self
    }

    /// The same block, which the guest cannot write: never populated, armed, or registered.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Its name.
    pub fn id(&self) -> &str {
        self.span.id()
    }

    /// Guest-physical address of its first byte.
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// Where it is, as whoever answers its faults sees it. Its used length is that of the block.
    pub fn span(&self) -> &Arc<Span> {
        &self.span
    }

    /// The memory.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What is behind it.
    pub fn backing(&self) -> Backing {
        self.span.backing()
    }

    /// Which pages it wants.
    pub fn page_kind(&self) -> PageKind {
        self.pages
    }

    /// The file behind a shared mapping. Of a block that was made by [`RamBlock::new`] no other process
    /// may write to it ([`crate::presence::map_rest`]).
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Whether others may put pages into its file at any time.
    pub(crate) fn others_write(&self) -> bool {
        self.others_write
    }

    /// Where in its file the block begins, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Whether the guest cannot write it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes in use now.
    pub fn used_bytes(&self) -> usize {
        self.span.used_bytes()
    }

    /// Bytes it may grow to.
    pub fn max_bytes(&self) -> usize {
        self.span.max_bytes()
    }

    /// Changes the used length.
    ///
    /// # Errors
    ///
    /// [`RamError::Length`]: not a multiple of the page size, or more than the maximum.
    pub fn resize(&self, used: usize) -> Result<(), RamError> {
        self.span.resize(used)
    }

    /// Pages in use now.
    pub fn pages(&self) -> usize {
        self.span.pages()
    }

    /// Pages it may grow to: the size of its sets.
    pub fn max_pages(&self) -> usize {
        self.span.max_pages()
    }

    /// Pages that can only be protected or placed together: 1, or 512 on hugetlbfs.
    pub fn unit_pages(&self) -> usize {
        self.span.unit_pages()
    }

    /// Bytes of a range of pages.
    pub fn bytes_of(&self, pages: &Range<usize>) -> Range<usize> {
        pages.start * page_size()..pages.end * page_size()
    }

    /// Host virtual addresses of a range of pages.
    pub fn addresses_of(&self, pages: &Range<usize>) -> Range<usize> {
        self.span.addresses_of(pages)
    }

    /// Whether it can be frozen by write-protection: a private file mapping cannot (the kernel
    /// protects anonymous and shared memory only).
    pub fn can_be_protected(&self) -> bool {
        self.backing() != Backing::PrivateFile
    }
}

fn memfd(id: &str, bytes: usize, huge: bool) -> std::io::Result<OwnedFd> {
    use rustix::fs::MemfdFlags;
    let mut flags = MemfdFlags::CLOEXEC;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = rustix::fs::memfd_create(id, flags)?;
    debug_assert!(!huge || bytes.is_multiple_of(HUGE_PAGE_BYTES));
    rustix::fs::ftruncate(&file, bytes as u64)?;
    Ok(file)
}
