//! One multifd channel of a destination, and the thread that sees to it.

use std::sync::atomic::Ordering::Relaxed;

use paguro_wire::DecodeError;
use paguro_wire::input::Input;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::multifd::Init;

use super::direct::Direct;
use super::lanes::{Lanes, Taken};
use super::memory::TakeError;
use super::packets::{self, Packets};
use super::patience::{Clock, Patience};
use super::{Arrival, ReceiveError};
use crate::channel::Handle;
use crate::multifd::Compression;

/// Sees to a connection that began like a multifd channel, to its end.
pub(super) fn receive<R: Direct>(
    arrival: &Arrival,
    first: [u8; 4],
    reader: R,
    handle: Handle,
    peer: &str,
) {
    let (lanes, Some(multifd)) = (&arrival.lanes, arrival.options.mode.multifd()) else {
        return;
    };
    let limit = arrival.options.silence.map(|silence| 3 * silence);
    let (reader, clock) = Patience::new(reader, limit);
    // Pages that go straight to their places go past the buffer; what it holds of those behind a
    // packet's head is copied, so it is no larger than it must be.
    let is_plain = multifd.compression == Compression::None;
    let mut input = if is_plain && reader.is_direct() {
        ChannelInput::with_buffer(reader, paguro_wire::PAGE_BYTES as usize)
    } else {
        ChannelInput::new(reader)
    }
    .behind(&first);
    let channel = match Init::decode(&mut input, &[0; 16], multifd.channels) {
        Ok(init) => init.channel,
        Err(error) => {
            let number = matches!(&error, DecodeError::Corrupt { .. });
            let error = crate::error::with_causes(&error);
            tracing::warn!(%peer, %error, "a multifd channel was not let in");
            if number {
                // Closed, it would make the source give up before anybody could say why.
                lanes.exceed();
            }
            return;
        }
    };
    // From here on it is the main channel that tells whether the source is well.
    handle.set_silence(None);
    if !lanes.enter(channel, handle) {
        return tracing::warn!(%peer, channel, "a multifd channel came twice, or too late");
    }
    let Some(place) = lanes.place() else {
        tracing::warn!(%peer, channel, "no main channel came with a multifd channel");
        return lanes.leave(channel);
    };
    let guard = Broken(lanes);
    let taken = Packets::new(place.memory, place.table, multifd.compression)
        .and_then(|packets| take_all(arrival, channel, packets, &mut input, &clock));
    match taken {
        Ok(()) => std::mem::forget(guard),
        Err(_) if lanes.is_over() => std::mem::forget(guard),
        Err(error) => {
            arrival.fail(match error {
                TakeError::Stream(source) => ReceiveError::Channels { channel, source },
                TakeError::Place(source) => ReceiveError::Place(source),
            });
            drop(guard);
        }
    }
}

/// A channel that ends in another way than it should, by a panic for one, ends all.
struct Broken<'a>(&'a Lanes);

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        self.0.break_all();
    }
}

/// Packet after packet, until all is here.
fn take_all<R: Direct>(
    arrival: &Arrival,
    channel: u8,
    mut packets: Packets,
    input: &mut ChannelInput<R>,
    clock: &Clock,
) -> Result<(), TakeError> {
    let progress = &arrival.progress;
    let mut counted = 0;
    let mut taken = Taken::default();
    loop {
        // However long that takes, as while an operator decides; the end is noticed by the read
        // that follows.
        clock.rest();
        input.at_end(packets::WHAT)?;
        clock.restart();
        let Some(came) = packets.take(input, || arrival.lanes.is_over())? else {
            return Ok(());
        };
        taken.add(Taken {
            packets: 1,
            numbered: came.number.saturating_add(1),
        });
        progress.normal_pages.fetch_add(came.normal, Relaxed);
        progress.zero_pages.fetch_add(came.zero, Relaxed);
        let bytes = input.offset() - counted;
        counted += bytes;
        progress.multifd_bytes.fetch_add(bytes, Relaxed);
        if came.sync && !arrival.lanes.sync(channel, std::mem::take(&mut taken)) {
            return Ok(());
        }
    }
}
