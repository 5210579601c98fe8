//! Who runs the guest: the control sides of a source and a destination, without I/O.
//!
//! [`Source`] and [`Destination`] take events and say what is to be done. They know no socket, no
//! clock and no thread, so every order of events and failures can be tried, and is: the tests
//! beside them enumerate all that two of them, a network, crashes and an operator can do to each
//! other. What must hold is P6, *never both*: at no moment do both sides run; until the permission
//! to run was sent any failure lets the source run on; from then on nobody runs who does not know
//! that he may; and no side destroys its copy before the other has confirmed.
//!
//! # How it goes
//!
//! ```text
//!  source                                            destination
//!  setup            header, configuration,           setup
//!                   PING 1, the id's PINGs     -->   active
//!  active           RAM, while the guest runs  -->   places pages
//!                   ...
//!  PauseVm
//!  pre-switchover   (waits for migrate-continue, if so configured)
//!  device           RAM's rest, devices        -->
//!  device, Loading  PING 2                     -->   LoadDevices
//!                                              <--   PONG 2        device, Loaded
//!  HoldVm
//!  device, Permitted
//!                   EOF, description           -->   RunVm         device, Starting
//!                                              <--   SHUT 0        completed, Owner
//!  completed, stopped (postmigrate)
//! ```
//!
//! PONG 2 says that all is loaded, EOF is the permission to run and is sent once, SHUT 0 confirms.
//! All of it is QEMU's, in QEMU's order; only the meaning of PONG 2 is ours. Without a return path
//! (a pipe, a command, a file) there is neither PING nor SHUT: a source is done when EOF and what
//! follows were written and synced, and stays stopped. What is in a file is on the disk, but for EOF,
//! before the permission: a disk that fails or hangs does so while a cancel lets the guest run on.
//!
//! Whoever drives the machines hands over one event at a time, and begins the actions in their
//! order before the next. What takes time (stopping, loading, starting, sending) may go on
//! meanwhile, and reports by an event. Both sides tell an operator where they are and what he may
//! do ([`names`]); the bytes that they exchange are in [`outcome`].
//!
//! # What if it fails here?
//!
//! Two sides over a network that loses messages can never both know that they agree. What can be
//! had is that one of them decides, and that the other one does nothing until it knows. So before
//! the permission is sent the source decides, and the destination does nothing. From then on the
//! *destination* decides, and the source does nothing. Each decision is taken in one place, once,
//! and has no way back.
//!
//! **Before all is loaded** (`setup` to `device`): the source has not sent PING 2. It gives up, its
//! guest runs on, it says why. The destination has a part of a guest, which is of no use: it says
//! what happened and ends. Nobody has to reach anybody.
//!
//! **PING 2 is sent, PONG 2 not received.** The permission was not sent, so the source's guest runs
//! on. But the destination may have loaded all: it cannot tell this case from the next one. It
//! waits, paused, whole, [`DestinationState::Waiting`]. The source tells it to forget it, at the
//! end of the stream if that is still there, and over a connection of its own until it has said
//! that it did. A destination that is told this ends with a clear error. If it cannot be told it
//! waits on, and its operator is told that he must know about the source before he says `cont`.
//!
//! **The permission is being sent.** This is the point of no return, and it is passed *before* EOF
//! is given to anybody who could send it: a buffer flushed by somebody else, a socket that failed
//! after it took the byte, would otherwise leave a source that runs on and a destination that may,
//! too. Just before it, whatever would let the guest run on by itself is disarmed
//! ([`SourceAction::HoldVm`]): a pause whose destructor resumes must not meet a panic here.
//! Every [`SourceAction::SendEof`] is followed by exactly one of three words. *Written*: SHUT is
//! awaited. *Withheld*: it is certain that not a byte left; the permission was not sent after all,
//! the guest runs on, and the destination is told as before. *Torn*: anything else. A failure of
//! the channel before that word is known closes the channel and waits for the word.
//!
//! **EOF left, SHUT did not come.** The destination may run, may be loaded and waiting (EOF was
//! lost), or may be dead. The source is in doubt: stopped, whole, `x-paguro-in-doubt` in
//! `query-migrate`. It connects to where it migrated to, says once more that the destination may
//! run, and believes only what it answers: *permitted*, and the source is done; *abandoned*, and
//! its guest runs on. Silence, a refused connection, another process in that place, an answer
//! about another migration mean nothing. It may be tried for ever: asking twice changes nothing.
//!
//! **An operator wants it back.** `migrate_cancel` in doubt makes the source say *forget it*
//! instead. That is not obeyed by a destination that was permitted to run; and one that obeys
//! goes into a state from which nothing leads back, *then* answers. Only that answer lets the
//! source run on. A permission that was sent before and arrives later, over whichever connection,
//! finds a destination that has abandoned its copy, and stays without effect. If the answer is
//! lost, the source stays in doubt and asks again; the destination goes on answering until it
//! knows that it was heard, or nobody asked for long. `migrate-continue` changes the mind back.
//!
//! **The guest does not start** though it may (no vCPU has executed an instruction): the
//! destination says so (SHUT 1, or *cannot run*) and keeps it, because the source may be dead by
//! now. A source that hears it wants its guest back, and asks as above.
//!
//! **SHUT with another code, after EOF.** `PgAb` is our own word for *abandoned*, and brings the
//! guest back. Any other code is only a failure, and leaves the source in doubt: by its source, a
//! stock QEMU finds the code at the very end, from whether reading the stream ever failed, so that
//! a description that broke off behind EOF may make it 1 when the guest runs.
//!
//! **One way, the end does not come**: a command does not end, a disk does not answer. After as long as
//! a silent peer is given ([`SourceEvent::Overdue`]) this is a doubt: `cont` is obeyed, and whatever
//! becomes known later is still believed. `migrate_cancel` closes the channel, before that time too,
//! which ends the command, and leaves the file without a name: where it is then certain that nothing
//! whole is anywhere, the guest runs on.
//!
//! **A side crashes.** Its copy is gone. A source that is in doubt and a destination that waits
//! cannot know it; an operator can, and says `cont` to the survivor, which is obeyed at once. He
//! takes the decision upon himself: `cont` on both sides makes two guests, and one of the tests
//! shows it. What he must have made sure of is in [`Choice::text`]: at the source, that the
//! destination is dead or ended; at the destination, that the source is dead, or stopped and in
//! doubt (it then believes the destination, whatever it wanted before).
//!
//! **Both crash**, or the one that runs does: the guest is lost, as it would be without migration.
//!
//! # With a stock QEMU
//!
//! *As destination* it answers PING 2 when it comes to it, which is after the devices, and waits in
//! `inmigrate` for EOF. It knows no outcome query: if SHUT is lost, the source stays in doubt until
//! its operator has looked.
//!
//! *As source* it sends no PING 2, takes EOF for something that can be taken back, and lets its
//! guest run on if SHUT is lost. No destination can be safe from that by what it sends: whoever
//! needs to be, lets the destination wait paused (`--paused`), looks at the source, and says
//! `cont`. Where the destination sees the channel go before it has started the guest, it waits by
//! itself.

#![forbid(unsafe_code)]

mod actions;
mod destination;
#[cfg(test)]
mod model;
pub mod names;
pub mod outcome;
mod reason;
mod source;

pub use actions::{Actions, Unexpected};
pub use destination::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, DestinationState,
};
pub use names::{Advice, Choice, HeldState, MigrationStatus};
pub use outcome::{Answer, MigrationId, Query, Verb};
pub use reason::Reason;
pub use source::{
    Eof, Source, SourceAction, SourceConfig, SourceEvent, SourceState, Telling, Wanted,
};
