//! A guest that was not saved or does not come back, and its file.

use std::io;

use paguro_dirty::FreezeError;
use paguro_migration::restore::RestoreError;
use paguro_migration::{FileError, SnapshotError, TargetError};
use paguro_pager::SourceError;
use paguro_wire::{DecodeError, Fault};
use rustix::io::Errno;

use super::BUSY;
use super::host::ROOM;

const KERNEL_FAULTS: &str = "run as root, or as root set /proc/sys/vm/unprivileged_userfaultfd to 1; \
     or take it with the machine stopped (`paguro snapshot --stop`, `background-snapshot` off)";
const STOPPED: &str = "take it with the machine stopped: `paguro snapshot --stop`, or \
     `background-snapshot` off";

pub(super) fn of_snapshot(error: &SnapshotError) -> Option<String> {
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

pub(super) const FILE_IN_DOUBT: &str = "look at the file: if it is new it is whole, as no other ever gets its \
     name; `paguro inspect --verify` says so";

/// Why a file cannot be put where it was to be.
pub(super) fn of_target(doing: &str, source: &io::Error) -> Option<String> {
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

pub(super) fn of_freeze(error: &FreezeError) -> Option<String> {
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

pub(super) fn of_restore(error: &RestoreError) -> Option<String> {
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

pub(super) fn of_file(error: &DecodeError) -> Option<String> {
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
