//! Obeying the control side.

use std::io::Write;
use std::sync::PoisonError;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use paguro_wire::globalstate;
use paguro_wire::stream::return_path::Message;

use super::{Arrival, Asker, ReceiveError, door};
use crate::channel::{Handle, Listener, Stop};
use crate::machine::Recipient;
use crate::reason::Ended;
use crate::switchover::{
    Answer, DestinationAction, DestinationEvent, DestinationState, Query, Reason,
};
use crate::time::LAST_WORDS;

/// How often it is looked whether the time to linger is over.
const LOOK: Duration = Duration::from_millis(200);

/// Waits at `listener` for a machine, and lets it in. Blocks until it is decided where it runs and
/// nobody can ask any more; to be called in a thread of its own, while `arrival` is watched and
/// commanded from others.
///
/// On success the machine is this side's; it runs, unless it was paused or is to stay so.
///
/// # Errors
///
/// [`ReceiveError`]: it will never run here.
pub fn receive(
    recipient: &dyn Recipient,
    listener: Listener,
    arrival: &Arrival,
) -> Result<(), ReceiveError> {
    if let Some(multifd) = &arrival.options.mode.multifd() {
        let wrong = multifd.check().err();
        let wrong = wrong.map(|(option, value, rule)| format!("{option} {value} ({rule})"));
        let one_way = (!arrival.options.return_path)
            .then(|| "multifd at an address that can be connected to once".to_owned());
        if let Some(what) = wrong.or(one_way) {
            arrival.fail(ReceiveError::Unsupported { what: what.clone() });
            return Err(ReceiveError::Unsupported { what });
        }
    }
    let stop = listener.stop_handle();
    std::thread::scope(|scope| {
        let (open, recipient_at_door) = (stop.clone(), recipient);
        let keeper = paguro_sys::NewThread::named("receive/door".to_owned()).spawn_scoped(
            scope,
            move || {
                door::keep(scope, arrival, recipient_at_door, listener, &open);
            },
        );
        if let Err(error) = keeper {
            arrival.fail(ReceiveError::Thread(error));
        }
        let mut hanging_up = None;
        let result = obey(recipient, arrival, &stop, |channel| {
            hanging_up = hang_up(scope, channel, last_words(arrival));
        });
        // What the source was told it is to hear: before all is stopped.
        if let Some(Err(_)) = hanging_up.map(ScopedJoinHandle::join) {
            tracing::error!("hanging up panicked: a bug");
        }
        stop.stop();
        // Whoever still reads or asks is let go.
        let mut inner = arrival.lock();
        if let Some(channel) = inner.channel.take() {
            channel.shutdown();
        }
        inner.asker = None;
        inner.back = None;
        arrival.lanes.end();
        result
    })
}

/// Ends a channel whose source was told the outcome; beside whoever obeys, for a source in doubt may come
/// over another one meanwhile and wait for its answer.
fn hang_up<'scope>(
    scope: &'scope Scope<'scope, '_>,
    channel: Handle,
    within: Duration,
) -> Option<ScopedJoinHandle<'scope, ()>> {
    let its = channel.clone();
    let thread = paguro_sys::NewThread::named("receive/hang-up".to_owned())
        .spawn_scoped(scope, move || its.hang_up(within));
    match thread {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::debug!(%error, "hanging up without a thread");
            channel.hang_up(within);
            None
        }
    }
}

fn obey(
    recipient: &dyn Recipient,
    arrival: &Arrival,
    stop: &Stop,
    mut hang_up: impl FnMut(Handle),
) -> Result<(), ReceiveError> {
    loop {
        match next(arrival) {
            Some(DestinationAction::End) => return Err(ended(arrival)),
            Some(DestinationAction::StopListening) => return Ok(()),
            Some(action) => act(recipient, arrival, action, &mut hang_up),
            None if is_over(arrival) => {
                let _ = arrival.on(DestinationEvent::LingerOver);
            }
            None => {}
        }
        let state = arrival.state();
        // One way, nobody can ask.
        if matches!(state, DestinationState::Owner { .. }) && !arrival.options.return_path {
            stop.stop();
            return Ok(());
        }
    }
}

