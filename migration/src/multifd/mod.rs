//! Multifd: pages on connections of their own, so that more than one CPU sends and places them.
//!
//! The source's end is `source/way/multifd.rs`, the destination's `destination/lanes.rs`; the format is
//! [`paguro_wire::stream::multifd`]. Both ends are told the same, as in QEMU.

#[cfg(feature = "zstd")]
mod codec;
#[cfg(not(feature = "zstd"))]
mod no_codec;

use paguro_wire::stream::multifd;

#[cfg(feature = "zstd")]
pub use codec::{CodecError, Packer, Unpacker};
#[cfg(not(feature = "zstd"))]
pub(crate) use no_codec::{CodecError, Packer, Unpacker};

/// What both sides must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multifd {
    /// How many connections beside the main one.
    pub channels: u8,
    /// What becomes of the pages on them.
    pub compression: Compression,
}

/// How pages are compressed on multifd channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// With zstd, one stream a channel. Refused where the feature `zstd` is not built in.
    Zstd {
        /// From 1, fast, to 20, small. The destination does not look at it.
        level: u8,
    },
}

impl Multifd {
    /// Uncompressed.
    pub fn new(channels: u8) -> Self {
        Self {
            channels,
            compression: Compression::None,
        }
    }

    /// What makes no sense: option, value, and what it must be.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        if self.channels == 0 {
            return Err(("multifd-channels", "0".to_owned(), "there must be one"));
        }
        match self.compression {
            Compression::Zstd { .. } if !cfg!(feature = "zstd") => Err((
                "multifd-compression",
                "zstd".to_owned(),
                "it is not built in: it takes the feature `zstd`",
            )),
            Compression::Zstd { level } if !(1..=20).contains(&level) => Err((
                "multifd-zstd-level",
                level.to_string(),
                "it goes from 1 to 20",
            )),
            _ => Ok(()),
        }
    }
}

impl Compression {
    /// As packets say it.
    pub(crate) fn on_wire(self) -> multifd::Payload {
        match self {
            Self::None => multifd::Payload::None,
            Self::Zstd { .. } => multifd::Payload::Zstd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_that_is_not_built_in_is_refused_by_the_name_of_its_feature() {
        let multifd = Multifd {
            compression: Compression::Zstd { level: 1 },
            ..Multifd::new(1)
        };
        match (multifd.check(), cfg!(feature = "zstd")) {
            (Ok(()), true) => {}
            (Err((_, _, rule)), false) => assert!(rule.contains("feature `zstd`"), "{rule}"),
            (other, built_in) => panic!("{other:?}, built in: {built_in}"),
        }
        assert!(Multifd::new(1).check().is_ok());
    }
}
