//! Blocks, discards and populating, on real memory.

mod discards;
mod guest_memory;
mod handed;
mod populating;
mod resizing;
