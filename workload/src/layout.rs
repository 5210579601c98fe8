//! Fixed guest-physical addresses that do not depend on how the workload is run.
//!
//! Everything fixed lies below [`AREA_START`], so that the workload area is simply "all RAM
//! from 2 MiB up". What only the guest program needs (tables, stacks, code) is in the `guest`
//! crate's layout, between these.

/// Size of the pages that the workload counts in, whatever the host backs RAM with.
pub const PAGE_BYTES: u64 = 4096;

/// 8-byte words in a page.
pub const PAGE_WORDS: usize = 512;

/// Most vCPUs that the fixed memory has room for.
pub const MAX_VCPUS: u64 = 64;

/// Where [`Params`](crate::Params) lie; the rest of that page is zero.
pub const PARAMS_GPA: u64 = 0x1000;

/// The mailbox page of vCPU 0; one page a vCPU follows.
pub const MAILBOX_GPA: u64 = 0x1_0000;

/// First byte of the workload area.
pub const AREA_START: u64 = 0x20_0000;

/// The progress page of vCPU 0, in the hole below 4 GiB: not RAM, and in no snapshot.
pub const PROGRESS_GPA: u64 = 0xd000_0000;

/// Where RAM that does not fit below the hole goes on.
pub const HIGH_RAM_GPA: u64 = 1 << 32;

/// Where the hole below 4 GiB begins at the lowest: RAM of the first block ends here or before.
pub const LOW_RAM_END: u64 = 0xc000_0000;
