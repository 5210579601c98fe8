//! What an operator can do about an error.
//!
//! Libraries say what went wrong and whose fault it is; what to try next depends on the program's
//! options, so only the program knows.
//!
//! **No error is known by its words.** They are for people and may be put better; what is known of an
//! error are its variants, the numbers of the kernel, and where to it was. What the host has run out of is
//! looked for first, in all that an error is made of: whatever failed for that, that is what helps.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use paguro_dirty::FreezeError;
use paguro_dirty::tracker::TrackerError;
use paguro_migration::channel::{Address, ChannelError, TlsError};
use paguro_migration::destination::ReceiveError;
use paguro_migration::handover::HandOverError;
use paguro_migration::restore::RestoreError;
use paguro_migration::source::MigrateError;
use paguro_migration::switchover::Reason;
use paguro_migration::{FileError, SnapshotError, TargetError};
use paguro_pager::SourceError;
use paguro_qmp::ClientError;
use paguro_ram::RamError;
use paguro_vmm::VmError;
use paguro_wire::stream::configuration::MAPPED_RAM;
use paguro_wire::{DecodeError, Fault};
use rustix::io::Errno;

use crate::qmp::capabilities::NO_BACKGROUND_SNAPSHOT;

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

/// Of what the host has run out of, whatever failed for it.
fn of_host(causes: &[Cause<'_>]) -> Option<&'static str> {
    let has = |is: fn(Cause<'_>) -> bool| causes.iter().any(|cause| is(*cause));
    let is_in_doubt = |cause: Cause<'_>| {
        matches!(cause.downcast_ref(), Some(ChannelError::FileInDoubt { .. }))
            || matches!(
                cause.downcast_ref(),
                Some(SnapshotError::FileInDoubt { .. })
            )
    };
    if has(is_in_doubt) {
        return Some(FILE_IN_DOUBT);
    }
    // Who talks to a machine waits in reads that say the same as the host does of threads.
    let is_of_client = has(|cause| cause.is::<ClientError>());
    // Of huge pages there may be none left, and of what may be locked.
    let is_of_memory = has(|cause| cause.is::<RamError>());
    let is_of_engine = has(|cause| {
        cause.is::<MigrateError>()
            || cause.is::<ReceiveError>()
            || cause.is::<SnapshotError>()
            || cause.is::<RestoreError>()
            || cause.is::<FreezeError>()
            || cause.is::<ChannelError>()
            || cause.is::<VmError>()
    });
    let of_errno = |errno| {
        Some(match errno {
            Errno::MFILE => DESCRIPTORS,
            Errno::NFILE => ALL_DESCRIPTORS,
            Errno::AGAIN if is_of_engine && !is_of_client && !is_of_memory => THREADS,
            Errno::NOSPC | Errno::DQUOT if !is_of_memory => ROOM,
            Errno::FBIG => TOO_LARGE,
            _ => return None,
        })
    };
    causes
        .iter()
        .filter_map(|cause| errno_of(*cause))
        .find_map(of_errno)
}

fn errno_of(cause: Cause<'_>) -> Option<Errno> {
    match cause.downcast_ref::<io::Error>() {
        Some(error) => Errno::from_io_error(error),
        None => cause.downcast_ref::<Errno>().copied(),
    }
}

const DESCRIPTORS: &str = "raise the machine's limit of descriptors (`ulimit -n`, LimitNOFILE= of a \
     service)";
const ALL_DESCRIPTORS: &str = "raise the host's limit of open files (`sysctl fs.file-max`), or end what \
     holds so many";
const THREADS: &str = "raise the limit of processes and threads (`ulimit -u`, LimitNPROC= and TasksMax= \
     of a service, pids.max of the cgroup)";

const KERNEL_FAULTS: &str = "run as root, or as root set /proc/sys/vm/unprivileged_userfaultfd to 1; \
     or take it with the machine stopped (`paguro snapshot --stop`, `background-snapshot` off)";
const STOPPED: &str = "take it with the machine stopped: `paguro snapshot --stop`, or \
     `background-snapshot` off";

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

fn of_snapshot(error: &SnapshotError) -> Option<String> {
    let hint = match error {
        SnapshotError::Busy => BUSY,
        SnapshotError::NoKernelFaults | SnapshotError::CannotFreeze(_) => KERNEL_FAULTS,
        SnapshotError::UnseenWriter { .. } | SnapshotError::NoWriteProtect { .. } => STOPPED,
        SnapshotError::File { doing, source, .. } => return of_target(doing, source),
        SnapshotError::FileInDoubt { .. } => FILE_IN_DOUBT,
        _ => return None,
    };
    Some(hint.to_owned())
}

const HAND_OVER: &str = "see what the destination says on its standard error: it must have been \
     started on this host with --incoming and --mode cpr-transfer (or a channel of type cpr), and \
     with the other options of this machine";

/// The guest runs on where it was: what to do before it is tried again.
fn of_migration(error: &MigrateError, to: Option<&Address>) -> Option<String> {
    match error {
        MigrateError::Busy => Some(BUSY.to_owned()),
        MigrateError::Ended(ended) => of_ended(ended.why, ended.cause.as_deref(), to),
        _ => None,
    }
}

const BUSY: &str = "wait for its end (`query-migrate`), or stop it (`migrate_cancel`)";

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

const FILE_IN_DOUBT: &str = "look at the file: if it is new it is whole, as no other ever gets its \
     name; `paguro inspect --verify` says so";

/// Why a file cannot be put where it was to be.
fn of_target(doing: &str, source: &io::Error) -> Option<String> {
    let inside = source.get_ref().and_then(|inside| inside.downcast_ref());
    let hint = match (inside, source.raw_os_error()) {
        (Some(target), _) => of_target_kind(target),
        (None, Some(errno)) => of_target_errno(doing, errno),
        (None, None) => None,
    };
    hint.map(str::to_owned)
}

fn of_target_kind(target: &TargetError) -> Option<&'static str> {
    Some(match target {
        TargetError::Directory => "name a file in it",
        TargetError::Pipe | TargetError::Socket | TargetError::Device | TargetError::Descriptor => {
            "name a file; a stream, which a migration is and a snapshot without `mapped-ram`, goes \
             anywhere: `exec:cat >PATH`, or `fd:` with an inherited descriptor"
        }
        TargetError::ForeignLink => "name the file that it leads to, if that is what you want",
        TargetError::MountPoint => {
            "mount the directory instead of the file, or name another file: one that something is \
             mounted on cannot be replaced"
        }
        TargetError::Irreplaceable => {
            "name another file; this one belongs to somebody else in a directory such as /tmp, or is \
             immutable or append-only (`lsattr`)"
        }
        TargetError::Moved => "try again: somebody changed a link or a directory meanwhile",
        _ => return None,
    })
}

fn of_target_errno(doing: &str, errno: i32) -> Option<&'static str> {
    Some(match Errno::from_raw_os_error(errno) {
        Errno::NOSPC | Errno::DQUOT => ROOM,
        _ if doing == FileError::SYNC_DIRECTORY => {
            "name a file on another file system: there nothing can be made to outlive a crash"
        }
        Errno::ACCESS | Errno::PERM => {
            "let the user that runs the machine write to that directory, or name another one"
        }
        Errno::ROFS => "name a file on a file system that can be written",
        Errno::NAMETOOLONG => "give a shorter name: most file systems take 255 bytes",
        Errno::NOENT => "make the directory first; a link must lead into one that exists",
        Errno::LOOP => "name the file itself: the links lead in a circle",
        _ => return None,
    })
}

