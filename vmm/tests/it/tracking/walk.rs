//! A guest that writes, a tracker that watches it, and the arithmetic of what was written between.

use std::ops::Range;

use paguro_dirty::tracker::Tracker;
use paguro_migration::machine::Machine;
use paguro_ram::PageSet;
use paguro_vmm::{Accel, Config, Vm};
use paguro_workload::area::{DMA, DMA_DIRECT};
use paguro_workload::mailbox::{BEGUN, DONE};
use paguro_workload::{Params, Stream};

use super::destination::{Destination, Order, PAGE, sets};
use crate::common::*;

/// Writes of one writer that are looked at, at most: the last ones.
const MOST: u64 = 50_000;

/// Writes of a device that may be done and are not counted.
const MOST_IN_FLIGHT: u64 = 4;

/// What went wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Pages that were written and not reported.
    pub unreported: usize,
    /// Pages that were sent, and are not what they are in RAM.
    pub stale: usize,
    /// Pages that were reported and not written.
    pub superfluous: usize,
}

/// How far each writer is: (number, writes done, writes begun).
fn counters(vm: &Vm, params: &Params) -> Vec<(u64, u64, u64)> {
    let low = &vm.guest_ram().blocks()[0];
    let word = |gpa: u64| {
        let mut bytes = [0; 8];
        low.mapping().copy_out(gpa as usize, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let mut counters: Vec<_> = (0..params.vcpus)
        .map(|vcpu| {
            let mailbox = params.mailbox_of(vcpu);
            let done = word(mailbox + DONE as u64);
            (vcpu, done, word(mailbox + BEGUN as u64))
        })
        .collect();
    if let Some(dma) = vm.dma_counters() {
        counters.push((DMA, dma.done, dma.done));
        counters.extend(dma.direct_done.map(|done| (DMA_DIRECT, done, done)));
    }
    counters
}

fn stream(params: &Params, writer: u64) -> Stream {
    if writer < params.vcpus {
        Stream::vcpu(params, writer)
    } else {
        Stream::device(params, writer).unwrap()
    }
}

/// Where in the blocks a writer's writes went; false if these are not all.
fn pages(vm: &Vm, params: &Params, writer: u64, writes: Range<u64>, into: &[PageSet]) -> bool {
    let stream = stream(params, writer);
    let first = writes.start.max(writes.end.saturating_sub(MOST));
    for n in first..writes.end {
        let gpa = params.area.gpa(stream.page(n));
        let blocks = vm.guest_ram().blocks().iter().zip(into);
        for (block, into) in blocks {
            let page = gpa.wrapping_sub(block.guest_address()) as usize / PAGE;
            if gpa >= block.guest_address() && page < block.pages() {
                into.insert(page);
            }
        }
    }
    first == writes.start
}

/// Pages in the first sets and not in the second, of those that have content.
fn missing(vm: &Vm, these: &[PageSet], those: &[PageSet]) -> usize {
    let ram = vm.guest_ram();
    let mut missing = 0;
    for ((block, these), those) in ram.blocks().iter().zip(these).zip(those) {
        ram.discards()
            .populated(block, 0..block.pages(), &mut |part| {
                missing += part
                    .filter(|&page| these.contains(page) && !those.contains(page))
                    .count();
            });
    }
    missing
}

/// Pages that a tracker cannot tell apart.
pub fn unit_pages(config: &Config) -> usize {
    match (config.accel, config.pages) {
        _ if config.stage2.is_some() => 1,
        (Accel::Threads, paguro_ram::PageKind::Thp | paguro_ram::PageKind::Huge) => 512,
        _ => 1,
    }
}

/// Lets the guest run under the tracker for some rounds; in every third it is stopped and all is
/// compared. An error is why the machine failed, which only a broken one does.
pub fn walk(
    vm: &Vm,
    tracker: &dyn Tracker,
    order: Order,
    rounds: usize,
    writes: u64,
) -> Result<Verdict, String> {
    let params = vm.params().unwrap();
    let unit = unit_pages(vm.config());
    write_all(vm, &params)?;
    let mut verdict = Verdict::default();
    tracker.start().unwrap();
    // Read after the start, `begun` after `done`: these writes and later ones are to be reported.
    let mut before = counters(vm, &params);
    for (writer, _, begun) in &mut before {
        if *writer >= params.vcpus {
            // A device counts whole batches; some of one may have been written before the start.
            *begun += MOST_IN_FLIGHT;
        }
    }
    let mut destination = Destination::new(vm.guest_ram().clone(), order);
    let mut first = true;
    for round in 0..rounds {
        more_writes(vm, writes)?;
        if round % 3 != 2 {
            destination.sync(tracker);
            destination.send(tracker);
            continue;
        }
        let mut paused = match vm.pause() {
            Ok(paused) => paused,
            Err(error) => return Err(vm.failure().unwrap_or_else(|| panic!("{error:?}"))),
        };
        paused.save_devices().unwrap();
        destination.sync(tracker);
        let now = counters(vm, &params);
        let (must, may) = (sets(vm.guest_ram()), sets(vm.guest_ram()));
        let mut all = true;
        for (&(writer, done, begun), &(_, now_done, now_begun)) in before.iter().zip(&now) {
            pages(vm, &params, writer, begun..now_done, &must);
            all &= pages(vm, &params, writer, done..now_begun, &may);
        }
        verdict.unreported += missing(vm, &must, &destination.reported);
        if all && !first {
            may[0].insert_range(0..512);
            widen(&may, unit);
            verdict.superfluous += missing(vm, &destination.reported, &may);
        }
        destination.send(tracker);
        verdict.stale += destination.stale();
        assert_eq!(destination.sync(tracker), 0, "reported in a pause");
        destination.forget_reported();
        (before, first) = (now, false);
    }
    tracker.stop();
    Ok(verdict)
}

/// Waits until the guest has written all of its pages: only what is mapped, and writable, has to be
/// protected to be seen.
fn write_all(vm: &Vm, params: &Params) -> Result<(), String> {
    let all = Stream::vcpu(params, 0).page_count();
    wait_unless_failed(vm, "the guest writes its pages", || {
        writes(vm).iter().all(|&writes| writes > all)
    })
}

/// Whole units.
fn widen(sets: &[PageSet], unit: usize) {
    for set in sets {
        for start in (0..set.pages()).step_by(unit) {
            let pages = start..set.pages().min(start + unit);
            if set.count_in(pages.clone()) > 0 {
                set.insert_range(pages);
            }
        }
    }
}
