//! A stream on its way out, whoever sends it: a source, or a snapshot.
//!
//! | room | for |
//! |---|---|
//! | `main_channel` | everything that is written to it, in order, through one buffer |
//! | `table` | the blocks of RAM as a stream lists them |
//! | `bandwidth` | how fast the channels take what is written |

mod bandwidth;
mod main_channel;
mod table;

pub(crate) use bandwidth::{Bandwidth, Gathered, Packing};
pub(crate) use main_channel::{BREATH, EofError, Stream};
pub(crate) use table::table_of;
