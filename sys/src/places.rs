//! Bytes between a socket and places in a mapping, with nothing in between.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Mapping;

/// Ranges of a mapping, in the order in which a socket fills them or is filled from them.
///
/// A stream gives up its bytes in pieces: what is done is taken off the front.
#[derive(Debug)]
pub struct Places {
    /// Offset and length in bytes; those from `first` to `end` are left.
    ranges: [(usize, usize); Places::MOST],
    first: usize,
    end: usize,
    left_bytes: usize,
}

impl Places {
    /// So many ranges fit.
    pub const MOST: usize = 128;

    /// None yet.
    pub const fn new() -> Self {
        Self {
            ranges: [(0, 0); Self::MOST],
            first: 0,
            end: 0,
            left_bytes: 0,
        }
    }

    /// Adds a range; one that follows the last makes that longer.
    ///
    /// # Panics
    ///
    /// If there are [`MOST`](Self::MOST) already: a bug of the caller.
    pub fn push(&mut self, offset: usize, len: usize) {
        self.left_bytes += len;
        if let Some((at, before)) = self.ranges[self.first..self.end].last_mut()
            && *at + *before == offset
        {
            *before += len;
            return;
        }
        self.ranges[self.end] = (offset, len);
        self.end += 1;
    }

    /// Bytes that are left.
    pub fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// The first `bytes` bytes are done.
    fn advance(&mut self, mut bytes: usize) {
        self.left_bytes -= bytes;
        while bytes > 0 {
            let (offset, len) = &mut self.ranges[self.first];
            let here = bytes.min(*len);
            (*offset, *len) = (*offset + here, *len - here);
            bytes -= here;
            self.first += usize::from(*len == 0);
        }
    }

    /// Copies `bytes`, no more than are left, to where they belong.
    ///
    /// # Panics
    ///
    /// If a range is outside the mapping, or `bytes` are too many: a bug of the caller.
    pub fn copy_in(&mut self, mapping: &Mapping, mut bytes: &[u8]) {
        assert!(bytes.len() <= self.left_bytes);
        while !bytes.is_empty() {
            let (offset, len) = self.ranges[self.first];
            let (here, rest) = bytes.split_at(len.min(bytes.len()));
            mapping.copy_in(offset, here);
            self.advance(here.len());
            bytes = rest;
        }
    }

    /// Receives what there is, without waiting; when all places are full, what comes behind goes to
    /// `rest`. Bytes received, in both.
    ///
    /// # Errors
    ///
    /// The socket's; `WouldBlock` if there is nothing.
    ///
    /// # Panics
    ///
    /// If a range is outside the mapping: a bug of the caller.
    pub fn receive(
        &mut self,
        mapping: &Mapping,
        socket: BorrowedFd<'_>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        self.add_to(&mut vectors, mapping);
        vectors.add(rest.as_mut_ptr(), rest.len());
        let mut message = vectors.message();
        // SAFETY: all that the message points to is alive until the call returns: the vectors, the
        // ranges (inside the mapping, which is only written to as raw memory), and `rest`, which is
        // ours alone.
        let got =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        self.advance(got.min(self.left_bytes));
        Ok(got)
    }

    /// Sends what goes of `head` and, behind it, of the places, without waiting; what went is taken
    /// off both. Bytes sent. What is written to the places meanwhile may go in part.
    ///
    /// # Errors
    ///
    /// The socket's; `WouldBlock` if nothing goes. A peer that is gone is an error, never a signal.
    ///
    /// # Panics
    ///
    /// As [`receive`](Self::receive).
    pub fn send(
        &mut self,
        mapping: &Mapping,
        socket: BorrowedFd<'_>,
        head: &mut &[u8],
    ) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        vectors.add(head.as_ptr().cast_mut(), head.len());
        self.add_to(&mut vectors, mapping);
        let message = vectors.message();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `receive`; sending only reads.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        let of_head = sent.min(head.len());
        *head = &head[of_head..];
        self.advance(sent - of_head);
        Ok(sent)
    }

    fn add_to(&self, vectors: &mut Vectors, mapping: &Mapping) {
        for &(offset, len) in &self.ranges[self.first..self.end] {
            mapping.check(offset, len);
            vectors.add(mapping.as_ptr().wrapping_add(offset), len);
        }
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

/// As the kernel wants them: all places, and one more.
struct Vectors {
    all: [libc::iovec; Places::MOST + 1],
    count: usize,
}

impl Vectors {
    fn new() -> Self {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            all: [none; Places::MOST + 1],
            count: 0,
        }
    }

    fn add(&mut self, base: *mut u8, len: usize) {
        if len > 0 {
            self.all[self.count] = libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            };
            self.count += 1;
        }
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros is a message without an address, without vectors and without extras.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = self.all.as_mut_ptr();
        message.msg_iovlen = self.count as _;
        message
    }
}
