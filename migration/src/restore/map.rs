//! RAM as a private mapping of the file: nothing is read before it is touched.
//!
//! A page whose bit is clear is zero whatever the file holds there; our own files have holes in
//! such places, others may have something stale. Those are zeroed in the mapping, which copies
//! them.

use std::sync::Arc;

use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::presence::file_data;
use paguro_sys::{BusErrors, catch_bus_errors, page_size};

use super::{RestoreError, RestoreFile};

pub(super) fn map(
    file: &Arc<RestoreFile>,
    layout: &[BlockConfig],
) -> Result<(GuestRam, Vec<BusErrors>), RestoreError> {
    for block in layout {
        if block.backing == Backing::Memfd {
            return Err(RestoreError::NotMappable { memory: "memfd" });
        }
        if block.pages == PageKind::Huge {
            return Err(RestoreError::NotMappable {
                memory: "2 MiB pages",
            });
        }
    }
    let mut blocks = Vec::new();
    let mut bus_errors = Vec::new();
    for (index, (config, place)) in layout.iter().zip(file.blocks()).enumerate() {
        let block = RamBlock::of_file(
            &config.id,
            config.guest_address,
            file.fd(),
            place.pages_offset,
            config.bytes,
        )
        .map_err(RestoreError::Ram)?;
        bus_errors.push(catch_bus_errors(block.mapping()).map_err(RestoreError::BusErrors)?);
        clear_stale(file, index, &block)?;
        blocks.push(block);
    }
    Ok((GuestRam::new(blocks), bus_errors))
}

fn clear_stale(file: &RestoreFile, index: usize, block: &RamBlock) -> Result<(), RestoreError> {
    let page = page_size();
    let start = file.blocks()[index].pages_offset;
    let zeros = vec![0; page];
    let part = start..start + block.used_bytes() as u64;
    file_data(file.fd(), part, |data| {
        let first = (data.start - start) as usize / page;
        let end = ((data.end - start) as usize)
            .div_ceil(page)
            .min(block.pages());
        file.present(index).gaps(first..end, |gap| {
            for number in gap {
                // Looked at first: a file system without holes has zeros there, not stale data.
                if !block.mapping().is_zero(number * page, page) {
                    block.mapping().copy_in(number * page, &zeros);
                }
            }
        });
    })
    .map_err(|source| RestoreError::Open {
        path: file.path().to_owned(),
        source,
    })
}
