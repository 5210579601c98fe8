//! What is opened by its path, and can be opened before the paths are gone.
//!
//! A VMM may lock itself in: by `chroot` into a folder without `/proc` and `/dev`, by a filter of
//! system calls without `openat`. What this engine needs of the host then has to be open already:
//!
//! | path | for | without it |
//! |---|---|---|
//! | `/proc/self/pagemap` | which pages exist, which were written | no snapshot, no migration |
//! | `/proc/self/smaps`, `ksm_stat` | memory that somebody else mapped: its page size, and whether it is merged | it is not adopted, and not frozen |
//! | `/dev/userfaultfd` | faults that KVM takes, without privileges | the system call, where it is allowed |
//! | `/proc/self/{status,limits,cgroup,mountinfo}`, `/proc/meminfo`, `/proc/sys/vm/*`, the limits of cgroups | how much memory may be taken | nothing is known to bound it |
//!
//! Only files are kept, and no directory: whoever holds one of those outside is not locked in.
//!
//! Not among them is what is of a thread or descriptor that is yet to come: `/proc/thread-self/schedstat`,
//! which is not opened any more then (a [`Pacer`](crate::Pacer) paces nobody), and `/proc/self/fdinfo`, which is
//! tried (without it the features of an [adopted](crate::Uffd::adopt) userfaultfd are believed). Nor what other
//! crates look into: `/proc/self/fd`, `/proc/self/task`, and the files that they are given.

use std::collections::BTreeMap;
use std::fs::File;

use crate::held::{KSM_STAT, PAGEMAP, SMAPS, USERFAULTFD, open_by_path};
use crate::{Limits, ResourceError, Resources};

impl Resources {
    /// Opens all of the table above that is there. From now on nothing of it is opened by its path
    /// again, in no crate of this engine. To be called before `chroot` and filters of system calls, in
    /// the process that will use it: after a `fork` the child opens by path, as if this had not been called.
    /// A cgroup that the process is moved to later is not looked into.
    ///
    /// Further calls find it open.
    ///
    /// # Errors
    ///
    /// [`ResourceError`]: `/proc` is not there already; nothing was opened then.
    pub fn open() -> Result<&'static Self, ResourceError> {
        let needed = [PAGEMAP, SMAPS].map(|path| open_by_path(path.as_ref()).map(|f| (path, f)));
        let mut files = BTreeMap::new();
        for file in needed {
            let (path, file) = file?;
            files.insert(path.into(), file);
        }
        for path in [KSM_STAT, USERFAULTFD] {
            if let Ok(file) = File::open(path) {
                files.insert(path.into(), file);
            }
        }
        let all = Self::hold(files);
        // What they read is kept.
        let limits = Limits::of_this_process();
        let _ = (
            limits.most_mappings(),
            limits.anonymous_bytes(),
            limits.memory(),
        );
        all.complete();
        Ok(all)
    }
}
