//! A guest that did not move, and what it was to move over.

use std::io::{self, ErrorKind};

use paguro_dirty::tracker::TrackerError;
use paguro_migration::channel::{Address, ChannelError, TlsError};
use paguro_migration::destination::ReceiveError;
use paguro_migration::handover::HandOverError;
use paguro_migration::source::MigrateError;
use paguro_migration::switchover::Reason;
use paguro_wire::DecodeError;
use paguro_wire::stream::configuration::MAPPED_RAM;

use super::host::of_host;
use super::saving::{FILE_IN_DOUBT, of_target};
use super::{Advised, BUSY, causes};

const HAND_OVER: &str = "see what the destination says on its standard error: it must have been \
     started on this host with --incoming and --mode cpr-transfer (or a channel of type cpr), and \
     with the other options of this machine";

/// The guest runs on where it was: what to do before it is tried again.
pub(super) fn of_migration(error: &MigrateError, to: Option<&Address>) -> Option<String> {
    match error {
        MigrateError::Busy => Some(BUSY.to_owned()),
        MigrateError::Ended(ended) => of_ended(ended.why, ended.cause.as_deref(), to),
        _ => None,
    }
}

fn of_ended(why: Reason, cause: Option<&MigrateError>, to: Option<&Address>) -> Option<String> {
    let hint = match cause {
        Some(MigrateError::NotConverging { .. }) => {
            "give it more time (`x-paguro-convergence-timeout`, --timeout) or bandwidth, slow \
             the guest down (`auto-converge`, --auto-converge) if nothing does, allow more \
             `downtime-limit`, or stop it for as long as it takes (`x-paguro-at-timeout` \
             `switchover`, --at-timeout switchover)"
        }
        Some(
            MigrateError::HandOver(HandOverError::Unarrived)
            | MigrateError::Tracker(TrackerError::Watched { .. }),
        ) => {
            "wait until `x-paguro-query-restore` says that it is done (`x-paguro-touch` makes \
             all of RAM come), or until the snapshot is, and try again"
        }
        Some(MigrateError::HandOver(_)) => HAND_OVER,
        Some(MigrateError::Channel(error)) if why == Reason::Channel => {
            return of_no_channel(error);
        }
        // A TLS alert is read as an answer.
        Some(MigrateError::Answer(_)) if why == Reason::OutOfTurn => {
            "see what the destination says on its standard error; if it speaks TLS, give \
             --tls-creds here too"
        }
        Some(MigrateError::Broken { source, .. }) if is_of_file(source) => return None,
        _ => match (why, to) {
            (Reason::Channel | Reason::Silence | Reason::Peer { .. } | Reason::Abandoned, to) => {
                of_other_side(to)?
            }
            _ => return None,
        },
    };
    Some(hint.to_owned())
}

/// A file that is written says itself what is wrong.
fn is_of_file(error: &io::Error) -> bool {
    matches!(
        ChannelError::inside(error),
        Some(ChannelError::File { .. } | ChannelError::FileInDoubt { .. })
    )
}

/// Of who takes what is sent, and did not.
fn of_other_side(to: Option<&Address>) -> Option<&'static str> {
    match to {
        Some(Address::File { .. }) => None,
        Some(Address::Exec(_)) => Some(COMMAND),
        _ => Some(
            "see what the destination says on its standard error; start it again, with the \
             options of this machine and --incoming, and try again",
        ),
    }
}

const COMMAND: &str = "see what the command says on the standard error of this machine, whether it \
     has room where it writes, and try again";

/// There was no channel yet, and the destination waits as before if it ever did.
fn of_no_channel(error: &ChannelError) -> Option<String> {
    match error {
        ChannelError::Tls { .. } => of_channel(error),
        ChannelError::Io { doing, .. } | ChannelError::Timeout { doing, .. } => {
            let hint = match *doing {
                ChannelError::AGREE_ON_TLS => {
                    "see what the destination says on its standard error: both sides must be given \
                     --tls-creds, or neither"
                }
                ChannelError::CONNECT | ChannelError::FIND_HOST => {
                    "start the destination first, with the options of this machine and --incoming, \
                     and give the address where it waits"
                }
                _ => return None,
            };
            Some(hint.to_owned())
        }
        _ => of_channel(error),
    }
}

