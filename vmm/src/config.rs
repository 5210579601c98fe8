//! What a machine is made of.

use std::path::PathBuf;
use std::time::Duration;

use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind};
use paguro_stage2::LogOptions;
use paguro_sys::{HUGE_PAGE_BYTES, page_size};
use paguro_workload::Spec;
use paguro_workload::layout::{AREA_START, HIGH_RAM_GPA, LOW_RAM_END, MAX_VCPUS};

use crate::VmError;

/// The least RAM of a machine that runs the built-in workload.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;

/// What runs the vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// `/dev/kvm`.
    #[default]
    Kvm,
    /// Threads of this process, running the built-in workload.
    Threads,
}

impl Accel {
    /// Its name in options and in pictures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Threads => "threads",
        }
    }
}

/// Where the serial line goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serial {
    /// To the standard output of the process.
    Stdio,
    /// To the end of a file, which is made if there is none: of what it has nothing is lost.
    File(PathBuf),
    /// Nowhere.
    #[default]
    None,
}

/// What a picture's clock does with the time that the machine spent in it: KVM's, which a guest's
/// kvmclock shows. Threads have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// It goes on where it was, so that no time passed for the guest: none of its timers is late.
    #[default]
    Continue,
    /// It advances by what the host's clock did meanwhile; where that of another host is behind, by
    /// nothing.
    Advance,
}

/// The device `x-dma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaConfig {
    /// Pages that each of its writers fills a second; 0 for as fast as it goes.
    pub rate_pages_per_s: u64,
    /// Whether a second writer keeps `O_DIRECT` reads into guest RAM in flight.
    pub direct: bool,
}

/// Stage-2 tables in software, in which threads look every address up as an Arm CPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage2Config {
    /// How their log is kept when somebody tracks.
    pub log: LogOptions,
    /// For tests: what is broken on purpose.
    pub sabotage: Stage2Sabotage,
}

/// What of the tables is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage2Sabotage {
    /// Nothing.
    #[default]
    None,
    /// TLBs are never invalidated: what was written once is never seen again.
    NoInvalidation,
    /// Bits are handed out, and pages read, before the TLBs are invalidated.
    LateInvalidation,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the operator calls it.
    pub name: String,
    /// RAM, a multiple of the page size.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// What runs them.
    pub accel: Accel,
    /// What is behind the RAM.
    pub backing: Backing,
    /// Which pages it has.
    pub pages: PageKind,
    /// A PVH ELF kernel; without one the built-in guest runs.
    pub kernel: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// What the built-in guest does.
    pub workload: Spec,
    /// Gaps in the guest's progress of at least this length are listed one by one.
    pub gap_threshold_us: u64,
    /// What the clock of a picture does that is loaded.
    pub clock: Clock,
    /// Where the serial line goes.
    pub serial: Serial,
    /// The device `x-dma`, if there is one.
    pub dma: Option<DmaConfig>,
    /// The file that shows the guest's progress to other processes: made anew, mapped shared,
    /// [`PROGRESS_BYTES`](paguro_workload::progress::PROGRESS_BYTES) a vCPU.
    pub progress: Option<PathBuf>,
    /// Bytes of RAM in the first block; the rest stands from 4 GiB on. `None`: as much as fits
    /// below 3 GiB.
    pub ram_split: Option<u64>,
    /// Entries of the ring in which KVM tells which pages a vCPU wrote, a power of two; without one
    /// it keeps a log.
    pub dirty_ring_entries: Option<u32>,
    /// The log of threads: that of stage-2 tables in software, or what the kernel knows.
    pub stage2: Option<Stage2Config>,
    /// For how long reading RAM is tried again where that may fail and go well later: RAM that is filled
    /// from a file, or maps one. Zero for all other.
    pub memory_retry: Duration,
    /// For tests: a writer of guest RAM by this name that no freeze can see.
    pub unseen_writer: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "paguro".to_owned(),
            memory_bytes: 512 << 20,
            cpus: 1,
            accel: Accel::Kvm,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
            kernel: None,
            cmdline: String::new(),
            workload: Spec::default(),
            gap_threshold_us: 500,
            clock: Clock::Continue,
            serial: Serial::None,
            dma: None,
            progress: None,
            ram_split: None,
            dirty_ring_entries: None,
            stage2: None,
            memory_retry: Duration::ZERO,
            unseen_writer: None,
        }
    }
}

impl Config {
    /// The RAM blocks of this machine.
    ///
    /// # Errors
    ///
    /// As [`ram_layout`].
    pub fn ram_layout(&self) -> Result<Vec<BlockConfig>, VmError> {
        ram_layout(self.memory_bytes, self.ram_split, self.backing, self.pages)
    }

