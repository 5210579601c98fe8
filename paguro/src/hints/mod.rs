//! What an operator can do about an error.
//!
//! Libraries say what went wrong and whose fault it is; what to try next depends on the program's
//! options, so only the program knows.
//!
//! **No error is known by its words.** They are for people and may be put better; what is known of an
//! error are its variants, the numbers of the kernel, and where to it was. What the host has run out of is
//! looked for first, in all that an error is made of: whatever failed for that, that is what helps.
//!
//! | room | for |
//! |---|---|
//! | [`host`] | what the host has run out of |
//! | [`moving`] | a guest that did not move, and channels |
//! | [`saving`] | a guest that was not saved or does not come back, and files |

mod host;
mod moving;
mod saving;

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use paguro_dirty::FreezeError;
use paguro_migration::SnapshotError;
use paguro_migration::channel::{Address, ChannelError};
use paguro_migration::destination::ReceiveError;
use paguro_migration::handover::HandOverError;
use paguro_migration::restore::RestoreError;
use paguro_migration::source::MigrateError;
use paguro_qmp::ClientError;
use paguro_ram::RamError;
use paguro_vmm::VmError;
use paguro_wire::DecodeError;

use crate::qmp::capabilities::NO_BACKGROUND_SNAPSHOT;
use host::{ROOM, TOO_LARGE, of_host};
use moving::{HANDED_NOTHING, of_arrival, of_channel, of_migration};
use saving::{of_file, of_freeze, of_restore, of_snapshot};

pub use moving::of_stored;

/// An error of the program's own, with what to do about it.
#[derive(Debug)]
pub struct Advised {
    /// What is wrong.
    pub error: String,
    /// What to do.
    pub hint: String,
}

impl Advised {
    /// As an error.
    pub fn error(error: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        let (error, hint) = (error.into(), hint.into());
        Self { error, hint }.into()
    }
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl Error for Advised {}

/// What to do about an error, if anybody knows: the first of its causes for which there is advice.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    advise(error, None)
}

/// The same of a migration to there.
pub fn hint_to(error: &anyhow::Error, to: &Address) -> Option<String> {
    advise(error, Some(to))
}

type Cause<'e> = &'e (dyn Error + 'static);

fn advise(error: &anyhow::Error, to: Option<&Address>) -> Option<String> {
    let causes = causes(error);
    of_host(&causes)
        .map(str::to_owned)
        .or_else(|| causes.iter().find_map(|cause| of_cause(*cause, to)))
}

/// All that it is made of, the outermost first; also what stands for another error, or lies in one of a
/// read or write, and is none of the sources.
fn causes(error: &anyhow::Error) -> Vec<Cause<'_>> {
    let mut causes: Vec<Cause<'_>> = Vec::new();
    for cause in error.chain() {
        causes.push(cause);
        if let Some(SnapshotError::Stream(error)) = cause.downcast_ref() {
            causes.push(&**error);
        }
        if let Some(MigrateError::Ended(ended)) = cause.downcast_ref()
            && let Some(first) = &ended.cause
        {
            causes.push(&**first);
        }
        // What led to it says more than that the guest does not run.
        if let Some(SnapshotError::NotResumed { failed, .. }) = cause.downcast_ref() {
            causes.push(&**failed);
        }
        if let Some(MigrateError::NotResumed { failed, .. }) = cause.downcast_ref()
            && let Some(failed) = failed
        {
            causes.push(&**failed);
        }
        if let Some(ReceiveError::Ended(ended)) = cause.downcast_ref()
            && let Some(first) = &ended.cause
        {
            causes.push(&**first);
        }
        if let Some(inside) = cause.downcast_ref().and_then(ChannelError::inside) {
            causes.push(inside);
        }
    }
    causes
}

/// Of a migration that waits before the switchover.
pub const MOVES_ON: &str = "`paguro migrate --qmp ADDRESS --continue` moves the guest on";

/// Of what goes on without the command that began it.
pub const GOES_ON: &str = "`query-migrate` says how far it is, `migrate_cancel` ends it";