pub(super) const HANDED_NOTHING: &str = "the guest is at its source, whose `query-migrate` says more; start \
     this machine again, and move the guest with the source's `mode` set to cpr-transfer \
     (`paguro migrate --mode cpr-transfer`)";

/// This machine never ran: what to do before it is tried again.
pub(super) fn of_arrival(error: &ReceiveError) -> Option<String> {
    let ReceiveError::Ended(ended) = error else {
        return None;
    };
    let hint = match (ended.cause.as_deref(), ended.why) {
        (Some(cause), _) if is_snapshot(cause) => {
            "it is a snapshot, which `paguro restore FILE` brings back"
        }
        (
            Some(
                ReceiveError::NoMultifd
                | ReceiveError::MissingChannels { .. }
                | ReceiveError::Channels { .. }
                | ReceiveError::MissingPackets { .. }
                | ReceiveError::MoreChannels { .. }
                | ReceiveError::BrokenChannel
                | ReceiveError::SilentChannels(_),
            ),
            Reason::OutOfTurn | Reason::Here | Reason::Channel | Reason::Silence,
        ) => {
            "the guest is at its source; start this machine again, with as many \
             --multifd-channels and the --multifd-compression that the source is given, and \
             try again"
        }
        (_, Reason::OutOfTurn | Reason::Here) => {
            "the guest runs on at its source; start this machine with the same options as \
             the source (--memory, --cpus, --accel, --x-ram-split, --x-dma), and try again"
        }
        (_, Reason::Channel | Reason::Silence) => {
            "the guest is at its source, whose `query-migrate` says more; start this machine \
             again, and try again"
        }
        (_, Reason::TakenBack | Reason::Cancelled) => {
            "the guest runs on at its source; to move it, start this machine again"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// What is read of a snapshot file as of a stream.
fn is_snapshot(error: &ReceiveError) -> bool {
    match error {
        ReceiveError::Stream(DecodeError::Capabilities { there, .. }) => {
            there.iter().any(|name| name == MAPPED_RAM)
        }
        ReceiveError::Ended(ended) => ended.cause.as_deref().is_some_and(is_snapshot),
        _ => false,
    }
}

/// Of a machine that was to come out of a command or a file: no source is there to be asked.
pub fn of_stored(error: ReceiveError) -> anyhow::Error {
    let is_known = is_snapshot(&error);
    let error = anyhow::Error::from(error);
    if is_known || of_host(&causes(&error)).is_some() {
        error
    } else {
        Advised::error(format!("{error:#}"), STORED)
    }
}

const STORED: &str = "look at the command or the file: it must give all that one source sent, and \
     this machine must have the options of that one (--memory, --cpus, --accel, --x-ram-split, \
     --x-dma)";

const CERTIFICATES: &str = "the directory of certificates needs ca-cert.pem, and server-cert.pem \
     with server-key.pem where it is listened, client-cert.pem with client-key.pem where it is \
     connected";

pub(super) fn of_channel(error: &ChannelError) -> Option<String> {
    let hint = match error {
        ChannelError::Io { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            "name another port (0 lets the kernel choose one) or path, or end who listens there; a \
             machine that came in listens for a minute more"
        }
        ChannelError::Io {
            doing: ChannelError::CONNECT,
            ..
        } => "start who is to take it first, and give the address where it waits",
        ChannelError::Tls { source, .. } => match source {
            TlsError::OtherNames(_) => {
                "name what its certificate is for: `tls-hostname`, --tls-hostname"
            }
            TlsError::NoNames(_) => {
                "issue the certificate of the side that is connected to anew, with its name or IP \
                 address as subjectAltName: a common name (CN) is not looked at"
            }
            _ => CERTIFICATES,
        },
        ChannelError::Command { .. } => COMMAND,
        ChannelError::File { doing, source, .. } => return of_target(doing, source),
        ChannelError::FileInDoubt { .. } => FILE_IN_DOUBT,
        ChannelError::Silent { .. } => {
            "see what keeps the other side from taking what it is sent; `x-paguro-silence` says how \
             long it may, 0 for ever"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
