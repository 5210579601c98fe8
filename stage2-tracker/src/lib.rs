//! The dirty log of Arm stage-2 tables as a [`Tracker`](paguro_dirty::tracker::Tracker) of the engine.
//!
//! `paguro-stage2` is for hypervisors without `std` and knows nothing of RAM blocks. This crate puts the
//! two together: [`RamLog`] makes each RAM block a region of the log, [`Stage2Tracker`] is what the
//! engine asks.
//!
//! | the engine | the tables |
//! |---|---|
//! | `start` | [`Stage2::start_logging`](paguro_stage2::Stage2::start_logging) of the whole VM: blocks are split if that is to be done in advance, everything is write-protected, TLBs are invalidated once |
//! | `sync` | [`peek`](paguro_stage2::Stage2::peek): bits are read, stay set, and their pages stay writable |
//! | `clear` | [`collect`](paguro_stage2::Stage2::collect) of the chunk, masked by what a sync has reported: bits are taken, pages protected, TLBs invalidated, and only then it returns |
//! | `stop` | [`stop_logging`](paguro_stage2::Stage2::stop_logging): permissions back, blocks merged again |
//!
//! So a page is protected again just before it is sent, and what the guest writes over and over between
//! two syncs costs it nothing. With [`InitialLog::AllDirty`](paguro_stage2::InitialLog::AllDirty) the
//! start protects nothing at all: the first sync reports everything, and the first `clear` of each
//! chunk protects it.
//!
//! # For a hypervisor
//!
//! Its tables must be reachable from where the engine runs, through [`Cpu`](paguro_stage2::Cpu) and
//! [`TableMemory`](paguro_stage2::TableMemory): the engine in the hypervisor itself, or in a process that
//! may call into it. It makes the tables with [`Bitmap`] as storage, maps RAM at the blocks' guest
//! addresses, lets its vCPUs call `handle_fault`, and hands them to [`RamLog::new`]. All regions of
//! these tables are the tracker's.
//!
//! ```
//! use std::sync::Arc;
//! use paguro_dirty::tracker::Tracker;
//! use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock};
//! use paguro_stage2::sim::{Cpus, SoftCpu};
//! use paguro_stage2::{Access, Config, LogOptions};
//! use paguro_stage2_tracker::{Stage2Tracker, soft};
//!
//! let block = BlockConfig {
//!     id: "ram".to_owned(),
//!     guest_address: 0x4000_0000,
//!     bytes: 4 << 20,
//!     backing: Backing::Anonymous,
//!     pages: PageKind::Small,
//! };
//! let ram = GuestRam::new(vec![RamBlock::new(block)?]);
//! // Tables and CPUs in software; a hypervisor has its own.
//! let log = Arc::new(soft::log(&ram, Config::new(32), Cpus::new(1), 1)?);
//! let tracker = Stage2Tracker::new(log.clone(), LogOptions::default());
//! tracker.start()?;
//!
//! // A vCPU writes.
//! let mut vcpu = SoftCpu::new(log.tables(), 0);
//! let write = |pa| ram.blocks()[0].mapping().copy_in((pa - soft::OUTPUT - 0x4000_0000) as usize, &[1]);
//! vcpu.access(0x4000_7000, Access::Write, write).unwrap();
//!
//! // The engine asks, takes the pages from its set, protects them, and reads them.
//! let dirty = [PageSet::new(1024)];
//! assert_eq!(tracker.sync(&dirty)?, 1);
//! assert!(dirty[0].remove(7));
//! tracker.clear(0, 0..64)?;
//! assert_eq!(tracker.sync(&dirty)?, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod log;
pub mod soft;
mod tracker;

pub use log::{Bitmap, RamLog, RamLogError};
pub use tracker::Stage2Tracker;