/// A machine stands still because a page cannot be read.
pub const HALTED: &str = "see to the disk or the server where the snapshot file is, then `cont`; \
     --read-retry says how long is waited before the machine is stopped";

fn of_cause(error: Cause<'_>, to: Option<&Address>) -> Option<String> {
    if let Some(advised) = error.downcast_ref::<Advised>() {
        return Some(advised.hint.clone());
    }
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return of_client(error);
    }
    if let Some(error) = error.downcast_ref::<VmError>() {
        return of_machine(error);
    }
    if let Some(error) = error.downcast_ref::<SnapshotError>() {
        return of_snapshot(error);
    }
    if let Some(error) = error.downcast_ref::<MigrateError>() {
        return of_migration(error, to);
    }
    if let Some(error) = error.downcast_ref::<ReceiveError>() {
        return of_arrival(error);
    }
    if error.is::<HandOverError>() {
        return Some(HANDED_NOTHING.to_owned());
    }
    if let Some(error) = error.downcast_ref::<ChannelError>() {
        return of_channel(error);
    }
    if let Some(error) = error.downcast_ref::<FreezeError>() {
        return of_freeze(error);
    }
    if let Some(error) = error.downcast_ref::<RestoreError>() {
        return of_restore(error);
    }
    if let Some(error) = error.downcast_ref::<RamError>() {
        return of_ram(error);
    }
    if let Some(error) = error.downcast_ref::<DecodeError>() {
        return of_file(error);
    }
    error.downcast_ref::<io::Error>().and_then(of_io)
}

fn of_client(error: &ClientError) -> Option<String> {
    match error {
        ClientError::NoSocket { path } => Some(format!(
            "start the machine with --qmp unix:{}",
            path.display()
        )),
        ClientError::Occupied { .. } => {
            Some("disconnect the other QMP client, or take the snapshot through it".to_owned())
        }
        // A machine says itself why it refuses; not what to do here. Over QMP nothing but words comes, of
        // which these are QEMU's too.
        ClientError::Refused { desc, .. } => desc.starts_with(NO_BACKGROUND_SNAPSHOT).then(|| {
            "save it with the machine stopped: `paguro snapshot --stop`; or run it as root, or \
                 as root set /proc/sys/vm/unprivileged_userfaultfd to 1 before"
                .to_owned()
        }),
        _ => None,
    }
}

fn of_machine(error: &VmError) -> Option<String> {
    let hint = match error {
        VmError::NoKvm(source) if source.kind() == ErrorKind::PermissionDenied => {
            "join the group that owns /dev/kvm, or use --accel threads, which needs no KVM"
        }
        VmError::NoKvm(_) => {
            "load the kernel module (kvm_intel, kvm_amd), or use --accel threads, which needs no KVM"
        }
        VmError::OtherMachine { .. } => {
            "leave out the options that describe the machine: the snapshot file knows them"
        }
        VmError::NoSavedTime => "use --clock continue",
        VmError::MissingSection { .. } | VmError::UnknownSection { .. } => {
            "give the options with which the machine was first run; `paguro inspect` shows what \
             the file has"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

const BUSY: &str = "wait for its end (`query-migrate`), or stop it (`migrate_cancel`)";

fn of_ram(error: &RamError) -> Option<String> {
    match error {
        RamError::Map { .. } | RamError::Memfd { .. } => Some(
            "give less --memory; with --pages 2m set pages aside first: `echo N > \
             /proc/sys/vm/nr_hugepages`, N being the RAM in units of 2 MiB"
                .to_owned(),
        ),
        _ => None,
    }
}

fn of_io(error: &io::Error) -> Option<String> {
    // As it comes out of a read or a write.
    if let Some(hint) = ChannelError::inside(error).and_then(of_channel) {
        return Some(hint);
    }
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ROOM,
        ErrorKind::FileTooLarge => TOO_LARGE,
        ErrorKind::ConnectionRefused => "start the machine with --qmp: nobody listens there",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests;
