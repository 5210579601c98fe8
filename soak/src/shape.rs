//! What of a machine follows from its case's seed.

use paguro_lab::Pages;

use super::rng::Rng;

/// RAM of a machine by the seed. The third is no multiple of 2 MiB.
const MEMORY_BYTES: [u64; 4] = [16 << 20, 32 << 20, (40 << 20) + (12 << 10), 64 << 20];

/// Bytes of RAM, unless they are given, and where it is split if it is.
pub fn ram(rng: &mut Rng, pages: Pages, given_bytes: u64) -> (u64, u64) {
    let huge = pages == Pages::Huge;
    let bytes = match (given_bytes, rng.pick(&MEMORY_BYTES)) {
        (0, drawn) if huge => drawn.next_multiple_of(2 << 20),
        (0, drawn) => drawn,
        (given, _) => given,
    };
    let split = rng.within(2..5) * (2 << 20) + if huge { 0 } else { rng.within(0..3) << 12 };
    (bytes, split)
}
