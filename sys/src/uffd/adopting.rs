//! A userfaultfd that somebody else opened.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};

use super::{Features, Uffd, UffdError};

/// What whoever opened a userfaultfd says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The features that it was opened with, or those of them that are known.
    pub features: Features,
    /// Whether faults taken inside the kernel (KVM, read(2)) are *not* delivered. The kernel tells
    /// nobody.
    pub user_mode_only: bool,
}

/// A descriptor cannot be adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The peer's: it is something else.
    #[error("the descriptor is no userfaultfd")]
    NotUserfaultfd,
    /// The peer's: it has not asked for the interface (`UFFDIO_API`), and only it knows what for.
    #[error("the userfaultfd was opened, but nobody has done its handshake")]
    NoHandshake,
    /// The peer's: it says more than it has done.
    #[error("the userfaultfd has features {has:#x} and was said to have {said:#x}")]
    Lacks {
        /// What the kernel says.
        has: u64,
        /// What was said.
        said: u64,
    },
    /// The peer's: it has asked for what nobody here answers.
    #[error("the userfaultfd reports what is not understood here: features {features:#x}")]
    Unanswerable {
        /// Which: forks, moves, or signals instead of faults.
        features: u64,
    },
    /// The host's.
    #[error("cannot look at the userfaultfd")]
    Descriptor(#[source] Errno),
}

impl Uffd {
    /// Takes a userfaultfd over that somebody else has opened and done the handshake of, for his own
    /// memory: all addresses are that process'. It becomes non-blocking and close-on-exec; the first
    /// also for its sender, who shares it.
    ///
    /// That it is a userfaultfd and that there was a handshake is checked with any kernel. Which
    /// features it has is checked where `/proc` is mounted, and then [`Uffd::features`] are the
    /// kernel's; elsewhere what was said is believed. Whether only faults in user mode are delivered
    /// cannot be checked at all; nor which memory is registered, nor whether the process lives.
    ///
    /// # Errors
    ///
    /// [`AdoptError`].
    pub fn adopt(fd: OwnedFd, said: Handshake) -> Result<Self, AdoptError> {
        let mut uffd = Self {
            fd,
            features: said.features,
            user_mode_only: said.user_mode_only,
        };
        uffd.check()?;
        if let Some(has) = features_of(&uffd.fd) {
            uffd.features = has - INITIALIZED;
        }
        if !uffd.features.contains(said.features) {
            return Err(AdoptError::Lacks {
                has: uffd.features.bits(),
                said: said.features.bits(),
            });
        }
        let unanswerable = uffd.features & UNANSWERABLE;
        if !unanswerable.is_empty() {
            return Err(AdoptError::Unanswerable {
                features: unanswerable.bits(),
            });
        }
        uffd.take_over().map_err(AdoptError::Descriptor)?;
        Ok(uffd)
    }

    /// Wakes at an address where nobody waits, or looks again: only a userfaultfd takes the call, and
    /// only after its handshake.
    fn check(&self) -> Result<(), AdoptError> {
        // Inside the memory of every kind of process, and above where nothing may be mapped.
        const ADDRESS: usize = 1 << 30;
        match self.wake(ADDRESS..ADDRESS + crate::page_size()) {
            Ok(()) => Ok(()),
            Err(UffdError::Other {
                errno: Errno::INVAL,
                ..
            }) => Err(AdoptError::NoHandshake),
            Err(_) => Err(AdoptError::NotUserfaultfd),
        }
    }

    fn take_over(&self) -> Result<(), Errno> {
        rustix::io::fcntl_setfd(self.as_fd(), FdFlags::CLOEXEC)?;
        let flags = rustix::fs::fcntl_getfl(self.as_fd())?;
        rustix::fs::fcntl_setfl(self.as_fd(), flags | OFlags::NONBLOCK)
    }
}

/// The kernel's note that there was a handshake.
const INITIALIZED: Features = Features::from_bits_retain(1 << 31);

/// What nobody here has an answer to. Of a fork the event is even a descriptor that nobody would close.
const UNANSWERABLE: Features = Features::EVENT_FORK
    .union(Features::EVENT_REMAP)
    .union(Features::SIGBUS);

/// The features of a descriptor, as the kernel shows them: `API:\tVERSION:FEATURES:KNOWN`, in
/// hexadecimal. Nothing of them before the handshake; `None` where it does not show them.
fn features_of(fd: &OwnedFd) -> Option<Features> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    parse(&std::fs::read_to_string(path).ok()?)
}

fn parse(fdinfo: &str) -> Option<Features> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("API:"))?;
    let mut parts = line.trim().split(':');
    let version = u64::from_str_radix(parts.next()?, 16).ok()?;
    let features = u64::from_str_radix(parts.next()?, 16).ok()?;
    (version == u64::from(raw::UFFD_API)).then_some(Features::from_bits_retain(features))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_is_read() {
        let shown = "pos:\t0\nflags:\t02004002\npending:\t0\nAPI:\taa:80001009:1ffff\n";
        assert_eq!(parse(shown), Some(Features::from_bits_retain(0x8000_1009)));
        assert_eq!(parse("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(parse("API:\tab:1:1\n"), None);
        assert_eq!(parse("API:\taa:xyz\n"), None);
    }
}
