//! How a machine's memory and devices leave and come back: into a file, or into another process.
//!
//! A VMM makes one [`Memory`] with the RAM of a machine, which keeps it, and implements
//! [`machine::Board`] and [`machine::Machine`]. Then
//!
//! * [`snapshot()`] saves it to a file in QEMU's mapped-ram layout, while it runs
//!   ([`SnapshotOptions::background`]) or stopped;
//! * [`restore::RestoreFile`], and [`restore::fill`] into RAM that the VMM made or
//!   [`restore::restore_ram`], bring it back: all at once, by mapping the file, or page by page while it
//!   runs already;
//! * [`source::migrate`] moves it while it runs, over a [`channel`], to where [`destination::receive`]
//!   brings it in: for a [`machine::Recipient`], which the machine is there. Who of both may run is
//!   decided by [`switchover`], a crate of its own, and by nobody else;
//! * [`handover`] passes RAM itself on to another process of the same host, so that only devices move.
//!
//! Its threads are listed in [`threads`], with what a VMM that confines them has to permit.
//!
//! What an operator sees of a running snapshot, and how he cancels it, is a [`Control`]; of a
//! migration, a [`source::Migration`] on one side and a [`destination::Arrival`] on the other.
//!
//! [`prelude`] has what a VMM names, and this crate has those below it as modules, so it is the only one to
//! depend on. `examples/toy.rs` is the smallest VMM, `examples/vmm.rs` one with vCPUs, a device with a
//! thread, RAM of its own, and a migration.
//!
//! Nothing is printed. Errors are enums of their operation, whose text leaves the cause to
//! [`source`](std::error::Error::source): [`with_causes`] has all of it in a line. What goes on is told by the
//! crate `tracing`; a program that logs by the crate `log` adds `tracing = { version = "0.1", features =
//! ["log"] }` to its own dependencies, and has it there, as long as no subscriber of `tracing` is set.
//!
//! Whatever gives guest memory back (a balloon, virtio-mem) does it through [`Memory::discard_at`] or
//! [`Memory::discard`], always: a snapshot that is under way copies it first, and what was given back
//! behind its back would be zeros in the file. What was given back may be `PROT_NONE`, all else may not;
//! `paguro-ram` says more.

#![forbid(unsafe_code)]

mod allowance;
pub mod control;
mod cost;
pub mod destination;
mod error;
mod giving_back;
pub mod handover;
pub mod machine;
mod memory;
pub mod multifd;
pub mod options;
pub mod prelude;
mod progress;
mod reason;
pub mod restore;
mod snapshot;
pub mod source;
mod stream;
pub mod threads;
mod time;

pub use allowance::Allowance;
pub use control::{Control, Status};
pub use error::{SnapshotError, with_causes};
pub use giving_back::DiscardError;
pub use memory::Memory;
pub use options::{ForTests, HugePolicy, Sabotage, SnapshotOptions};
pub use paguro_channel as channel;
pub use paguro_dirty as dirty;
pub use paguro_faults as faults;
pub use paguro_newfile::{FileError, TargetError};
pub use paguro_pager as pager;
pub use paguro_ram as ram;
pub use paguro_switchover as switchover;
pub use paguro_sys as sys;
pub use paguro_wire as wire;
pub use reason::Ended;
pub use snapshot::{SnapshotReport, check_can_freeze, snapshot, snapshot_to_stream};
