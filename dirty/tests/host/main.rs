//! What the host may do to guest RAM behind the engine's back: swap it out, merge its pages. That
//! belongs to all of the host, so it is tried only where `PAGURO_TEST_HOST_WIDE=1` allows it.

#[path = "../it/rig.rs"]
#[allow(dead_code, unused_imports)]
mod rig;

mod merging;
mod swapping;
