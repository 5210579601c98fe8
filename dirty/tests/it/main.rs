//! The freeze on its own: real userfaultfd, pictures compared byte for byte, no files.

mod buffer;
mod changes;
mod discarding;
mod failing;
mod filling;
mod locked_in;
mod no_access;
mod once;
mod rig;
mod sampling;
mod sparse;
