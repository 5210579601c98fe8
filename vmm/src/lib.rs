//! A small KVM machine, and a KVM-less twin, that the engine can move.
//!
//! The engine knows a machine only through [`paguro_migration::machine::Machine`]; [`Vm`] is the
//! machine that comes with it. It exists so that there is something real to move: vCPUs with
//! all their state, an in-kernel interrupt controller and timer, a serial line, and a device
//! whose threads write guest RAM behind the vCPUs' backs.
//!
//! | module | says |
//! |---|---|
//! | [`config`] | what a machine is made of, and its RAM blocks |
//! | [`state`] | the states of a machine, its end, and the events between |
//! | `control` | who may run: `stop`, `cont`, held pauses, the end, and who is told |
//! | `gate` | how one thread is let through or held |
//! | `vm` | the machine itself |
//! | `kvm` | vCPUs through `/dev/kvm` |
//! | `threads` | vCPUs as threads of this process that run the same workload |
//! | `dma` | the device `x-dma` |
//! | `devices` | which device sections a machine has; all others are refused by name |
//!
//! # Running and pausing
//!
//! Whether a machine runs is decided in one place (`control`) from three things: whether it
//! shall (`stop`, `cont`), how many pauses are held, and whether it has failed or ended. Threads
//! obey a gate of their own, so whoever finds the machine broken (a vCPU, a pager, a SIGBUS
//! bell) can close all gates without waiting for anybody. Only those who *ask* for rest wait for
//! it, vCPUs first, then devices, and they hold no lock that a thread behind a page fault needs.
//!
//! # What a picture contains
//!
//! Sections `paguro/machine`, then `paguro/cpu` (one a vCPU), `paguro/irqchip`, `paguro/clock`
//! and `paguro/serial`, or `paguro/threads` instead of these four, then `paguro/x-dma` if there
//! is one. Of a thread that plays a vCPU there is nothing to save: its counters are in guest RAM,
//! and write number *n* is a function of *n*.

#![warn(missing_docs)]

mod caught;
pub mod config;
mod control;
mod costs;
mod devices;
mod dma;
mod error;
mod gate;
#[cfg(target_arch = "x86_64")]
mod kvm;
mod machine;
mod progress;
mod serial;
pub mod state;
mod threads;
mod throttle;
mod vm;

pub use config::{
    Accel, Clock, Config, DmaConfig, Serial, Stage2Config, Stage2Sabotage, ram_layout,
};
pub use devices::{Described, describe};
pub use error::VmError;
pub use state::{Ended, Event, RunState, ShutdownCause, StateError};
pub use vm::{DmaCounters, Timings, Vm};

/// The machine's name in CONFIGURATION. It changes when device sections do.
pub const MACHINE_NAME: &str = "paguro-1";
