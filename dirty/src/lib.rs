//! Who wrote which page.
//!
//! Two answers: the *freeze* of a background snapshot ([`Freeze`]) holds guest RAM at one moment by
//! synchronous userfaultfd write-protection while the guest runs on, and a page that is about to
//! change is copied first. *Trackers* ([`tracker`]) let everybody write and say afterwards which
//! pages were written, for precopy. How much is written can also be estimated by a sample
//! ([`Sampling`]), which watches nobody.
//!
//! # The life of a freeze
//!
//! 1. *Arming*, the guest runs: chunks are protected in small steps. A write meanwhile releases its
//!    chunk, which is remembered and armed again in rounds, each finer than the one before, until
//!    little is left ([`Freeze::arm`]).
//! 2. *The pause*: with the guest at rest and the readers at a barrier, the little that is left is
//!    armed, and the epoch changes ([`Freeze::hold`]).
//! 3. *Frozen*, the guest runs: a write claims its chunk, copies it to the page buffer, releases
//!    it; the background scan claims, copies and releases the rest ([`Freeze::next`]).
//! 4. *Over*: what is left is released and unregistered in small steps ([`Freeze::end`]).
//!
//! A page is claimed once, by an atomic bit: the unit of a claim is the unit of release, so nobody
//! else ever waits for a copy longer than that copy takes.
//!
//! # What is absent
//!
//! A page that does not exist is zero and is never read. Ranges of 2 MiB in which nothing exists
//! are not even armed: whatever the guest writes there after the pause, the picture of it is zero.
//! All that is needed is to know, *in* the pause, which ranges were touched since the last look;
//! that costs a walk over the upper levels of the page tables and neither page tables nor huge
//! pages of the guest.
//!
//! # What a panic leaves
//!
//! Where answering a fault panics, the freeze has failed, and writers run on ([`FreezeError::Bug`]). They
//! take the same locks for that: what these guard is valid at every step. A sync of a tracker that panics
//! may have taken what it did not tell; whoever asked for it is to give up, and starts anew.

#![forbid(unsafe_code)]

// What tests share names this crate as its users do.
#[cfg(test)]
extern crate self as paguro_dirty;

mod buffer;
mod copied;
mod error;
mod freeze;
mod hooks;
mod moments;
mod options;
mod sampling;
mod sizes;
pub mod tracker;

pub use buffer::Waits;
pub use copied::{Copied, PageBuffer};
pub use error::FreezeError;
pub use freeze::{Freeze, FreezeStats, Standstill};
pub use hooks::Sabotage;
pub use options::{FreezeOptions, HugePolicy};
pub use sampling::{Sampling, SamplingError};
pub use sizes::UNIT_PAGES;