/// Whether it was decided long enough ago.
fn is_over(arrival: &Arrival) -> bool {
    let inner = arrival.lock();
    let decided = matches!(
        inner.destination.state(),
        DestinationState::Owner { .. } | DestinationState::Abandoned { .. }
    );
    // Without an id nobody asks: a stock QEMU does not.
    let nobody = inner.destination.id().is_none();
    decided && (nobody || inner.since.elapsed() >= arrival.options.linger)
}

fn next(arrival: &Arrival) -> Option<DestinationAction> {
    let inner = arrival.lock();
    let (mut inner, _) = arrival
        .changed
        .wait_timeout_while(inner, LOOK, |inner| inner.actions.is_empty())
        .unwrap_or_else(PoisonError::into_inner);
    inner.actions.pop_front()
}

fn act(
    recipient: &dyn Recipient,
    arrival: &Arrival,
    action: DestinationAction,
    hang_up: &mut impl FnMut(Handle),
) {
    tracing::debug!(?action, "destination");
    match action {
        DestinationAction::SendPong(value) => tell(arrival, &Message::Pong(value)),
        DestinationAction::SendShut(code) => {
            tell(arrival, &Message::Shut(code));
            arrival.lock().is_told = true;
        }
        DestinationAction::LoadDevices => load(recipient, arrival),
        DestinationAction::RunVm => {
            let event = match recipient.start() {
                Ok(()) => DestinationEvent::Started,
                Err(error) => {
                    arrival.note(ReceiveError::Machine(error));
                    DestinationEvent::NotStarted
                }
            };
            let _ = arrival.on(event);
        }
        DestinationAction::CloseChannel => {
            arrival.lanes.end();
            let (channel, is_told) = {
                let mut inner = arrival.lock();
                (inner.channel.take(), inner.is_told)
            };
            match (channel, is_told) {
                (Some(channel), true) => hang_up(channel),
                (Some(channel), false) => channel.shutdown(),
                (None, _) => {}
            }
        }
        DestinationAction::Answer(answer) => {
            let asker = arrival.lock().asker.take();
            if let Some((query, asker)) = asker {
                say(&asker, answer, query);
            }
        }
        // Taken out where the connection is at hand.
        DestinationAction::Refuse => {}
        DestinationAction::StopListening | DestinationAction::End => {}
    }
}

/// How long a source that was told the outcome has to end the channel.
fn last_words(arrival: &Arrival) -> Duration {
    arrival.options.silence.unwrap_or(LAST_WORDS)
}

/// On the return path; that it fails is noticed by whoever reads the channel.
fn tell(arrival: &Arrival, message: &Message) {
    let mut bytes = Vec::with_capacity(16);
    message.encode(&mut bytes);
    // Not under the lock: the source may be slow to take it.
    let back = arrival.lock().back.take();
    if let Some(mut back) = back {
        if let Err(error) = back.write_all(&bytes) {
            tracing::debug!(%error, "the source cannot be told");
        }
        arrival.lock().back = Some(back);
    }
}

fn load(recipient: &dyn Recipient, arrival: &Arrival) {
    let devices = std::mem::take(&mut arrival.lock().devices);
    // Without this section it ran, as for QEMU.
    let state = devices
        .iter()
        .find(|section| section.name == globalstate::NAME)
        .map(globalstate::run_state)
        .transpose();
    let ran = match state {
        Ok(state) => state.is_none_or(|state| state == globalstate::RUNNING),
        Err(error) => {
            let error = crate::machine::MachineError::new("read whether it ran", error);
            return arrival.fail(ReceiveError::Machine(error));
        }
    };
    match recipient.load(&devices) {
        Ok(()) => {
            let _ = arrival.on(DestinationEvent::Loaded { ran });
        }
        Err(error) => arrival.fail(ReceiveError::Machine(error)),
    }
}

/// Answers on a connection of its own; who cannot be told asks again.
pub(super) fn say(asker: &Asker, answer: Answer, query: Query) {
    let mut writer = asker.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = writer.write_all(&answer.encode(query.id)) {
        tracing::debug!(%error, "a source that asked cannot be answered");
    }
}

fn ended(arrival: &Arrival) -> ReceiveError {
    let inner = arrival.lock();
    let why = match inner.destination.state() {
        DestinationState::Gone { why } | DestinationState::Abandoned { why } => why,
        _ => Reason::Quit,
    };
    let cause = inner.error.clone();
    ReceiveError::Ended(Ended { why, cause })
}
