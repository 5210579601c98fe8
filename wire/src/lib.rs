//! QEMU's migration stream and mapped-ram file, as bytes only.
//!
//! This room knows neither guest memory nor sockets nor machines: it turns values into bytes
//! and bytes back into values, and it trusts no number that it reads. Everything that it
//! decodes is bounded (see the `*_MAX` constants) and every error names what was read, where,
//! and what was found there.
//!
//! - [`stream`]: the elements of a migration stream (header, configuration, section framing,
//!   commands, RAM records, description). A mapped-ram file is made of the same elements.
//! - [`device`]: the body of a device section, written and read back field by field.
//! - [`globalstate`]: the one section of QEMU's that says whether the guest was running.
//! - [`snapshot`]: a whole mapped-ram file: planned for a writer, parsed, verified, summed up.
//! - [`bitmap`]: page bitmaps as words and as the file's bytes.
//!
//! Integers are big-endian, as everywhere in QEMU's stream; only the page bitmaps of a
//! mapped-ram file are little-endian words.

#![forbid(unsafe_code)]

pub mod bitmap;
pub mod device;
mod error;
pub mod globalstate;
pub mod input;
mod read_at;
pub mod snapshot;
pub mod stream;

pub use error::{DecodeError, Fault, Medium};
pub use read_at::ReadAt;

/// The size of the pages of a snapshot file that is written here, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// The longest name that a section, a field or a RAM block can have, in bytes.
pub const NAME_MAX_BYTES: usize = 255;
