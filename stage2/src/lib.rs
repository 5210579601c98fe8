//! Write-protection and dirty logging on Arm stage-2 tables, for hypervisors.
//!
//! To migrate a running VM one must know which pages it writes. Linux learns it from the tables that
//! translate guest physical addresses (stage 2): write permission is taken away, the first write to a
//! page faults, the fault is noted. This crate is that machinery for hypervisors written in Rust:
//! tables of VMSAv8-64 with the 4 KiB granule, their write-protection, splitting and merging while the
//! guest runs, and the log. `no_std`, no dependency, no allocation but of tables.
//!
#![cfg_attr(not(feature = "shuttle"), doc = "```")]
#![cfg_attr(feature = "shuttle", doc = "```ignore")]
//! use paguro_stage2::sim::{Arena, Cpus, SoftCpu};
//! use paguro_stage2::*;
//!
//! // `Arena` and `Cpus` stand for the hypervisor's own allocator and TLB operations.
//! let tables = Stage2::new(Config::new(40), Arena::new(64), Cpus::new(1))?;
//! let ram = 0x4000_0000..0x4040_0000;
//! tables.map(ram.clone(), 0x8000_0000, Attributes::RAM)?;
//!
//! // Migration starts: the two 2 MiB blocks become read-only, to be split on the first write.
//! let pages = (ram.end - ram.start) / PAGE_SIZE;
//! let bitmap: Vec<AtomicU64> = (0..words_for(pages)).map(|_| AtomicU64::new(0)).collect();
//! let region = tables.add_region(ram.clone(), bitmap)?;
//! tables.start_logging(Scope::All, LogOptions::default())?;
//!
//! // A vCPU writes. On hardware, its exit handler calls `Stage2::handle_fault`.
//! let mut vcpu = SoftCpu::new(&tables, 0);
//! vcpu.access(ram.start + 7 * PAGE_SIZE, Access::Write, |_pa| ()).unwrap();
//!
//! // A round of precopy: take the bits, then read the pages.
//! let mut dirty = [0; 16];
//! tables.collect(region, 0, None, &mut dirty)?;
//! assert_eq!(dirty[0], 1 << 7);
//!
//! tables.stop_logging(Scope::All, true)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What the caller provides
//!
//! - **Tables**, through [`TableMemory`]. It may fail; every operation says what is left then.
//! - **TLB invalidation and barriers**, through [`Cpu`]. `el2::El2` (feature `el2`) is a complete one
//!   for a hypervisor at EL2; `el2::read_syndrome` tells which page faulted. The crate decides when to
//!   invalidate, `Cpu` how.
//! - **Bitmaps**: one bit a page of each logged region, anything that derefs to `[AtomicU64]`.
//! - **No lock.** The table lock is inside: vCPUs that give a page its permission back share it,
//!   whatever changes the tree has it alone, all in the order of their coming. Do not call into the
//!   crate from an interrupt handler that may have interrupted a call into it on the same CPU; and do
//!   not let a CPU that holds the lock be descheduled for long (mask preemption as for any spin lock).
//!
//! # Who may run when
//!
//! vCPUs may run through everything here, except dropping the [`Stage2`]. [`handle_fault`] and
//! [`map_page`] are called by the vCPU that faulted, on its own CPU, with a [`TableCache`] of its own;
//! the cache is filled before the lock is taken. Passes walk in chunks and give the lock up as soon as
//! somebody waits for it (amid splits, merges and unmapping, where that costs an invalidation, after up
//! to 32 chunks), or [`Cpu::should_yield`] says so; then they walk again from the root. Two passes at
//! once answer `Busy`. [`unmap`], [`map`] and faults go on during a pass.
//!
//! A fault handler is this, in full:
//!
//! ```ignore
//! let fault = match el2::read_syndrome() {
//!     Syndrome::Fault(fault) => fault,
//!     Syndrome::Enter => return,                                    // enter the guest again
//!     Syndrome::Other => return other_exit(),
//! };
//! match vm.tables.handle_fault(&fault, &mut vcpu.cache) {
//!     Resolution::Logged { .. } | Resolution::Retry => {}           // enter the guest again
//!     Resolution::Unmapped => match vm.memory_slot(fault.ipa) {     // RAM not mapped yet, or a device
//!         Some((pa, attributes)) => _ = vm.tables.map_page(&mut vcpu.cache, page, pa, attributes)?,
//!         None => vcpu.emulate_device(&fault),
//!     },
//!     Resolution::Denied => vcpu.inject_abort(&fault),
//!     Resolution::Protected => vm.freeze.release(fault.ipa),        // only if you use `protect`
//! }
//! ```
//!
//! # What holds
//!
//! - Protecting clears one bit, S2AP\[1\]. All other bits stay; what the mapper granted is kept in a
//!   software bit (58), so a read-only page is never made writable. [`protect`] notes what it took in
//!   another (57): neither a log nor the end of one gives that back.
//! - No bit is handed out, and none of its pages should be read, before the invalidation of that pass
//!   is complete on all CPUs. It is one invalidation a pass, by VMID; splitting adds one for up to 32
//!   blocks, none with FEAT_BBM level 2.
//! - Starting a log can fail only before anything is protected.
//! - While a region is logged it gets no new block, and what is mapped in it counts as dirty.
//! - If a block must be split on a write and there is no table, the whole block is marked dirty and
//!   made writable: more is sent, nothing is lost, and the guest runs.
//! - The contiguous hint is dropped, for whole sets and with break-before-make, where entries of a set
//!   come to differ.
//!
//! # Compared with Linux
//!
//! The same idea as KVM/arm64 since 2015, with decisions of its own; the README has the table.
//!
//! # Why not on `aarch64-paging`
//!
//! Layout and walking are the smaller part of this. The rest would not have fitted: the root cannot be
//! concatenated, so 40-bit inputs would need another start level than the hardware is told; entries are
//! swapped, not compared and exchanged, so dirty state that the hardware sets would be lost; its
//! allocator cannot fail, and failing is half of what is specified here; each changed leaf is
//! invalidated on its own; and a live block is either refused or exchanged without a break. What
//! remained was its bit definitions.
//!
//! [`handle_fault`]: Stage2::handle_fault
//! [`map_page`]: Stage2::map_page
//! [`map`]: Stage2::map
//! [`unmap`]: Stage2::unmap
//! [`protect`]: Stage2::protect
#![cfg_attr(not(any(test, feature = "sim")), no_std)]

mod batch;
mod bitmap;
mod collect;
mod cpu;
mod descriptor;
#[cfg(all(feature = "el2", target_arch = "aarch64"))]
pub mod el2;
pub mod errata;
mod error;
mod fault;
mod layout;
mod lock;
mod log;
mod map;
mod protect;
mod region;
mod shape;
#[cfg(feature = "sim")]
pub mod sim;
mod stage2;
mod sync;
mod table;
mod walk;

pub use bitmap::words_for;
pub use cpu::Cpu;
pub use descriptor::{Attributes, Execute, MemoryType, Shareability};
pub use error::{ConfigError, LogError, RangeError, TableError};
pub use fault::{Access, Fault, FaultKind, Resolution, Syndrome};
pub use layout::{BlockChange, Config, PAGE_SIZE};
pub use log::{InitialLog, LogOptions, Scope, SplitPolicy};
pub use region::{LogMode, MAX_REGIONS, RegionId};
pub use stage2::{Leaf, Lookup, Stage2};
pub use sync::{AtomicU64, Ordering};
pub use table::{Table, TableCache, TableMemory};
pub use walk::PassReport;
