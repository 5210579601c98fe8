//! The one room with `unsafe`: what the engine asks of the kernel, as safe types.
//!
//! Four things live here and nowhere else in the engine: the *mappings* that back guest RAM
//! ([`Mapping`]), the *userfaultfd* that watches them ([`Uffd`]), the *queries* that tell which
//! pages exist ([`presence`]), and what KVM knows of written pages ([`kvm`]). Every other crate
//! above this one, but the accelerators of `vmm`, forbids `unsafe`. Besides, what all of them need
//! of the host: a thread that writes where others must not wait ([`Spool`]).
//!
//! What the kernel of this host can do is probed once ([`Host::probe`]) and then only looked up.
//! What is opened by its path can be opened before a process locks itself in ([`Resources`]).
//! Every fallback can be forced through [`Fallbacks`], so that a test on a new kernel runs the
//! path of an old one. Nothing here reads the environment: the program fills [`Fallbacks`].
//!
//! Memory of a running guest is not memory in the sense of the language: other CPUs change it at
//! any time. It is therefore only ever touched through raw copies ([`Mapping::copy_out`],
//! [`Mapping::is_zero`]), never through a reference.

mod arena;
mod bus_error;
mod children;
mod held;
mod host;
mod inherited;
pub mod kvm;
mod limits;
mod mapping;
mod memory;
mod places;
pub mod presence;
mod rate;
mod reserve;
mod resources;
mod signals;
mod smaps;
mod spool;
mod thread;
mod thread_start;
mod uffd;
mod vsock;
mod zeros;

pub use arena::Unit;
pub use bus_error::{BusErrors, catch_bus_errors, wait_at_bus_errors};
pub use children::keep_status_of_children;
pub use held::{ResourceError, Resources};
pub use host::{Fallbacks, Host, Named, Userfault};
pub use inherited::{is_inherited_socket, take_inherited};
pub use limits::{Bound, Free, Limits};
pub use mapping::{Advice, ForeignError, MapError, Mapping};
pub use places::Places;
pub use rate::RateLimit;
pub use reserve::Reserving;
pub use signals::is_ignored;
pub use spool::{Spool, SpoolCounts};
pub use thread::{NewThread, Pacer, Raised, boost_timer, raise_priority};
pub use thread_start::{HookTaken, on_thread_start};
pub use uffd::{
    AdoptError, Event, Fault, FaultKind, Features, Handshake, Placed, RegisterMode, Uffd,
    UffdError, Waiting,
};
pub use vsock::VsockAddr;
pub use zeros::Zeros;

/// Bytes in a page of this host (4096 on x86-64), asked once.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Bytes in a huge page as far as this engine uses them: 2 MiB.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;
