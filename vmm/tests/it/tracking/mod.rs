//! Trackers, each with all that it can lack, under machines that run: what all of them must hold.

mod beginning;
mod destination;
mod every_write;
mod memory;
mod shared;
mod slots;
mod walk;
