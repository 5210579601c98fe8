//! A machine in software: CPUs that walk the tables as hardware does, and keep what they found in TLBs.
//!
//! Threads become guest CPUs with it on any host. It is stricter than most hardware: a TLB keeps an
//! entry until it is invalidated or pushed out, contiguous sets are cached as one, an invalidation that
//! names a level reaches entries of that level only, two entries for one address that do not agree stop
//! the program, and so does a walk into a table that was given back. [`Cpus::strict`] holds whoever
//! changes the tables to the rules of the architecture, whatever the TLBs happen to hold.
//!
//! An access is one instruction: nobody's invalidation completes while it is between translation and
//! memory. That is what the architecture's `dsb` after a `tlbi` promises.

mod arena;
mod cpus;
mod gate;
mod rules;

pub use arena::Arena;
pub use cpus::{Cpus, SoftCpu, Stopped};
pub use gate::Gate;
