//! Machines of the program paguro in processes of their own, driven and watched from outside.
//!
//! Tests, `paguro demo`, `paguro soak` and `paguro bench` share this. A machine is a child process, of
//! whatever file the program is in, spoken to over its control socket. What is said about it is never
//! its own word: the guest's progress is read from the memory that it shares with the host and timed by
//! this process's clock, and its RAM is compared with the workload's arithmetic by `paguro-oracle`, in
//! the file and through `/proc/PID/mem`.
//!
//! Nothing of the engine is used here, and of the program its command line and its control socket only.
//! Errors are for whoever reads them, with all that the machine said last: `anyhow`'s.
//!
//! | room | for |
//! |---|---|
//! | [`process`] | a process of the program, from its start to its end |
//! | [`machine`] | a machine as such a process, and what can be asked of it |
//! | [`options`] | how such a machine is to be |
//! | [`progress`] | the counters that the guest posts |
//! | [`ruler`] | the outside clock: times without progress, rates, time lost |
//! | [`watch`] | whether a guest runs in two places |
//! | [`check`] | every page against the oracle |
//! | [`certificates`] | for channels that are encrypted |
//! | [`smaps`] | what the kernel says about a child's memory |
//! | [`host`] | what this host has to offer: KVM, 2 MiB pages, room for files |
//! | [`console`] | who follows a long work, and may end it |

#![forbid(unsafe_code)]

pub mod certificates;
pub mod check;
pub mod console;
pub mod host;
pub mod machine;
pub mod options;
pub mod process;
pub mod progress;
pub mod ruler;
pub mod smaps;
pub mod watch;

pub use check::{Tally, check_file};
pub use console::Console;
pub use host::HugePages;
pub use machine::{Channel, Machine};
pub use options::{
    Accel, Backing, Choice, DmaConfig, MachineOptions, Pages, Prefetch, RestoreMode,
};
pub use progress::ProgressFile;
pub use ruler::{Record, Ruler, Window};
pub use watch::Watch;

/// The host's CLOCK_MONOTONIC, in nanoseconds: the clock of all stamps here and in the engine's
/// reports.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
