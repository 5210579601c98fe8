//! How large the page buffer is made, before guest RAM is armed.
//!
//! A guest that writes everywhere writes everything again in the first moments after the pause,
//! faster than any file takes it, and what has no room keeps a vCPU waiting. Room has its price:
//! memory that a host hands out for the first time costs up to 12 us a page, which is more than a
//! copy, so it must be there before anybody waits. And most guests need little of it.
//!
//! So the guest is asked first: a few granules, spread over all that exists, are armed, and after a
//! moment it is known which share of them was written. While the buffer is then made as large as
//! all the rest would need, paced, next to nothing is armed: the guest loses
//! nothing by it. (Made later, while arming goes on, it prolongs what the guest pays for; made in
//! faults, it is a stall of some milliseconds each.)

use std::ops::Range;
use std::time::{Duration, Instant};

use paguro_sys::{Pacer, page_size};

use super::context::Context;
use super::steps::Steps;
use crate::FreezeError;
use crate::buffer::START_BYTES;
use crate::sizes::{self, GRANULE};

/// Granules that are armed to see whether they are written.
const SAMPLES: usize = 16;
/// How long they are watched.
const WATCH: Duration = Duration::from_millis(5);

/// Makes room for what the guest is about to write, as far as the buffer's limit allows.
///
/// # Errors
///
/// What arming the sample ran into.
pub(super) fn make(
    context: &Context,
    steps: &Steps,
    go_on: &impl Fn() -> bool,
) -> Result<(), FreezeError> {
    let hot: usize = context.blocks.iter().map(|block| block.hot.count()).sum();
    let hot = hot.max(estimate(context, steps, go_on)?);
    if hot == 0 {
        return Ok(());
    }
    let mut pacer = Pacer::of_this_thread();
    let paced = || {
        std::thread::sleep(pacer.due());
        go_on()
    };
    context
        .buffer
        .grow(START_BYTES + hot * GRANULE * page_size(), paced);
    Ok(())
}

/// Granules that the guest writes all the time, from a sample.
fn estimate(
    context: &Context,
    steps: &Steps,
    go_on: &impl Fn() -> bool,
) -> Result<usize, FreezeError> {
    // While a pager fills, what arming must not touch is decided elsewhere.
    if context.source.is_some() || !context.buffer.may_grow() {
        return Ok(0);
    }
    let runs = touched(context)?;
    let granules: usize = runs.iter().map(|(_, run)| run.len()).sum();
    let step = granules.div_ceil(SAMPLES).max(1);
    let places = runs
        .iter()
        .flat_map(|(index, run)| run.clone().map(move |granule| (*index, granule)));
    let samples: Vec<(usize, usize)> = places.step_by(step).collect();
    for &(index, granule) in &samples {
        let block = &context.blocks[index];
        let pages = sizes::granule(granule, block.ram.pages());
        block.armed.insert(granule);
        steps.arm(context, index, pages, true)?;
    }
    let watched = Instant::now();
    while watched.elapsed() < WATCH && go_on() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let written = samples.iter().filter(|&&(index, granule)| {
        let released = &context.blocks[index].released;
        released.count_in(sizes::granule(granule, released.pages())) > 0
    });
    Ok((written.count() * step).min(granules))
}

/// Where something exists that can be armed, in granules, with the number of the block.
fn touched(context: &Context) -> Result<Vec<(usize, Range<usize>)>, FreezeError> {
    let mut runs = Vec::new();
    for (index, block) in context.blocks.iter().enumerate() {
        if block.is_protected() {
            let touched = block.touched(&context.pagemap, block.ram.pages())?;
            runs.extend(touched.into_iter().map(|run| (index, run)));
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use paguro_faults::Faults;
    use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
    use paguro_sys::{Fallbacks, Host};
    use paguro_testkit::skipped;

    use super::*;
    use crate::{Freeze, FreezeOptions, HugePolicy, Sabotage};

    /// Four granules for each sample.
    const GRANULES: usize = 4 * SAMPLES;
    const GRANULE_BYTES: usize = GRANULE * 4096;

    /// RAM that exists, and the owner of its faults.
    fn machine() -> Option<(Host, GuestRam, Arc<Faults>)> {
        let host = Host::probe(&Fallbacks::default());
        if !host.can_freeze() {
            skipped("userfaultfd with write-protection is not available to this process");
            return None;
        }
        let block = RamBlock::new(BlockConfig {
            id: "ram".into(),
            guest_address: 0,
            bytes: GRANULES * GRANULE_BYTES,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        let mapping = ram.blocks()[0].mapping();
        (0..GRANULES * GRANULE).for_each(|page| mapping.copy_in(page * 4096, &[1]));
        let faults = Faults::open(&host, ram.clone(), 1).unwrap();
        Some((host, ram, faults))
    }

    /// Bytes for which room is made, of at most `buffer_bytes`.
    fn room(machine: &(Host, GuestRam, Arc<Faults>), buffer_bytes: usize) -> usize {
        let (host, ram, faults) = machine;
        let options = FreezeOptions {
            host: *host,
            chunk_pages: 64,
            buffer_bytes,
            huge: HugePolicy::Keep,
            retry: std::time::Duration::ZERO,
            check: false,
            sabotage: Sabotage::None,
        };
        let freeze = Freeze::new(Some(faults.clone()), ram.clone(), None, &[], options).unwrap();
        let context = &freeze.context;
        make(context, &Steps::default(), &|| true).unwrap();
        freeze.end();
        context.buffer.made_bytes()
    }

    #[test]
    fn the_buffer_is_made_as_large_as_what_the_guest_writes() {
        let _alone = paguro_testkit::alone();
        let Some(machine) = machine() else { return };
        let all = GRANULES * GRANULE_BYTES;
        assert_eq!(room(&machine, 1 << 30), START_BYTES, "nobody writes");
        let (ram, stop) = (machine.1.clone(), Arc::new(AtomicBool::new(false)));
        let its = stop.clone();
        // A word in each granule, as a guest does that writes everywhere.
        let guest = std::thread::spawn(move || {
            for granule in (0..GRANULES).cycle() {
                let mapping = ram.blocks()[0].mapping();
                mapping.copy_in(granule * GRANULE_BYTES, &[2]);
                if its.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        // On a busy host it may get no core while it is watched.
        let most = (0..50).map(|_| room(&machine, 1 << 30));
        let most = most.inspect(|&bytes| assert!(bytes <= START_BYTES + all, "{bytes}"));
        let enough = most.into_iter().any(|bytes| bytes >= START_BYTES + all / 2);
        let limited = room(&machine, START_BYTES + (4 << 20));
        stop.store(true, Ordering::Relaxed);
        guest.join().unwrap();
        assert!(enough, "all is written, and there is no room for it");
        assert!(limited <= START_BYTES + (4 << 20), "{limited}");
        assert_eq!(
            room(&machine, 1 << 30),
            START_BYTES,
            "nobody writes any more"
        );
    }
}
