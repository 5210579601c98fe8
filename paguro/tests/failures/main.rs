//! What fails while a machine moves, and who runs afterwards: point P6 with real processes.
//!
//! Every trial is two processes of the program, with a [relay](relay) between them that knows which
//! part of the stream is under way and can hold, cut or swallow it at any byte, and a
//! [watch](paguro_lab::watch) on the counters of both guests. What comes out is judged by what had gone over
//! the wire, never by what one of the sides says alone, and the RAM of every survivor by the oracle.
//!
//! | room | for |
//! |---|---|
//! | [`kills`] | `kill -9` of either side |
//! | [`cuts`] | a channel that breaks, falls silent or is slow, and comes back or not |
//! | [`handed`] | a channel that breaks after RAM was handed over |
//! | [`links`] | two network namespaces as two hosts |
//! | [`hostile`] | a source that lies |
//! | [`liar`] | a destination that lies |
//! | [`side`], [`pair`] | a process of the program; two of them on their way |
//!
//! `cargo test` runs a small selection. All of it, and how it went in figures:
//!
//!     PAGURO_TEST_FAILURES=full cargo test -p paguro --test failures -- --nocapture \
//!         --test-threads 1
//!
//! A number instead of `full` is the number of kills; from fifty on all else is tried, too. `PAGURO_TEST_SEED` brings a run back, as far as clocks allow.

mod cuts;
mod handed;
mod hostile;
mod kills;
mod liar;
mod links;

mod pair;
mod relay;
mod rng;
mod side;

/// How much is tried.
fn kills() -> usize {
    match std::env::var("PAGURO_TEST_FAILURES").as_deref() {
        Ok("full") => 100,
        Ok(number) => number
            .parse()
            .expect("PAGURO_TEST_FAILURES: full, or a number"),
        Err(_) => 6,
    }
}

/// Whether it is more than the small selection.
fn is_full() -> bool {
    kills() >= 50
}
