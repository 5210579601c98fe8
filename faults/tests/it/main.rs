//! The one owner of the userfaultfd, on the real kernel.

mod arrivals;
mod changes;
mod common;
mod elsewhere;
mod order;
mod pieces;
mod placing;
mod registering;
