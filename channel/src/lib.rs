//! Channels: ways for a stream to leave this process and to come in.
//!
//! An [`Address`] says where to. [`Outgoing::connect`] gives the source a [`Channel`];
//! [`Incoming::listen`] gives the destination a [`Listener`], whose channels are accepted one by
//! one. A channel is split into a [`Reader`] and a [`Writer`] for two threads.
//!
//! | | both ways | bounded by the silence | how its end is told |
//! |---|---|---|---|
//! | `tcp:`, `unix:`, `vsock:`, `fd:` of a socket | yes | yes | end of stream; with TLS, an orderly one |
//! | `exec:`, `fd:` of a pipe | no | while a guest stands still for it | end of stream; the command's status |
//! | `file:`, `fd:` of a file | no | no | `file:` gets its name |
//!
//! **Nobody waits for ever.** Whatever blocks here (resolving, connecting, accepting, a handshake,
//! a read, a write, a command's end) ends when its [`Stop`] is stopped or its channel is
//! [shut down](Handle::shutdown), from any thread, and all but the waits for a command or a
//! connection end by themselves when the peer is silent for [`Options::silence`] (a guest that stands
//! still for a command's end is seen to by its source). Cancelling a
//! migration needs no cooperation of the peer. What cannot be interrupted is the disk.
//!
//! **A part is never taken for the whole.** Ending is an act ([`Writer::finish`]); without it the
//! other side sees that something is missing as far as its transport can tell: TLS is cut off, a
//! command is killed before its input ends, a file never gets its name. A plain socket cannot tell,
//! and the stream itself must.

#![forbid(unsafe_code)]

mod address;
mod command;
mod error;
mod fd;
mod halves;
mod incoming;
mod link;
mod listening;
mod outgoing;
mod socket;
mod stop;
mod stream_file;
mod tls;
mod wait;

use std::time::Duration;

pub use address::{Address, AddressError};
pub use error::ChannelError;
pub use halves::{Channel, Handle, Reader, Writer};
pub use incoming::{Incoming, Listener};
pub use outgoing::Outgoing;
pub use stop::Stop;
pub use tls::{TlsError, TlsOptions};

/// How channels are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// For resolving, connecting and TLS together, and for TLS when accepting.
    pub connect_timeout: Duration,
    /// A peer that neither sends nor takes bytes for that long is gone; none: it may be silent for
    /// ever. Whole milliseconds.
    pub silence: Option<Duration>,
    /// TLS with these certificates; refused where the feature `tls` is not built in.
    pub tls: Option<TlsOptions>,
    /// Ends everything that is made with these options.
    pub stop: Stop,
}

impl Options {
    /// 10 s each, no TLS.
    pub fn new(stop: Stop) -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            silence: Some(Duration::from_secs(10)),
            tls: None,
            stop,
        }
    }
}
