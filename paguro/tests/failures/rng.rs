//! Random numbers that a seed brings back: those of the version of `fastrand` in `Cargo.lock`.

use fastrand::Rng;

/// By `PAGURO_TEST_SEED`, or new ones; the seed is printed.
pub fn seeded(what: &str) -> Rng {
    let seed = std::env::var("PAGURO_TEST_SEED").map_or_else(
        |_| u64::from(fastrand::u32(..)),
        |text| text.parse().expect("PAGURO_TEST_SEED: a number"),
    );
    println!("{what}: PAGURO_TEST_SEED={seed}");
    Rng::with_seed(seed)
}
