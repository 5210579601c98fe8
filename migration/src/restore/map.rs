//! RAM as a private mapping of the file: nothing is read before it is touched.
//!
//! A page whose bit is clear is zero whatever the file holds there; our own files have holes in
//! such places, others may have something stale. Those are zeroed in the mapping, which copies
//! them.

use std::sync::Arc;

use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::presence::file_data;
use paguro_sys::{catch_bus_errors, page_size};

use super::watch::{self, MapWatch, Place};
use super::{RestoreError, RestoreFile, RestoreOptions};

pub(super) fn map(
    file: &Arc<RestoreFile>,
    layout: &[BlockConfig],
    options: &RestoreOptions,
) -> Result<(GuestRam, Arc<MapWatch>), RestoreError> {
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
    let mut places = Vec::new();
    for (index, (config, place)) in layout.iter().zip(file.blocks()).enumerate() {
        let block = RamBlock::of_file(
            &config.id,
            config.guest_address,
            file.fd(),
            place.pages_offset,
            config.bytes,
        )
        .map_err(RestoreError::Ram)?;
        let bus_errors =
            catch_bus_errors(block.mapping(), options.retry).map_err(RestoreError::Watch)?;
        clear_stale(file, index, &block)?;
        if bus_errors.lost() > 0 {
            let page = bus_errors.last_page().unwrap_or_default();
            let why = std::io::Error::other("the kernel could not read it");
            let error = file.unreadable(index, &(page..page + 1), why);
            return Err(RestoreError::Page(error));
        }
        places.push(Place {
            block: config.id.clone(),
            pages_offset: place.pages_offset,
            bus_errors,
        });
        blocks.push(block);
    }
    let watch = watch::start(file, places, options).map_err(RestoreError::Watch)?;
    Ok((GuestRam::new(blocks), watch))
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
