//! The door: what comes in, and what each of it is.
//!
//! The first four bytes of a connection say what it is: `QEVM` a stream, `PgOQ` a source that asks
//! for the outcome of its migration, `11 22 33 44` a multifd channel. Anything else is shut out, and
//! the door stays open: whoever scans ports must not cost anybody a migration. A connection that is
//! the only one there can be (a pipe, a command, a file) is the stream, or nothing.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use paguro_wire::stream::header::MAGIC;
use paguro_wire::stream::multifd;

use super::{Arrival, ReceiveError, lane, stream};
use crate::channel::{Channel, ChannelError, Listener, Reader, Stop};
use crate::machine::Recipient;
use crate::switchover::outcome::{MESSAGE_BYTES, QUERY_MAGIC};
use crate::switchover::{DestinationEvent, Query};

const MULTIFD_MAGIC: [u8; 4] = multifd::MAGIC.to_be_bytes();

/// Connections that are talked to at the same time; more wait.
const GUESTS: usize = 32;

/// Lets connections in until it is stopped, each in a thread of its own.
pub(super) fn keep<'s, 'e>(
    scope: &'s Scope<'s, 'e>,
    arrival: &'e Arrival,
    recipient: &'e dyn Recipient,
    listener: Listener,
    stop: &Stop,
) {
    let inside = Arc::new(AtomicUsize::new(0));
    let only_one = !arrival.options.return_path;
    loop {
        let channel = match listener.accept(None) {
            Ok(channel) => channel,
            Err(_) if stop.is_stopped() => return,
            Err(error) if error.is_stop() => return,
            // There was one, and there will be no other.
            Err(ChannelError::Unsuitable { .. }) => return,
            Err(error @ (ChannelError::Tls { .. } | ChannelError::Timeout { .. })) => {
                let error = crate::error::with_causes(&error);
                tracing::warn!(%error, "somebody was not let in");
                continue;
            }
            Err(error) => return arrival.fail(ReceiveError::Channel(error)),
        };
        let guests = GUESTS + arrival.lanes.count();
        if inside.fetch_add(1, Ordering::AcqRel) >= guests {
            inside.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(peer = channel.peer(), "too many connections at once");
            continue;
        }
        let inside = inside.clone();
        let body = move || {
            let guest = AssertUnwindSafe(|| meet(arrival, recipient, channel, only_one));
            if catch_unwind(guest).is_err() {
                arrival.fail(ReceiveError::Bug);
            }
            inside.fetch_sub(1, Ordering::AcqRel);
        };
        let spawned = paguro_sys::NewThread::named("receive".to_owned()).spawn_scoped(scope, body);
        if let Err(error) = spawned {
            arrival.fail(ReceiveError::Thread(error));
        }
        if only_one {
            return;
        }
    }
}

/// Finds out what a connection is.
fn meet(arrival: &Arrival, recipient: &dyn Recipient, channel: Channel, only_one: bool) {
    let peer = channel.peer().to_owned();
    let handle = channel.handle();
    let (mut reader, writer) = channel.split();
    let mut first = [0; 4];
    let met = reader.read_exact(&mut first);
    match met.map(|()| first) {
        Ok(MAGIC) => {
            let mut inner = arrival.lock();
            let taken = arrival.deliver(&mut inner, DestinationEvent::Connected);
            if taken.is_err() {
                tracing::warn!(%peer, "a second source was not let in");
                return;
            }
            inner.channel = Some(handle);
            inner.back = Some(writer);
            drop(inner);
            let read = stream::read(arrival, recipient, &first, &mut reader);
            match read {
                Ok(()) => finish(reader),
                Err(error) => arrival.fail(error),
            }
        }
        Ok(MULTIFD_MAGIC) if arrival.lanes.count() > 0 => {
            lane::receive(arrival, first, reader, handle, &peer);
        }
        Ok(QUERY_MAGIC) if !only_one => {
            let asker = Arc::new(Mutex::new(writer));
            while let Some(query) = query(&mut reader, first) {
                arrival.asked(query, &asker);
                first = match next(&mut reader) {
                    Some(first) => first,
                    None => return,
                };
            }
        }
        Ok(found) if only_one => arrival.fail(ReceiveError::Unsupported {
            what: format!("a stream that begins with {found:02x?}"),
        }),
        Ok(found) => tracing::warn!(%peer, "what begins with {found:02x?} was not let in"),
        Err(error) if only_one => {
            let what = "the first bytes";
            let offset = 0;
            let source = error;
            arrival.fail(ReceiveError::Stream(paguro_wire::DecodeError::Read {
                what,
                offset,
                source,
            }));
        }
        Err(error) => tracing::warn!(%peer, %error, "a connection said nothing"),
    }
}

/// The stream is whole; how a command ended is part of that.
fn finish(reader: Reader) {
    if let Err(error) = reader.finish()
        && !ChannelError::inside(&error).is_some_and(ChannelError::is_stop)
    {
        let error = crate::error::with_causes(&error);
        tracing::warn!(%error, "the channel of a whole stream did not end well");
    }
}

fn next(reader: &mut Reader) -> Option<[u8; 4]> {
    let mut first = [0; 4];
    reader.read_exact(&mut first).ok().map(|()| first)
}

fn query(reader: &mut Reader, first: [u8; 4]) -> Option<Query> {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..4].copy_from_slice(&first);
    reader.read_exact(&mut bytes[4..]).ok()?;
    Query::decode(&bytes)
        .inspect_err(|error| tracing::warn!(%error, "a query that is none"))
        .ok()
}
