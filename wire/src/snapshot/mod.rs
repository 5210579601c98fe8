//! A snapshot file: QEMU's mapped-ram layout, with paguro's extension behind it.
//!
//! ```text
//! header, CONFIGURATION, START ram, MEM_SIZE
//! for each RAM block:
//!   name, used length, mapped-ram header
//!   bitmap of the pages that are present       one bit a page, little-endian words
//!   (hole up to the next MiB)
//!   pages                                      page i at pages_offset + i * page size
//! EOS, FOOTER                                  end of START ram
//! END ram, EOS, FOOTER
//! FULL ..., FOOTER                             device sections
//! EOF, VMDESCRIPTION
//! paguro's extension and trailer               optional, see `extension`
//! ```
//!
//! Every page has one place of its own, so that pages can be written in any order and by many
//! threads; pages of zeros are not written (their bit stays clear) and the file is sparse.
//!
//! - [`Layout`] plans a file: what stands where, before a single page is written.
//! - [`SnapshotFile`] is a file that was read: QEMU's own files too.
//! - [`extension`] has the checksums and facts that QEMU's format lacks.
//! - [`verify`] checks a file against its checksums, or its structure where it has none.
//! - [`Summary`] is what a person wants to know of a file.
//!
//! A guest of one page, written and read again:
//!
//! ```
//! use paguro_wire::bitmap;
//! use paguro_wire::globalstate;
//! use paguro_wire::snapshot::extension::{ExtensionPlan, Facts, crc32c};
//! use paguro_wire::snapshot::verify::verify;
//! use paguro_wire::snapshot::{BlockPlan, Checksums, Layout, SnapshotFile};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let plan = [BlockPlan { id: "paguro.ram".into(), used_length_bytes: 4096 }];
//! let layout = Layout::plan("paguro-1", &plan)?;
//! let devices = [globalstate::section(globalstate::RUNNING)?];
//! let tail = layout.tail(&devices, Checksums::On)?;
//!
//! // Everything has its place now, and may be written in any order.
//! let mut file = vec![0; layout.resume_offset as usize];
//! let mut write = |offset: u64, bytes: &[u8]| {
//!     let offset = offset as usize;
//!     file.resize(file.len().max(offset + bytes.len()), 0);
//!     file[offset..][..bytes.len()].copy_from_slice(bytes);
//! };
//! let page = [0xaa; 4096];
//! let present = vec![1u64];
//! write(layout.blocks[0].page_offset(0), &page);
//! write(layout.blocks[0].bitmap_offset, &bitmap::to_bytes(&present));
//! for piece in &layout.pieces {
//!     write(piece.offset, &piece.bytes);
//! }
//! write(layout.resume_offset, &tail);
//! let metadata_crc = layout.metadata_crc32c(&[present], &tail);
//! let extension = ExtensionPlan::new(&layout, tail.len())
//!     .encode(metadata_crc, &[[crc32c(&page)]], &Facts::default());
//! write(layout.resume_offset + tail.len() as u64, &extension);
//!
//! let parsed = SnapshotFile::parse(&file)?;
//! assert_eq!(parsed.run_state(&file)?.as_deref(), Some("running"));
//! assert!(verify(&file, &parsed, 1, &|_| ())?.is_clean());
//! # Ok(())
//! # }
//! ```

mod block;
mod closing;
pub mod extension;
mod file;
mod layout;
mod summary;
pub mod verify;
mod walk;

pub use block::Block;
pub use file::{Section, SectionKind, SnapshotFile};
pub use layout::{BlockPlan, Checksums, Layout, LayoutError, Piece};
pub use summary::{BlockSummary, ChecksumSummary, DeviceSummary, SectionSummary, Summary};

/// The most RAM that a file is believed to have, in bytes: its bitmaps take 512 MiB.
pub const RAM_MAX_BYTES: u64 = 16 << 40;

/// The most device sections that a file is believed to have.
pub const SECTIONS_MAX: usize = 16384;
