//! Serves missing pages of guest RAM from a page source.
//!
//! A [`Pager`] fills RAM blocks that are registered for missing pages: a page that somebody waits
//! for first (with its neighbours), all others in the background, as fast as the caller allows.
//! It knows neither files nor networks: pages come from a [`PageSource`].
//!
//! What is fetched lands where all pages do ([`Arrivals`](paguro_faults::Arrivals)), which also answers
//! faults on what has arrived already: a page that the guest gave back since is absent again, and
//! zero, and is never fetched again. Pages that the source has nothing for are zero.
//!
//! | file | for |
//! |---|---|
//! | `pager` | what it is asked and told |
//! | `pool` | the queue of what somebody waits for |
//! | `urgent` | the threads that serve it, and what if a page cannot be had |
//! | `fill` | the thread of all other pages |
//! | `fetch` | reading, and landing |
//! | `trouble`, `patience` | what cannot be had for now |
//!
//! A source may fail and come back. What somebody waits for is tried again for a while
//! ([`PagerOptions::retry`]), then the owner is told, and may have them wait on until all is tried
//! anew ([`Pager::renew`]). What nobody waits for is tried again at leisure, for ever, and costs
//! nobody anything. What is damaged or changed is not tried again.
//!
//! Reader threads of `paguro-faults` only queue what is wanted; reading happens in the pager's own
//! threads, so that a slow source never holds up a pause.
//!
//! A source, or an owner who is told, may panic. What the locks here guard is valid at every step, and a
//! guest may be waiting: whoever comes next goes on with it.

#![forbid(unsafe_code)]

mod fetch;
mod fill;
mod pager;
mod patience;
mod pool;
mod source;
mod trouble;
mod urgent;

pub use pager::{Failure, Pager, PagerOptions, Prefetch, Waiters};
pub use patience::patiently;
pub use source::{PageSource, SourceError};
