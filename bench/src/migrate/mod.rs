//! `paguro bench migrate`: how fast a guest moves and what it notices, each number next to the limit
//! of the host in the same run.
//!
//! | room | for |
//! |---|---|
//! | [`campaign`] | what is measured, in which order |
//! | [`throughput`] | bytes a second |
//! | [`journey`] | a guest that moves from machine to machine, watched from outside |
//! | [`raw`] | sockets with no engine behind them |
//! | [`codecs`] | zero pages, differences of pages, zstd |
//! | [`figures`] | the numbers, and what JSON has of them |
//! | [`aims`] | the aims, and whether they were reached |
//! | [`table`] | the tables, with a definition over each |

mod aims;
mod campaign;
mod codecs;
mod figures;
mod journey;
mod raw;
mod table;
mod throughput;

pub use aims::judge;
pub use campaign::{Campaign, Part};
pub use figures::Figures;
pub use table::print;
