//! What the host has run out of, whatever failed for it.

use std::io;

use paguro_dirty::FreezeError;
use paguro_migration::SnapshotError;
use paguro_migration::channel::ChannelError;
use paguro_migration::destination::ReceiveError;
use paguro_migration::restore::RestoreError;
use paguro_migration::source::MigrateError;
use paguro_qmp::ClientError;
use paguro_ram::RamError;
use paguro_vmm::VmError;
use rustix::io::Errno;

use super::Cause;
use super::saving::FILE_IN_DOUBT;

/// Of what the host has run out of, whatever failed for it.
pub(super) fn of_host(causes: &[Cause<'_>]) -> Option<&'static str> {
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

pub(super) const ROOM: &str = "make room on the file system where it is written, or write to another one; an older \
     file of that name is untouched";

pub(super) const TOO_LARGE: &str = "raise the machine's limit of file size (`ulimit -f`, LimitFSIZE= of a \
     service), or write to a file system that takes larger files; the older file of that name is \
     untouched";
