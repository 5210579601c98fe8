//! What stands for zstd where it is not built in: who asks for it is refused, and nothing is packed.

use std::io;

/// There is none.
pub(crate) enum Packer {}

/// There is none.
pub(crate) enum Unpacker {}

/// There is none, as nothing is unpacked.
#[derive(Debug)]
pub(crate) enum CodecError {}

impl Packer {
    pub(crate) fn new(_level: u8) -> io::Result<Self> {
        Err(not_built_in())
    }

    pub(crate) fn pack(&mut self, _pages: &[u8]) -> io::Result<&[u8]> {
        match *self {}
    }
}

impl Unpacker {
    pub(crate) fn new() -> io::Result<Self> {
        Err(not_built_in())
    }

    pub(crate) fn begin(&mut self, _pages: usize) {
        match *self {}
    }

    pub(crate) fn feed(&mut self, _piece: &[u8]) -> Result<(), CodecError> {
        match *self {}
    }

    pub(crate) fn end(&mut self) -> Result<&[u8], CodecError> {
        match *self {}
    }
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

fn not_built_in() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "zstd is not built in: it takes the feature `zstd`",
    )
}
