//! What a userfaultfd reports.

use linux_raw_sys::general as raw;

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The page is absent.
    Missing,
    /// The page is in the page cache but not mapped.
    Minor,
    /// The page is protected and somebody wants to write.
    WriteProtect,
}

/// A thread waits on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The host virtual address, aligned to the page.
    pub address: usize,
    /// What is in the way.
    pub kind: FaultKind,
    /// Whether the access is a write.
    pub write: bool,
}

/// What a userfaultfd reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits.
    Fault(Fault),
    /// A part was given back (`MADV_DONTNEED`, `MADV_REMOVE`).
    Removed {
        /// First host virtual address.
        start: usize,
        /// The one after the last.
        end: usize,
    },
    /// Something this engine did not ask for.
    Other(u8),
}

/// A message of the kernel (`struct uffd_msg`).
pub(super) fn decode(message: &[u8]) -> Event {
    let word = |at: usize| {
        let bytes: [u8; 8] = message[at..at + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(bytes)
    };
    match u32::from(message[0]) {
        raw::UFFD_EVENT_PAGEFAULT => {
            let flags = word(8);
            let kind = if flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WP) != 0 {
                FaultKind::WriteProtect
            } else if flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_MINOR) != 0 {
                FaultKind::Minor
            } else {
                FaultKind::Missing
            };
            Event::Fault(Fault {
                address: word(16) as usize,
                kind,
                write: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
            })
        }
        raw::UFFD_EVENT_REMOVE => Event::Removed {
            start: word(8) as usize,
            end: word(16) as usize,
        },
        _ => Event::Other(message[0]),
    }
}
