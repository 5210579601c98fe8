//! The built-in guest: what must be in RAM and in the vCPUs for it to run.
//!
//! The program itself is in `program/`, built for the host target by the build script and
//! embedded here as an ELF file. It runs the [workload](paguro_workload) in ring 3, where even
//! a KVM that is itself software runs it natively; no code ever runs in ring 0. So the VMM
//! sets each vCPU up the way an operating system would have left it: [`EntryState`] says how,
//! and [`image()`] lists every byte of RAM that is not zero at the start.
#![forbid(unsafe_code)]

pub mod entry;
pub mod image;
pub mod layout;

pub use entry::{EntryState, Segment, Table};
pub use image::{ImageError, Piece, image};

/// Whether there is a guest program for the architecture that this was built for.
pub const SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// The guest program, an ELF file; empty where there is none.
pub(crate) static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/program.elf"));
