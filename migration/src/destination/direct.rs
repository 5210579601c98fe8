//! Pages that go straight from a socket to their places.

use std::io::{self, Read};

use paguro_sys::{Mapping, Places};
use paguro_wire::stream::Sink;

use crate::channel::Reader;

/// A reader that may be able to put what comes where it belongs.
pub(super) trait Direct: Read {
    /// Whether it can.
    fn is_direct(&self) -> bool;

    /// As [`Places::receive`], but waits for the first byte. Only if it [can](Self::is_direct).
    fn receive(
        &mut self,
        mapping: &Mapping,
        places: &mut Places,
        rest: &mut [u8],
    ) -> io::Result<usize>;
}

impl Direct for Reader {
    fn is_direct(&self) -> bool {
        Reader::is_direct(self)
    }

    fn receive(
        &mut self,
        mapping: &Mapping,
        places: &mut Places,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        Reader::receive(self, mapping, places, rest)
    }
}

/// Places that are to be filled, as a stream sees them.
pub(super) struct Into<'a> {
    pub(super) mapping: &'a Mapping,
    pub(super) places: Places,
}

impl<R: Direct> Sink<R> for Into<'_> {
    fn left_bytes(&self) -> usize {
        self.places.left_bytes()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.places.copy_in(self.mapping, bytes);
    }

    fn read(&mut self, reader: &mut R, rest: &mut [u8]) -> io::Result<usize> {
        reader.receive(self.mapping, &mut self.places, rest)
    }
}
