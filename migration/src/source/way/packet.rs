//! What goes over a multifd channel at once: pages of one block.

use paguro_ram::GuestRam;
use paguro_sys::{Places, page_size};
use paguro_wire::stream::multifd::{PAGES_MAX, Packet};

/// A packet's pages may lie all apart.
const _: () = assert!(PAGES_MAX <= Places::MOST);

/// Pages of one block for one packet.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    block: usize,
    /// Pages to be read at the front, pages that are gone at the back.
    pages: [usize; PAGES_MAX],
    content: usize,
    gone: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            block: 0,
            pages: [0; PAGES_MAX],
            content: 0,
            gone: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content + self.gone == 0
    }

    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Whether a page of `block` still fits.
    pub(super) fn takes(&self, block: usize) -> bool {
        self.is_empty() || (self.block == block && self.content + self.gone < PAGES_MAX)
    }

    /// Adds a page that [`takes`](Self::takes) has promised to take.
    pub(super) fn add(&mut self, block: usize, page: usize, is_gone: bool) {
        self.block = block;
        if is_gone {
            self.gone += 1;
            self.pages[PAGES_MAX - self.gone] = page;
        } else {
            self.pages[self.content] = page;
            self.content += 1;
        }
    }

    pub(super) fn clear(&mut self) {
        (self.content, self.gone) = (0, 0);
    }
}

/// The pages of a packet, by whether they have content.
pub(super) struct Sorted {
    /// Offsets of pages with content at the front, of zero pages behind them.
    offsets: [u64; PAGES_MAX],
    pub(super) normal: usize,
    pub(super) zero: usize,
}

impl Sorted {
    pub(super) fn new() -> Self {
        Self {
            offsets: [0; PAGES_MAX],
            normal: 0,
            zero: 0,
        }
    }

    /// Looks at the pages as they are now. The guest may write meanwhile: then what was found is looked
    /// at again later.
    pub(super) fn sort(&mut self, batch: &Batch, ram: &GuestRam) {
        let page_bytes = page_size();
        let mapping = ram.blocks()[batch.block].mapping();
        let mut zeros = [0; PAGES_MAX];
        (self.normal, self.zero) = (0, 0);
        for &page in &batch.pages[..batch.content] {
            let offset = page * page_bytes;
            let (list, count) = if mapping.is_zero(offset, page_bytes) {
                (&mut zeros, &mut self.zero)
            } else {
                (&mut self.offsets, &mut self.normal)
            };
            list[*count] = offset as u64;
            *count += 1;
        }
        for &page in &batch.pages[PAGES_MAX - batch.gone..] {
            zeros[self.zero] = (page * page_bytes) as u64;
            self.zero += 1;
        }
        self.offsets[self.normal..][..self.zero].copy_from_slice(&zeros[..self.zero]);
    }

    /// As a packet.
    pub(super) fn at(&self, block: usize, number: u64, payload_bytes: usize) -> Packet<'_> {
        let (normal, zero) = self.offsets[..self.normal + self.zero].split_at(self.normal);
        Packet {
            sync: false,
            number,
            block,
            normal,
            zero,
            payload_bytes: payload_bytes as u32,
        }
    }

    pub(super) fn content_bytes(&self) -> usize {
        self.normal * page_size()
    }
}

/// Copies of pages, for what must not change while it is worked on.
#[derive(Default)]
pub(super) struct Copies(Vec<u8>);

impl Copies {
    /// The pages of a packet that have content.
    pub(super) fn of(&mut self, packet: &Sorted, block: usize, ram: &GuestRam) -> &[u8] {
        self.0.resize(PAGES_MAX * page_size(), 0);
        let mapping = ram.blocks()[block].mapping();
        let places = self.0.chunks_mut(page_size());
        for (&offset, to) in packet.offsets[..packet.normal].iter().zip(places) {
            mapping.copy_out(offset as usize, to);
        }
        &self.0[..packet.content_bytes()]
    }
}
