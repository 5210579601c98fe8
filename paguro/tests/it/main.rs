//! The program as its users see it: commands, the control socket, files.

mod away;
mod befallen;
mod cli;
mod demo;
mod files;
mod handing_over;
mod handing_over_fails;
mod killed;
mod machine;
mod matrix;
mod memory;
mod migrating;
mod migrating_fails;
mod priorities;
mod protocol;
mod python;
mod qemu_words;
mod qmp;
mod raw;
mod restoring;
mod signals;
mod snapshots;
mod socket;
mod terms;
mod unread;
mod ways;
