//! The block at [`PARAMS_GPA`](crate::layout::PARAMS_GPA) that describes the running workload.
//!
//! The VMM writes it before the start, the guest or the threads run by it, and the checker
//! finds it in any picture of the RAM. It is [`PARAMS_BYTES`] bytes of little-endian words:
//! magic, version, flags, seed, vCPUs, pattern, rate, words a write, op, ticks a second, hot
//! pages, gap threshold, progress address, mailbox address, mapped GiB, last write, four
//! segments (address, pages), and a check word over all before it.

mod bytes;
mod error;
#[cfg(test)]
mod tests;

pub use bytes::PARAMS_BYTES;
pub use error::ParamsError;

use crate::area::{Area, Split, Writer};
use crate::layout::{AREA_START, LOW_RAM_END, MAILBOX_GPA, MAX_VCPUS, PAGE_BYTES, PROGRESS_GPA};
use crate::spec::{Bytes, Op, Pattern, Spec};

const VERSION: u64 = 1;

/// Most GiB from address 0 that the guest's page tables can map.
pub const MAX_MAPPED_GIB: u64 = 190;

/// A workload on a machine. Made by [`Params::new`] or [`Params::from_bytes`], which check it;
/// change a field of a checked one only to something that they would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// The workload runs in threads of the VMM: there is no guest program in RAM.
    pub threads: bool,
    /// The device [`DMA`](crate::area::DMA) writes too.
    pub dma: bool,
    /// The device [`DMA_DIRECT`](crate::area::DMA_DIRECT) writes too; only with `dma`.
    pub dma_direct: bool,
    /// Chooses orders and contents.
    pub seed: u64,
    /// vCPUs that write.
    pub vcpus: u64,
    /// Order of the pages; devices always write in random order.
    pub pattern: Pattern,
    /// Writes a second of all vCPUs together, 0 for as fast as it goes. Each vCPU takes an
    /// equal share, exactly: at 1 page a second two vCPUs make a write every two seconds each.
    pub rate_pages_per_s: u64,
    /// What one write of a vCPU stores; a device stores whole pages.
    pub bytes: Bytes,
    /// Whether vCPUs write pages or read them.
    pub op: Op,
    /// Ticks a second of the clock that the workload reads (the TSC, in a guest).
    pub ticks_per_s: u64,
    /// Pages of the hot subset of all vCPUs together.
    pub hot_pages: u64,
    /// Gaps of at least this many ticks are listed one by one.
    pub gap_threshold_ticks: u64,
    /// Where vCPU 0's progress page is; the others follow.
    pub progress_gpa: u64,
    /// Where vCPU 0's mailbox page is; the others follow.
    pub mailbox_gpa: u64,
    /// GiB from address 0 that the guest's page tables map.
    pub mapped_gib: u64,
    /// Writes after which a vCPU stops; 0 means never.
    pub writes: u64,
    /// The pages that are written.
    pub area: Area,
}

/// What [`Params::new`] is made from.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The workload as asked for.
    pub spec: Spec,
    /// vCPUs of the machine.
    pub vcpus: u64,
    /// Guest RAM as (guest-physical address, bytes), ascending.
    pub ram: &'a [(u64, u64)],
    /// Ticks a second of the clock that the workload reads.
    pub ticks_per_s: u64,
    /// Gaps of at least this length are listed one by one.
    pub gap_threshold_us: u64,
    /// The workload runs in threads of the VMM.
    pub threads: bool,
    /// A device writes pages through its mapping.
    pub dma: bool,
    /// A second device reads directly into guest RAM; only with `dma`.
    pub dma_direct: bool,
}

impl Params {
    /// The workload of `setup` on its machine.
    ///
    /// # Errors
    ///
    /// Any [`ParamsError`] but `Missing`, `Version` and `Damaged`: the machine and the
    /// workload do not fit together.
    pub fn new(setup: &Setup<'_>) -> Result<Self, ParamsError> {
        let spec = &setup.spec;
        let end = ram_end(setup.ram)?;
        let all = Area::of_ram(setup.ram, AREA_START, u64::MAX).ok_or(ParamsError::Ram)?;
        let available_bytes = all.pages() * PAGE_BYTES;
        let set_bytes = spec.set_bytes.unwrap_or(available_bytes);
        if set_bytes > available_bytes {
            return Err(ParamsError::SetTooLarge {
                set_bytes,
                available_bytes,
            });
        }
        let area =
            Area::of_ram(setup.ram, AREA_START, set_bytes / PAGE_BYTES).ok_or(ParamsError::Ram)?;
        let hot_pages = match spec.hot_bytes {
            Some(bytes) => bytes / PAGE_BYTES,
            None => area.pages() / 8,
        };
        let params = Self {
            threads: setup.threads,
            dma: setup.dma || setup.dma_direct,
            dma_direct: setup.dma_direct,
            seed: spec.seed,
            vcpus: setup.vcpus,
            pattern: spec.pattern,
            rate_pages_per_s: spec.rate_pages_per_s,
            bytes: spec.bytes,
            op: spec.op,
            ticks_per_s: setup.ticks_per_s,
            hot_pages: hot_pages.max(1),
            gap_threshold_ticks: (setup.ticks_per_s / 1000).saturating_mul(setup.gap_threshold_us)
                / 1000,
            progress_gpa: PROGRESS_GPA,
            mailbox_gpa: MAILBOX_GPA,
            mapped_gib: end.div_ceil(1 << 30).max(4),
            writes: spec.writes,
            area,
        };
        params.check()?;
        Ok(params)
    }

