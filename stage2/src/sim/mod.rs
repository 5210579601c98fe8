//! A machine in software: CPUs that walk the tables as hardware does, and keep what they found in TLBs.
//!
//! Threads become guest CPUs with it on any host. It is stricter than most hardware: a TLB keeps an
//! entry until it is invalidated or pushed out, contiguous sets are cached as one, two entries for one
//! address that differ in size stop the program (a break-before-make was forgotten), and so does a walk
//! into a table that was given back.
//!
//! An access is one instruction: nobody's invalidation completes while it is between translation and
//! memory. That is what the architecture's `dsb` after a `tlbi` promises.

mod arena;
mod cpus;

pub use arena::Arena;
pub use cpus::{Cpus, SoftCpu, Stopped};
