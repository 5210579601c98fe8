//! The pages of guest RAM that the workload writes, and who writes which.
//!
//! The *area* is a list of segments of RAM; its pages are counted through all of them. vCPU
//! `v` of `c` owns the area pages congruent to `v` modulo `c`: vCPUs share chunks of
//! neighbouring pages, never a page. With devices, the last sixteenth belongs to the device
//! [`DMA`] and the sixteenth before it to the device [`DMA_DIRECT`].

use core::ops::Range;

use crate::layout::PAGE_BYTES;

/// Most segments of an area.
pub const MAX_SEGMENTS: usize = 4;

/// Writer number of the device whose thread fills pages through its mapping.
pub const DMA: u64 = 1024;
/// Writer number of the device that reads directly into guest RAM.
pub const DMA_DIRECT: u64 = 1025;

/// A piece of guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address, a multiple of the page size.
    pub gpa: u64,
    /// Pages in it; 0 marks an unused entry of an area.
    pub pages: u64,
}

/// Who writes a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A vCPU, by index.
    Vcpu(u64),
    /// A device, by writer number.
    Device(u64),
}

/// The workload area: up to [`MAX_SEGMENTS`] segments, ascending, not overlapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// Used entries first.
    pub segments: [Segment; MAX_SEGMENTS],
}

impl Area {
    /// The first `limit_pages` pages at or after `start` of the RAM given as (guest-physical
    /// address, bytes), or fewer where there are no more. `None` if that RAM is not page
    /// aligned, not ascending, or has more than [`MAX_SEGMENTS`] parts after `start`.
    pub fn of_ram(ram: &[(u64, u64)], start: u64, limit_pages: u64) -> Option<Self> {
        let mut area = Self::default();
        let (mut used, mut left, mut end_before) = (0, limit_pages, 0);
        for &(gpa, len) in ram {
            let end = gpa.checked_add(len)?;
            if gpa % PAGE_BYTES != 0 || len % PAGE_BYTES != 0 || gpa < end_before {
                return None;
            }
            end_before = end;
            let from = gpa.max(start);
            let pages = (end.saturating_sub(from) / PAGE_BYTES).min(left);
            if pages > 0 {
                *area.segments.get_mut(used)? = Segment { gpa: from, pages };
                used += 1;
                left -= pages;
            }
        }
        Some(area)
    }

    /// Pages in all segments.
    pub fn pages(&self) -> u64 {
        self.segments.iter().map(|s| s.pages).sum()
    }

    /// Guest-physical address of area page `page`, which is less than [`pages`](Self::pages).
    #[inline(always)]
    pub fn gpa(&self, mut page: u64) -> u64 {
        for segment in &self.segments[..MAX_SEGMENTS - 1] {
            if page < segment.pages {
                return segment.gpa + page * PAGE_BYTES;
            }
            page -= segment.pages;
        }
        self.segments[MAX_SEGMENTS - 1].gpa + page * PAGE_BYTES
    }

    /// The area page at a guest-physical address, if it lies in the area.
    pub fn page_at(&self, gpa: u64) -> Option<u64> {
        let mut before = 0;
        for segment in &self.segments {
            if let Some(offset) = gpa.checked_sub(segment.gpa)
                && offset / PAGE_BYTES < segment.pages
            {
                return Some(before + offset / PAGE_BYTES);
            }
            before += segment.pages;
        }
        None
    }
}

/// How the pages of an area are divided between vCPUs and devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Pages `0..vcpu_pages` belong to the vCPUs.
    pub vcpu_pages: u64,
    /// Pages of each device that is there.
    pub share: u64,
    /// Pages of the area.
    pub total: u64,
    direct: bool,
}

impl Split {
    /// An area of no pages.
    pub(crate) const NOTHING: Self = Self {
        vcpu_pages: 0,
        share: 0,
        total: 0,
        direct: false,
    };

    /// Divides `pages` pages. A device gets a sixteenth, and at least one page; `None` if
    /// that leaves no page for one of the vCPUs.
    pub fn new(pages: u64, vcpus: u64, dma: bool, direct: bool) -> Option<Self> {
        let share = (pages / 16).max(1);
        let devices = u64::from(dma) + u64::from(direct);
        let vcpu_pages = pages.checked_sub(share * devices)?;
        (vcpu_pages >= vcpus.max(1)).then_some(Self {
            vcpu_pages,
            share,
            total: pages,
            direct,
        })
    }

    /// The area pages of device `writer`; empty if it is not there.
    pub fn device_pages(&self, writer: u64) -> Range<u64> {
        let dma_start = if self.direct {
            self.vcpu_pages + self.share
        } else {
            self.vcpu_pages
        };
        match writer {
            DMA => dma_start..self.total,
            DMA_DIRECT => self.vcpu_pages..dma_start,
            _ => 0..0,
        }
    }

    /// Who owns area page `page`.
    pub fn owner(&self, page: u64, vcpus: u64) -> Writer {
        if page < self.vcpu_pages {
            Writer::Vcpu(page % vcpus.max(1))
        } else if self.device_pages(DMA).contains(&page) {
            Writer::Device(DMA)
        } else {
            Writer::Device(DMA_DIRECT)
        }
    }
}