const ROOM: &str = "make room on the file system where it is written, or write to another one; an older \
     file of that name is untouched";

const HANDED_NOTHING: &str = "the guest is at its source, whose `query-migrate` says more; start \
     this machine again, and move the guest with the source's `mode` set to cpr-transfer \
     (`paguro migrate --mode cpr-transfer`)";

/// This machine never ran: what to do before it is tried again.
fn of_arrival(error: &ReceiveError) -> Option<String> {
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
    match is_known || of_host(&causes(&error)).is_some() {
        true => error,
        false => Advised::error(format!("{error:#}"), STORED),
    }
}

const STORED: &str = "look at the command or the file: it must give all that one source sent, and \
     this machine must have the options of that one (--memory, --cpus, --accel, --x-ram-split, \
     --x-dma)";

const CERTIFICATES: &str = "the directory of certificates needs ca-cert.pem, and server-cert.pem \
     with server-key.pem where it is listened, client-cert.pem with client-key.pem where it is \
     connected";

fn of_channel(error: &ChannelError) -> Option<String> {
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

fn of_freeze(error: &FreezeError) -> Option<String> {
    let hint = match error {
        FreezeError::Unprotectable { .. } => {
            "restore with --restore-mode lazy instead of map; or save it with the machine stopped: \
             `paguro snapshot --stop`, or `background-snapshot` off"
        }
        FreezeError::Buffer { .. } => {
            "set a smaller `x-paguro-page-buffer` (`paguro snapshot --page-buffer`)"
        }
        FreezeError::BufferTooSmall { .. } => {
            "set a larger `x-paguro-page-buffer` (`paguro snapshot --page-buffer`) or a smaller \
             `x-paguro-chunk-size`"
        }
        FreezeError::UnseenWriter { .. }
        | FreezeError::Discarded { .. }
        | FreezeError::ProtectionLost { .. } => STOPPED,
        FreezeError::Mergeable { .. } => {
            "keep guest RAM out of KSM: no MADV_MERGEABLE, PR_SET_MEMORY_MERGE or systemd's MemoryKSM=; \
             or save it stopped"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn of_restore(error: &RestoreError) -> Option<String> {
    let hint = match error {
        RestoreError::Blocks { .. } => {
            "leave out the options that describe RAM: the snapshot file knows it"
        }
        RestoreError::Changed { .. } | RestoreError::Page(SourceError::Changed { .. }) => IN_USE,
        RestoreError::Page(SourceError::Read { .. } | SourceError::Silent { .. }) => {
            "see to the disk or the server where the file is, and try again; --read-retry says how \
             long a read is tried again"
        }
        RestoreError::Damaged { .. } | RestoreError::Page(_) => {
            "copy the file again; `paguro inspect --verify` names all that is damaged"
        }
        RestoreError::Faults(_) | RestoreError::NoKernelFaults => {
            "use --restore-mode eager, which needs no userfaultfd; or run as root, or as root set \
             /proc/sys/vm/unprivileged_userfaultfd to 1"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

const IN_USE: &str = "write another snapshot to a file of its own and rename it over this one, as \
     `paguro snapshot` does: a file must not be written to while a machine runs from it";

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

fn of_file(error: &DecodeError) -> Option<String> {
    if let DecodeError::NoFixedPlaces { .. } = error {
        let stream = "it is a machine that was migrated to a file: `paguro run --incoming file:FILE`, \
                      with the options of that machine, brings it back";
        return Some(stream.to_owned());
    }
    let hint = match error.fault() {
        Fault::NotASnapshot => "name a file that `paguro snapshot` or QEMU (mapped-ram) wrote",
        Fault::Truncated => "copy the file again, or take a new snapshot: its end is missing",
        Fault::Corrupt => "copy the file again; `paguro inspect --verify` checks all of it",
        Fault::Unsupported => "use the version that wrote the file, or take a new snapshot",
        _ => return None,
    };
    Some(hint.to_owned())
}

const TOO_LARGE: &str = "raise the machine's limit of file size (`ulimit -f`, LimitFSIZE= of a \
     service), or write to a file system that takes larger files; the older file of that name is \
     untouched";

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
mod tests {
    use std::sync::Arc;

    use anyhow::Context;
    use paguro_migration::Ended;

    use super::*;

    #[test]
    fn the_first_cause_with_advice_gives_it() {
        let full = io::Error::from(ErrorKind::StorageFull);
        let error = Err::<(), _>(full).context("cannot write").unwrap_err();
        assert!(hint(&error).unwrap().contains("make room"));
        let advised = Advised::error("no", "do this");
        assert_eq!(
            hint(&advised.context("outside")).as_deref(),
            Some("do this")
        );
        assert_eq!(hint(&anyhow::anyhow!("no idea")), None);
    }

    fn at(text: &str) -> Address {
        text.parse().unwrap()
    }

    /// Of a migration to there that was given up for this.
    fn of_source(cause: MigrateError, why: Reason, to: &str) -> Option<String> {
        let cause = Some(Arc::new(cause));
        hint_to(&MigrateError::Ended(Ended { why, cause }).into(), &at(to))
    }

    fn channel(doing: &'static str, source: io::Error) -> MigrateError {
        let address = "h".to_owned();
        MigrateError::Channel(ChannelError::Io {
            doing,
            address,
            source,
        })
    }

    fn file(source: io::Error) -> MigrateError {
        let (doing, path) = ("create", "/x/y".into());
        MigrateError::Channel(ChannelError::File {
            doing,
            path,
            source,
        })
    }

    fn write(source: io::Error) -> MigrateError {
        let doing = "write to";
        MigrateError::Broken { doing, source }
    }

    /// What failed, with which number of the kernel, on the way to where: what helps.
    #[test]
    fn a_hint_is_of_the_cause_whatever_it_is_wrapped_in() {
        type Failed = fn(io::Error) -> MigrateError;
        type Row<'a> = (Errno, &'a [&'a str], &'a [Failed], Option<&'a str>);
        let connect: Failed = |source| channel(ChannelError::CONNECT, source);
        let find: Failed = |source| channel(ChannelError::FIND_HOST, source);
        let run: Failed = |source| channel("run", source);
        let thread: Failed = MigrateError::Thread;
        let (sockets, file_at, exec) = (
            &["tcp:h:1", "unix:/x/y", "vsock:2:1"][..],
            &["file:/x/y"][..],
            &["exec:cat"][..],
        );
        let all = &[sockets, file_at, exec].concat()[..];
        let destination = Some("see what the destination says");
        let command = Some("see what the command says");
        let first = Some("start the destination first");
        let rows: [Row<'_>; 18] = [
            (
                Errno::MFILE,
                all,
                &[connect, find, run, file, write, thread],
                Some("ulimit -n"),
            ),
            (
                Errno::NFILE,
                all,
                &[connect, find, run, file, write, thread],
                Some("fs.file-max"),
            ),
            (
                Errno::AGAIN,
                all,
                &[connect, find, run, thread],
                Some("pids.max"),
            ),
            (Errno::NOSPC, all, &[file, write], Some("make room")),
            (Errno::DQUOT, all, &[file, write], Some("make room")),
            (Errno::FBIG, all, &[file, write], Some("ulimit -f")),
            (Errno::CONNREFUSED, sockets, &[connect], first),
            (Errno::NOENT, &["unix:/x/y"], &[connect], first),
            (Errno::HOSTUNREACH, sockets, &[connect, find], first),
            (Errno::PIPE, sockets, &[write], destination),
            (Errno::CONNRESET, sockets, &[write], destination),
            (Errno::PIPE, exec, &[write], command),
            (Errno::NOENT, exec, &[run], None),
            (Errno::NOENT, file_at, &[file], Some("make the directory")),
            (Errno::ACCESS, file_at, &[file], Some("let the user")),
            (Errno::ROFS, file_at, &[file], Some("can be written")),
            (Errno::IO, file_at, &[file, write], None),
            (Errno::NOMEM, all, &[thread], None),
        ];
        for (errno, addresses, operations, expected) in rows {
            for (number, to) in operations
                .iter()
                .flat_map(|failed| addresses.iter().map(move |to| (failed, to)))
            {
                let cause = number(errno.into());
                let why = match cause {
                    MigrateError::Thread(_) => Reason::Here,
                    _ => Reason::Channel,
                };
                let what = format!("{errno:?}, {cause:?}, {to}");
                assert_advice(&what, of_source(cause, why, to).as_deref(), expected);
            }
        }
    }

    fn assert_advice(what: &str, hint: Option<&str>, expected: Option<&str>) {
        let is_right = match (hint, expected) {
            (Some(hint), Some(part)) => hint.find(part).is_some(),
            (None, None) => true,
            _ => false,
        };
        assert!(is_right, "{what}: {hint:?}, not {expected:?}");
    }

    #[test]
    fn what_failed_here_is_not_looked_for_at_the_destination() {
        let tls = |source| {
            let peer = "tcp:h:1".to_owned();
            MigrateError::Channel(ChannelError::Tls { peer, source })
        };
        let no_file = TlsError::File {
            path: "/x/ca-cert.pem".into(),
            source: ErrorKind::NotFound.into(),
        };
        let device = io::Error::other(TargetError::Device);
        for (cause, expected) in [
            (tls(no_file), Some("ca-cert.pem")),
            (
                channel(
                    ChannelError::AGREE_ON_TLS,
                    ErrorKind::ConnectionReset.into(),
                ),
                Some("or neither"),
            ),
            (file(device), Some("exec:cat")),
            (file(io::Error::other("no")), None),
        ] {
            let what = format!("{cause:?}");
            assert_advice(
                &what,
                of_source(cause, Reason::Channel, "tcp:h:1").as_deref(),
                expected,
            );
        }
        let lost = of_source(MigrateError::LostPages, Reason::Here, "tcp:h:1");
        assert_advice("lost pages", lost.as_deref(), None);
        let ended = MigrateError::Ended(Ended {
            why: Reason::Abandoned,
            cause: None,
        });
        assert_advice(
            "nothing",
            hint(&ended.into()).as_deref(),
            Some("destination says"),
        );
    }

    #[test]
    fn a_destination_is_told_which_options_differ() {
        let of = |cause, why| {
            let cause = Some(Arc::new(cause));
            ReceiveError::Ended(Ended { why, cause })
        };
        let missing = || ReceiveError::MissingChannels {
            came: 4,
            of: 6,
            within: std::time::Duration::from_secs(10),
        };
        let snapshot = || {
            ReceiveError::Stream(DecodeError::Capabilities {
                offset: 8,
                here: Vec::new(),
                there: vec![MAPPED_RAM.to_owned()],
            })
        };
        let differs = || ReceiveError::Stream(DecodeError::differs("RAM blocks", 0, 1, 2));
        for (cause, why, expected) in [
            (missing(), Reason::Silence, "--multifd-channels"),
            (snapshot(), Reason::OutOfTurn, "paguro restore"),
            (differs(), Reason::OutOfTurn, "--memory"),
            (
                ReceiveError::Thread(Errno::AGAIN.into()),
                Reason::Here,
                "ulimit -u",
            ),
        ] {
            let what = format!("{cause:?}");
            assert_advice(
                &what,
                hint(&of(cause, why).into()).as_deref(),
                Some(expected),
            );
        }
        for (cause, expected) in [
            (snapshot(), "paguro restore"),
            (differs(), "look at the command or the file"),
            (ReceiveError::Thread(Errno::MFILE.into()), "ulimit -n"),
        ] {
            let what = format!("{cause:?}, stored");
            let stored = of_stored(of(cause, Reason::OutOfTurn));
            assert_advice(&what, hint(&stored).as_deref(), Some(expected));
        }
    }

    #[test]
    fn without_kvm_threads_are_offered() {
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied] {
            let error = VmError::NoKvm(io::Error::from(kind)).into();
            assert!(hint(&error).unwrap().contains("--accel threads"));
        }
    }
}
