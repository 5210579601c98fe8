//! QMP, the protocol by which QEMU is controlled: a server over a table of commands, and a client.
//!
//! The greeting, the negotiation, ids and error classes are QEMU's, so existing clients work. What the
//! commands do is nothing to this crate: a program brings a [`Service`], which has the table of them and
//! is told when a client has gone.
//!
//! | room | for |
//! |---|---|
//! | [`server`] | the socket: one client at a time |
//! | `session` | one client: greeting, negotiation, ids |
//! | [`splitter`] | where one JSON value ends and the next begins |
//! | [`args`] | arguments, strictly |
//! | [`commands`] | what a command is, and those that every table has |
//! | [`events`] | events, and the way out to the client |
//! | [`client`] | the other side |

#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod commands;
mod error;
pub mod events;
mod queue;
pub mod server;
mod session;
pub mod splitter;

pub use args::Args;
pub use client::{Client, ClientError};
pub use commands::{Answer, Command, Service};
pub use error::{Class, QmpError, with_causes};
pub use events::Events;
pub use server::{ListenError, Socket, SocketFile};