    pub(crate) fn check(&self, ram: &GuestRam) -> Result<(), VmError> {
        if self.cpus == 0 || u64::from(self.cpus) > MAX_VCPUS {
            return Err(VmError::Config(format!(
                "{} vCPUs; a machine has 1 to {MAX_VCPUS}",
                self.cpus
            )));
        }
        if self.kernel.is_some() && self.accel == Accel::Threads {
            return Err(VmError::Config(
                "threads cannot run a kernel; they run the built-in workload".to_owned(),
            ));
        }
        if self.kernel.is_some() && self.dma.is_some() {
            return Err(VmError::Config(
                "the device x-dma writes pages of the built-in workload and goes with no kernel"
                    .to_owned(),
            ));
        }
        if self.stage2.is_some() && self.accel != Accel::Threads {
            return Err(VmError::Config(
                "stage-2 tables in software are for threads; KVM has a log of its own".to_owned(),
            ));
        }
        match self.dirty_ring_entries {
            Some(_) if self.accel == Accel::Threads => {
                return Err(VmError::Config(
                    "threads have no dirty ring, which is KVM's".to_owned(),
                ));
            }
            Some(entries) if !entries.is_power_of_two() => {
                return Err(VmError::Config(format!(
                    "a dirty ring of {entries} entries, which is no power of two"
                )));
            }
            _ => {}
        }
        let wanted: Vec<_> = self
            .ram_layout()?
            .into_iter()
            .map(|block| (block.id, block.guest_address, block.bytes))
            .collect();
        let given: Vec<_> = ram
            .blocks()
            .iter()
            .map(|block| {
                (
                    block.id().to_owned(),
                    block.guest_address(),
                    block.used_bytes(),
                )
            })
            .collect();
        if wanted != given {
            return Err(VmError::Config(format!(
                "RAM blocks {given:x?} are not those of the machine, {wanted:x?}"
            )));
        }
        Ok(())
    }
}

/// The RAM blocks of a machine: `paguro.ram` from address 0, and `paguro.ram1` from 4 GiB on for
/// what does not fit below 3 GiB, or for what is beyond `split` bytes.
///
/// # Errors
///
/// [`VmError::Config`]: not whole pages, too little, or a split that leaves a block empty.
pub fn ram_layout(
    memory_bytes: u64,
    split: Option<u64>,
    backing: Backing,
    pages: PageKind,
) -> Result<Vec<BlockConfig>, VmError> {
    let page = match pages {
        PageKind::Huge => HUGE_PAGE_BYTES as u64,
        _ => page_size() as u64,
    };
    let refuse = |why: String| Err(VmError::Config(why));
    if !memory_bytes.is_multiple_of(page) {
        return refuse(format!(
            "{memory_bytes} bytes of RAM are not whole pages of {page} bytes"
        ));
    }
    if memory_bytes < MIN_MEMORY_BYTES {
        return refuse(format!(
            "{memory_bytes} bytes of RAM are less than the {MIN_MEMORY_BYTES} that are needed"
        ));
    }
    let low = match split {
        None => memory_bytes.min(LOW_RAM_END),
        Some(low) if !low.is_multiple_of(page) => {
            return refuse(format!(
                "RAM cannot be split at {low} bytes, in pages of {page}"
            ));
        }
        Some(low) if low <= AREA_START || low > LOW_RAM_END || low > memory_bytes => {
            return refuse(format!(
                "RAM cannot be split at {low} bytes: allowed is more than {AREA_START}, up to {}",
                LOW_RAM_END.min(memory_bytes)
            ));
        }
        Some(low) => low,
    };
    let block = |id: &str, guest_address, bytes: u64| BlockConfig {
        id: id.to_owned(),
        guest_address,
        bytes: bytes as usize,
        backing,
        pages,
    };
    let mut blocks = vec![block("paguro.ram", 0, low)];
    if low < memory_bytes {
        blocks.push(block("paguro.ram1", HIGH_RAM_GPA, memory_bytes - low));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: u64, split: Option<u64>) -> Result<Vec<(String, u64, usize)>, VmError> {
        let blocks = ram_layout(bytes, split, Backing::Anonymous, PageKind::Small)?;
        Ok(blocks
            .into_iter()
            .map(|b| (b.id, b.guest_address, b.bytes))
            .collect())
    }

    #[test]
    fn ram_is_split_at_the_hole_or_where_asked() {
        let low = |bytes: usize| ("paguro.ram".to_owned(), 0, bytes);
        let high = |bytes: usize| ("paguro.ram1".to_owned(), 1 << 32, bytes);
        assert_eq!(layout(3 << 30, None).unwrap(), [low(3 << 30)]);
        assert_eq!(
            layout(5 << 30, None).unwrap(),
            [low(3 << 30), high(2 << 30)]
        );
        assert_eq!(
            layout(8 << 20, Some(6 << 20)).unwrap(),
            [low(6 << 20), high(2 << 20)]
        );
        assert_eq!(layout(8 << 20, Some(8 << 20)).unwrap(), [low(8 << 20)]);
    }

    #[test]
    fn impossible_ram_is_refused() {
        for (bytes, split) in [
            (0, None),
            ((4 << 20) - 4096, None),
            ((8 << 20) + 1, None),
            ((8 << 20) + 2048, None),
            (8 << 20, Some(0)),
            (8 << 20, Some(2 << 20)),
            (8 << 20, Some((6 << 20) + 1)),
            (8 << 20, Some(9 << 20)),
            (8 << 30, Some((3 << 30) + 4096)),
        ] {
            assert!(layout(bytes, split).is_err(), "{bytes} {split:?}");
        }
        let huge = ram_layout((8 << 20) + 4096, None, Backing::Anonymous, PageKind::Huge);
        assert!(huge.is_err());
    }
}
