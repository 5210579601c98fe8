//! The pause: nobody answers a fault or gives pages back, the rest is armed, and the epoch changes.

use std::sync::atomic::Ordering;

use paguro_faults::Barrier;
use parking_lot::RwLockWriteGuard;

use super::arming::Arming;
use super::check;
use super::context::Context;
use super::discard::Discarding;
use super::tally::Tally;
use crate::FreezeError;

/// While it lives nobody answers a fault and nobody gives pages back.
pub struct Standstill<'a> {
    _readers: Option<Barrier<'a>>,
    _discards: RwLockWriteGuard<'a, ()>,
}

/// Waits until no discard goes on, no event is in hand and no release under way. In this order: a
/// discard waits for a reader to take its event.
pub(super) fn barrier<'a>(context: &'a Context, discarding: &'a Discarding) -> Standstill<'a> {
    let discards = discarding.stand_still();
    Standstill {
        _readers: context.faults.as_ref().map(|faults| faults.barrier()),
        _discards: discards,
    }
}

/// Arms what was released or came since, and begins the frozen epoch. The guest must be at rest.
///
/// # Errors
///
/// Those of arming, and of looking at what is there.
pub(super) fn hold(
    context: &Context,
    arming: &Arming,
    tally: &Tally,
    barrier: Standstill<'_>,
) -> Result<(), FreezeError> {
    // The caller's barrier is what makes this list complete.
    context.hooks.last_look(|| arming.last_look(context))?;
    if let Some(source) = &context.source {
        source.arrivals().settle();
    }
    let (total, left) = fix_lengths(context);
    check::take_digests(context)?;
    tally.begin(total, left);
    context.life.freeze();
    drop(barrier);
    Ok(())
}

/// From here on the picture ends where blocks end now, and what is discarded is no part of it: its
/// pages, and how many are left.
fn fix_lengths(context: &Context) -> (usize, usize) {
    let mut total = 0;
    let mut left = 0;
    for block in &context.blocks {
        let pages = block.ram.pages();
        block.held.store(pages, Ordering::Release);
        total += pages;
        left += pages;
        context
            .ram
            .discards()
            .discarded(&block.ram, 0..pages, &mut |part| {
                // A unit of which a part is discarded is protected, claimed and saved whole.
                let part = block.units_within(&part);
                left -= part.len();
                block.claimed.insert_range(part.clone());
                block.saved.insert_range(part);
            });
    }
    (total, left)
}
