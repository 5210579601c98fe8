//! The elements of a migration stream, each with its encoder and decoder.
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
//! its grammar ([`ram`]), those of devices from the description ([`description`]) or from
//! reading their fields.

mod channel_input;
pub mod command;
pub mod configuration;
pub mod description;
pub mod header;
pub mod ram;
pub mod return_path;
pub mod section;
pub mod xbzrle;

pub use channel_input::ChannelInput;

/// Appends a string with its length byte. The caller has checked its length.
pub(crate) fn put_str8(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= crate::NAME_MAX_BYTES);
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}
