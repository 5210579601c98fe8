//! What an operator can do about an error.
//!
//! Libraries say what went wrong and whose fault it is; what to try next depends on the program's
//! options, so only the program knows.

use std::fmt;
use std::io::{self, ErrorKind};

use paguro_dirty::FreezeError;
use paguro_migration::channel::ChannelError;
use paguro_migration::destination::ReceiveError;
use paguro_migration::handover::HandOverError;
use paguro_migration::restore::RestoreError;
use paguro_migration::source::MigrateError;
use paguro_migration::switchover::Reason;
use paguro_migration::{SnapshotError, TargetError};
use paguro_pager::SourceError;
use paguro_qmp::ClientError;
use paguro_ram::RamError;
use paguro_vmm::VmError;
use paguro_wire::{DecodeError, Fault};

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

impl std::error::Error for Advised {}

/// What to do about an error, if anybody knows: the first of its causes for which there is advice.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(of_cause)
}

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

fn of_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
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
        return of_migration(error);
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
        // A machine says itself why it refuses; not what to do here.
        ClientError::Refused { desc, .. } => {
            let freeze = "Background-snapshot is not supported";
            desc.starts_with(freeze).then(|| {
                "save it with the machine stopped: `paguro snapshot --stop`; or run it as root, or \
                 as root set /proc/sys/vm/unprivileged_userfaultfd to 1 before"
                    .to_owned()
            })
        }
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
        SnapshotError::Busy => "wait for its end (`query-migrate`), or stop it (`migrate_cancel`)",
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
fn of_migration(error: &MigrateError) -> Option<String> {
    match error {
        MigrateError::Busy => {
            Some("wait for its end (`query-migrate`), or stop it (`migrate_cancel`)".to_owned())
        }
        MigrateError::Ended(ended) => of_failed_migration(ended.why, &in_words(ended)),
        _ => None,
    }
}

