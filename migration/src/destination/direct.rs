//! Pages that go straight from a socket to their places.

use std::io::{self, Read};

use paguro_sys::Places;
use paguro_wire::stream::Sink;

use crate::channel::Reader;

/// A reader that may be able to put what comes where it belongs.
pub(super) trait Direct: Read {
    /// Whether it can.
    fn is_direct(&self) -> bool;

    /// As [`Places::receive`], but waits for the first byte. Only if it [can](Self::is_direct).
    fn receive(&mut self, places: &mut Places<'_>, rest: &mut [u8]) -> io::Result<usize>;
}

impl Direct for Reader {
    fn is_direct(&self) -> bool {
        Reader::is_direct(self)
    }

    fn receive(&mut self, places: &mut Places<'_>, rest: &mut [u8]) -> io::Result<usize> {
        Reader::receive(self, places, rest)
    }
}

/// Places that are to be filled, as a stream sees them.
pub(super) struct Landing<'a>(pub(super) Places<'a>);

impl<R: Direct> Sink<R> for Landing<'_> {
    fn left_bytes(&self) -> usize {
        self.0.left_bytes()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.copy_in(bytes);
    }

    fn read(&mut self, reader: &mut R, rest: &mut [u8]) -> io::Result<usize> {
        reader.receive(&mut self.0, rest)
    }
}
