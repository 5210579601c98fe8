//! What the built-in guest writes, as arithmetic.
//!
//! A writer (a vCPU, or a device whose thread fills guest RAM) makes writes numbered from 0.
//! Which page write `n` goes to and which words it stores are pure functions of the
//! [`Params`], the writer and `n`; and the last write to any page before `n` is known without
//! replaying anything. So the counters found in a picture of RAM say what every page of that
//! picture must hold, which makes this crate an oracle for whoever moves the RAM.
//!
//! It is `no_std` and has no dependencies, because the guest program, the threads of
//! `--accel threads`, the tests and the checker all run this same code.
//!
//! | module | says |
//! |---|---|
//! | [`spec`] | the text form of a workload, `pattern=zipf,rate=50000` |
//! | [`size`] | sizes as text, `64M` |
//! | [`params`] | the block at a fixed place in RAM that describes the running workload |
//! | [`area`] | which guest-physical pages belong to the workload, and to which writer |
//! | [`stream`] | the pages a writer writes, forward and backward |
//! | [`content`] | the words it stores |
//! | [`mailbox`] | the counters in RAM, and which of their states a pause can show |
//! | [`progress`] | the counters outside RAM, by which the host sees the guest's gaps |
//! | [`mod@run`] | the loop that does it, over any memory |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod area;
pub mod content;
pub mod layout;
pub mod mailbox;
mod mix;
mod pace;
pub mod params;
mod permutation;
pub mod progress;
pub mod run;
pub mod size;
pub mod spec;
pub mod stream;

pub use area::{Area, Segment, Writer};
pub use content::{Content, word};
pub use params::{Params, ParamsError, Setup};
pub use run::{Cpu, End, run};
pub use size::{Size, human};
pub use spec::{Bytes, Op, Pattern, Spec, SpecError};
pub use stream::Stream;
