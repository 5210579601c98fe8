//! The elements of a migration stream, each with its encoder and decoder, and the whole of it.
//!
//! ```text
//! header  configuration  { START | PART | END | FULL | COMMAND }  EOF  [ VMDESCRIPTION ]
//!
//! START, FULL    01 / 04   u32 id, str8 name, u32 instance, u32 version   body   7e u32 id
//! PART, END      02 / 03   u32 id                                         body   7e u32 id
//! COMMAND        08        u16 number, u16 length, payload
//! VMDESCRIPTION  06        u32 length, JSON
//! ```
//!
//! `str8` is a length byte and as many bytes. Bodies carry no length: that of `ram` is known by
//! its grammar ([`ram`]), those of devices from the description ([`description`]), or from a field
//! of their own ([`devices`]).
//!
//! # A live stream
//!
//! What is read from a channel ([`StreamReader`]) is stricter than what QEMU accepts:
//!
//! ```text
//! header  CONFIGURATION
//!   { COMMAND }                     OPEN_RETURN_PATH once, and before the first PING
//! START ram   list of blocks, EOS   exactly one; no other iterable section
//!   { COMMAND | PART ram }          records of pages, EOS
//! [ END ram ]                       the same; missing in a background snapshot
//!   { COMMAND | FULL device }       each name and instance once; no RAM from the first on
//! EOF                               permission to run
//! [ VMDESCRIPTION ]                 then nothing
//! ```
//!
//! Each section has a number of its own, repeated in its footer. A stream that breaks any of this
//! is refused where it does so, with what was expected and what was found. What belongs to another
//! machine, or to one of another size, is refused as [`Differs`](crate::DecodeError::Differs),
//! with the values of both sides, before any page was read.
//!
//! Beside it there are the [`return_path`], from the destination to the source, and the channels
//! of [`multifd`], each with a grammar of its own.
//!
//! What a decoder takes of memory is bounded by the constants `*_MAX`, whatever it reads: at most
//! 4096 blocks, 4096 devices of 64 MiB together, 16 MiB of description. The number of pages and of
//! commands is not bounded, and takes no memory.

mod channel_input;
pub mod command;
pub mod configuration;
pub mod description;
pub(crate) mod device_name;
pub mod devices;
pub mod header;
pub mod multifd;
pub mod order;
pub mod ram;
mod reader;
pub mod return_path;
pub mod section;
pub mod xbzrle;

pub use channel_input::{ChannelInput, Sink};
pub use reader::{Event, Expected, StreamReader};

/// Appends a string with its length byte. The caller has checked its length.
pub(crate) fn put_str8(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= crate::NAME_MAX_BYTES);
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}