fn of_failed_migration(why: Reason, text: &str) -> Option<String> {
    let hint = match why {
        Reason::Here if text.starts_with("it did not converge") => {
            "give it more time (`x-paguro-convergence-timeout`, --timeout) or bandwidth, slow \
                 the guest down (`auto-converge`, --auto-converge) if nothing does, allow more \
                 `downtime-limit`, or stop it for as long as it takes (`x-paguro-at-timeout` \
                 `switchover`, --at-timeout switchover)"
        }
        Reason::Here
            if text.contains("filled by a restore") || text.contains("still being filled") =>
        {
            "wait until `x-paguro-query-restore` says that it is done (`x-paguro-touch` makes \
                 all of RAM come), or until the snapshot is, and try again"
        }
        Reason::Here if text.starts_with("RAM could not be handed over") => HAND_OVER,
        _ if text.contains("File too large") => TOO_LARGE,
        _ if text.starts_with("the channel to the destination failed: cannot create ")
            || text.starts_with("the channel to the destination failed: cannot sync ")
            || text.starts_with("cannot write to the destination: cannot write /")
            || text.starts_with("cannot sync what was written to the destination")
            || text.starts_with("cannot end the channel to the destination: cannot ") =>
        {
            return of_target_text(text).map(str::to_owned);
        }
        Reason::Channel if text.starts_with("the channel to the destination failed") => {
            return of_no_channel(text).map(str::to_owned);
        }
        // A TLS alert is read as an answer.
        Reason::OutOfTurn if text.starts_with("the destination's answer makes no sense") => {
            "see what the destination says on its standard error; if it speaks TLS, give \
                 --tls-creds here too"
        }
        Reason::Channel | Reason::Silence | Reason::Peer { .. } | Reason::Abandoned => {
            "see what the destination says on its standard error; start it again, with the \
                 options of this machine and --incoming, and try again"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// There was no channel yet, and the destination waits as before if it ever did.
fn of_no_channel(text: &str) -> Option<&'static str> {
    let has = |part: &str| text.contains(part);
    if has("the peer has a certificate for other names") {
        Some("name what its certificate is for: `tls-hostname`, --tls-hostname")
    } else if has("cannot agree on TLS") {
        Some(
            "see what the destination says on its standard error: both sides must be given \
             --tls-creds, or neither",
        )
    } else if has("TLS with") {
        Some(CERTIFICATES)
    } else if has(": cannot connect to") || has(": cannot find") || has(": could not connect to") {
        Some(
            "start the destination first, with the options of this machine and --incoming, and \
             give the address where it waits",
        )
    } else {
        None
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

/// The same of an error that the engine keeps as text.
fn of_target_text(text: &str) -> Option<&'static str> {
    let mut all = TargetError::ALL.iter();
    if let Some(target) = all.find(|target| text.ends_with(&target.to_string())) {
        return of_target_kind(target);
    }
    let (_, errno) = text.rsplit_once("(os error ")?;
    let errno = errno.trim_end_matches(')').parse().ok()?;
    let doing = match text.contains("cannot sync the directory") {
        true => SYNC_DIRECTORY,
        false => "create",
    };
    of_target_errno(doing, errno)
}

const SYNC_DIRECTORY: &str = "sync the directory of";

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
    use rustix::io::Errno;
    Some(match Errno::from_raw_os_error(errno) {
        Errno::NOSPC | Errno::DQUOT => ROOM,
        _ if doing == SYNC_DIRECTORY => {
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

const ROOM: &str =
    "make room, or write to another file system; the older file of that name is untouched";

const HANDED_NOTHING: &str = "the guest is at its source, whose `query-migrate` says more; start \
     this machine again, and move the guest with the source's `mode` set to cpr-transfer \
     (`paguro migrate --mode cpr-transfer`)";

/// This machine never ran: what to do before it is tried again.
fn of_arrival(error: &ReceiveError) -> Option<String> {
    match error {
        ReceiveError::Ended(ended) => of_failed_arrival(ended.why, &in_words(ended)),
        _ => None,
    }
}

fn of_failed_arrival(why: Reason, text: &str) -> Option<String> {
    let hint = match why {
        _ if is_snapshot(text) => "it is a snapshot, which `paguro restore FILE` brings back",
        Reason::OutOfTurn | Reason::Here | Reason::Channel | Reason::Silence
            if text.contains("multifd") =>
        {
            "the guest is at its source; start this machine again, with as many \
                 --multifd-channels and the --multifd-compression that the source is given, and \
                 try again"
        }
        Reason::OutOfTurn | Reason::Here => {
            "the guest runs on at its source; start this machine with the same options as \
                 the source (--memory, --cpus, --accel, --x-ram-split, --x-dma), and try again"
        }
        Reason::Channel | Reason::Silence => {
            "the guest is at its source, whose `query-migrate` says more; start this machine \
                 again, and try again"
        }
        Reason::TakenBack | Reason::Cancelled => {
            "the guest runs on at its source; to move it, start this machine again"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// An error with its reasons, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", in_words(source)),
        None => error.to_string(),
    }
}

/// What is read of a snapshot file as of a stream.
fn is_snapshot(text: &str) -> bool {
    text.contains("in the stream [\"mapped-ram\"]")
}

/// Of a machine that was to come out of a command or a file: no source is there to be asked.
pub fn of_stored(error: ReceiveError) -> anyhow::Error {
    let known = is_snapshot(&in_words(&error));
    let error = anyhow::Error::from(error);
    match known {
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
        ChannelError::Tls { .. } => CERTIFICATES,
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
    let hint = match error.fault() {
        _ if matches!(error, DecodeError::NoFixedPlaces { .. }) => {
            "it is a machine that was migrated to a file: `paguro run --incoming file:FILE`, with \
             the options of that machine, brings it back"
        }
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
    use super::*;
    use anyhow::Context;

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

    fn of_source(why: Reason, text: &str) -> Option<String> {
        of_failed_migration(why, text)
    }

    #[test]
    fn what_failed_here_is_not_looked_for_at_the_destination() {
        let failed = "the channel to the destination failed: ";
        for (text, expected) in [
            (
                "cannot connect to tcp:h:1: refused",
                Some("start the destination first"),
            ),
            (
                "TLS with tcp:h:1 failed: cannot read /x/ca-cert.pem: no",
                Some("ca-cert.pem"),
            ),
            (
                "TLS with tcp:h:1 failed: the peer has a certificate for other names: x",
                Some("--tls-hostname"),
            ),
            (
                "cannot agree on TLS with tcp:h:1: reset",
                Some("or neither"),
            ),
            (
                "cannot create /nosuch/x: No such file or directory (os error 2)",
                Some("make the directory"),
            ),
            ("cannot create /dev/null: it is a device", Some("exec:cat")),
            ("cannot create /x: no", None),
        ] {
            let hint = of_source(Reason::Channel, &format!("{failed}{text}"));
            let right = match (&hint, expected) {
                (Some(hint), Some(part)) => hint.contains(part),
                (None, None) => true,
                _ => false,
            };
            assert!(right, "{text}: {hint:?}");
        }
    }

    #[test]
    fn a_destination_is_told_which_options_differ() {
        let of = |why, text: &str| of_failed_arrival(why, text).unwrap();
        let channels = of(
            Reason::Channel,
            "4 of 6 multifd channels came within 10.0 s",
        );
        assert!(channels.contains("--multifd-channels"), "{channels}");
        let there = "capabilities at 0x8: here [], in the stream [\"mapped-ram\"]";
        let snapshot = of(Reason::OutOfTurn, there);
        assert!(snapshot.contains("paguro restore"), "{snapshot}");
        let size = of(Reason::OutOfTurn, "the two sides differ: RAM block");
        assert!(size.contains("--memory"), "{size}");
        let stored = hint(&of_stored(ReceiveError::BrokenChannel)).unwrap();
        assert!(!stored.contains("at its source"), "{stored}");
    }

    #[test]
    fn without_kvm_threads_are_offered() {
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied] {
            let error = VmError::NoKvm(io::Error::from(kind)).into();
            assert!(hint(&error).unwrap().contains("--accel threads"));
        }
    }
}
