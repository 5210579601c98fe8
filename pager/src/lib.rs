//! Serves missing pages of guest RAM from a page source.
//!
//! A [`Pager`] fills RAM blocks that are registered for missing pages: a page that somebody waits
//! for first (with its neighbours), all others in the background, as fast as the caller allows.
//! It knows neither files nor networks: pages come from a [`PageSource`].
//!
//! *Arrived* is a set of its own, apart from what is present: a page that the guest gave back
//! after it arrived is absent again, and a fault on it is answered with zeros, never from the
//! source. Pages that the source has nothing for are zero.
//!
//! A source may fail and come back. What somebody waits for is tried again for a while
//! ([`PagerOptions::retry`]), then the owner is told, and may have them wait on until all is tried
//! anew ([`Pager::renew`]). What nobody waits for is tried again at leisure, for ever, and costs
//! nobody anything. What is damaged or changed is not tried again.
//!
//! Reader threads of `paguro-faults` only queue what is wanted; reading happens in the pager's own
//! threads, so that a slow source never holds up a pause.

#![forbid(unsafe_code)]

mod pager;
mod patience;
mod pool;
mod source;

pub use pager::{Failure, Pager, PagerOptions, Prefetch, Waiters};
pub use patience::patiently;
pub use source::{PageSource, SourceError};