    /// How the area is divided between vCPUs and devices.
    pub fn split(&self) -> Split {
        Split::new(self.area.pages(), self.vcpus, self.dma, self.dma_direct)
            .unwrap_or(Split::NOTHING)
    }

    /// Who writes area page `page`.
    pub fn owner(&self, page: u64) -> Writer {
        self.split().owner(page, self.vcpus)
    }

    /// Guest-physical address of the mailbox page of vCPU `vcpu`.
    pub fn mailbox_of(&self, vcpu: u64) -> u64 {
        self.mailbox_gpa + vcpu * PAGE_BYTES
    }

    /// Guest-physical address of the progress page of vCPU `vcpu`.
    pub fn progress_of(&self, vcpu: u64) -> u64 {
        self.progress_gpa + vcpu * crate::progress::PROGRESS_BYTES as u64
    }

    fn check(&self) -> Result<(), ParamsError> {
        in_range(
            "vcpus",
            self.vcpus,
            (1..=MAX_VCPUS).contains(&self.vcpus),
            "1 to 64",
        )?;
        in_range(
            "rate",
            self.rate_pages_per_s,
            self.rate_pages_per_s <= crate::spec::MAX_RATE,
            "0 to 1000000000",
        )?;
        in_range(
            "ticks a second",
            self.ticks_per_s,
            (1_000_000..=1 << 40).contains(&self.ticks_per_s),
            "1 MHz to 1 THz",
        )?;
        in_range(
            "hot pages",
            self.hot_pages,
            self.hot_pages > 0,
            "at least 1",
        )?;
        in_range(
            "mapped GiB",
            self.mapped_gib,
            (4..=MAX_MAPPED_GIB).contains(&self.mapped_gib),
            "4 to 190",
        )?;
        in_range(
            "mailbox address",
            self.mailbox_gpa,
            self.mailbox_gpa == MAILBOX_GPA,
            "the fixed one",
        )?;
        in_range(
            "progress address",
            self.progress_gpa,
            self.progress_gpa == PROGRESS_GPA,
            "the fixed one",
        )?;
        if self.dma_direct && !self.dma {
            return Err(ParamsError::OutOfRange {
                field: "flags",
                value: u64::from(self.dma_direct),
                allowed: "direct only with dma",
            });
        }
        let mut end_before = AREA_START;
        for segment in &self.area.segments {
            if segment.pages == 0 {
                continue;
            }
            let end = segment
                .pages
                .checked_mul(PAGE_BYTES)
                .and_then(|bytes| segment.gpa.checked_add(bytes));
            let fits = segment.gpa >= end_before
                && segment.gpa % PAGE_BYTES == 0
                && end.is_some_and(|end| end <= self.mapped_gib << 30);
            in_range(
                "segment",
                segment.gpa,
                fits,
                "pages in ascending order above 2 MiB",
            )?;
            end_before = end.unwrap_or(u64::MAX);
        }
        match Split::new(self.area.pages(), self.vcpus, self.dma, self.dma_direct) {
            Some(_) => Ok(()),
            None => Err(ParamsError::AreaTooSmall {
                pages: self.area.pages(),
            }),
        }
    }
}

/// Where RAM ends, if it is RAM as the fixed memory needs it.
fn ram_end(ram: &[(u64, u64)]) -> Result<u64, ParamsError> {
    let (mut end_before, hole) = (0, LOW_RAM_END..crate::layout::HIGH_RAM_GPA);
    for (i, &(gpa, len)) in ram.iter().enumerate() {
        let end = gpa.checked_add(len).ok_or(ParamsError::Ram)?;
        let aligned = (gpa | len) % PAGE_BYTES == 0;
        let in_order = if i == 0 {
            gpa == 0 && len >= AREA_START
        } else {
            gpa >= end_before
        };
        if !aligned || !in_order || (gpa < hole.end && end > hole.start) {
            return Err(ParamsError::Ram);
        }
        end_before = end;
    }
    Ok(end_before)
}

fn in_range(
    field: &'static str,
    value: u64,
    fits: bool,
    allowed: &'static str,
) -> Result<(), ParamsError> {
    if fits {
        Ok(())
    } else {
        Err(ParamsError::OutOfRange {
            field,
            value,
            allowed,
        })
    }
}
