//! Bytes between a socket and places in a mapping, with nothing in between.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Mapping;

/// Ranges of a mapping, in the order in which a socket fills them or is filled from them.
///
/// A stream gives up its bytes in pieces: what is done is taken off the front.
#[derive(Debug)]
pub struct Places<'a> {
    mapping: &'a Mapping,
    /// Offset and length in bytes; those from `first` to `end` are left.
    ranges: [(usize, usize); MOST],
    first: usize,
    end: usize,
    left_bytes: usize,
}

const MOST: usize = Places::MOST;

impl<'a> Places<'a> {
    /// So many ranges fit, those that are done included.
    pub const MOST: usize = 128;

    /// None yet.
    pub const fn new(mapping: &'a Mapping) -> Self {
        Self {
            mapping,
            ranges: [(0, 0); MOST],
            first: 0,
            end: 0,
            left_bytes: 0,
        }
    }

    /// Adds a range; one that follows the last makes that longer.
    ///
    /// # Panics
    ///
    /// If it is outside the mapping, or if there are [`MOST`](Self::MOST) already: a bug of the caller.
    pub fn push(&mut self, offset: usize, len: usize) {
        self.mapping.check(offset, len);
        if len == 0 {
            return;
        }
        self.left_bytes += len;
        if let Some((at, before)) = self.ranges[self.first..self.end].last_mut()
            && *at + *before == offset
        {
            *before += len;
            return;
        }
        assert!(self.end < MOST, "more than {MOST} places");
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
    /// If `bytes` are too many: a bug of the caller.
    pub fn copy_in(&mut self, mut bytes: &[u8]) {
        assert!(bytes.len() <= self.left_bytes);
        while !bytes.is_empty() {
            let (offset, len) = self.ranges[self.first];
            let (here, rest) = bytes.split_at(len.min(bytes.len()));
            self.mapping.copy_in(offset, here);
            self.advance(here.len());
            bytes = rest;
        }
    }

    /// Receives what there is, without waiting; when all places are full, what comes behind goes to
    /// `rest`. Bytes received, in both; 0 is the end (or that nothing was left to receive).
    ///
    /// # Errors
    ///
    /// The socket's; `WouldBlock` if there is nothing. `EFAULT` if memory could not be made present.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, rest: &mut [u8]) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        self.add_to(&mut vectors);
        vectors.add(rest.as_mut_ptr(), rest.len());
        let mut message = vectors.message();
        // SAFETY: all that the message points to is alive until the call returns: the vectors, the
        // ranges (inside the mapping, as `push` saw to, and only written to as raw memory), and `rest`, which is
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
    /// `EFAULT` if the kernel cannot read a place: [`touch`](Self::touch) says more.
    pub fn send(&mut self, socket: BorrowedFd<'_>, head: &mut &[u8]) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        vectors.add(head.as_ptr().cast_mut(), head.len());
        self.add_to(&mut vectors);
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

    /// Reads one byte of each page that is left, as a program does and not as the kernel does: a page
    /// that a pager serves to programs only comes, and memory that is lost is a `SIGBUS`.
    pub fn touch(&self) {
        for &(offset, len) in &self.ranges[self.first..self.end] {
            self.mapping.touch(offset, len);
        }
    }

    fn add_to(&self, vectors: &mut Vectors) {
        for &(offset, len) in &self.ranges[self.first..self.end] {
            vectors.add(self.mapping.as_ptr().wrapping_add(offset), len);
        }
    }
}

/// As the kernel wants them: all places, and one more.
struct Vectors {
    all: [libc::iovec; MOST + 1],
    count: usize,
}

impl Vectors {
    fn new() -> Self {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            all: [none; MOST + 1],
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
