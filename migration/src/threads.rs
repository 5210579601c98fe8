//! The threads of the engine, for a VMM that confines them.
//!
//! [`on_thread_start`] calls the VMM first in each thread that is started here, with its role, so that it can
//! install a filter of system calls:
//!
//! ```no_run
//! # fn filter_of(role: &str) -> Option<()> { Some(()) }
//! # fn install(filter: ()) -> std::io::Result<()> { Ok(()) }
//! paguro_migration::threads::on_thread_start(|role| match filter_of(role) {
//!     Some(filter) => install(filter),
//!     None => Err(std::io::Error::other(format!("no filter for {role}"))),
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Only the files of a saved machine are looked through, by `inspect --verify`, in threads that are not told of:
//! nothing runs then.
//!
//! # A filter is inherited
//!
//! A thread begins with the filters of the one that started it, and adds its own: what either forbids, is
//! forbidden. So the thread that calls the engine needs all that the threads need that it *starts*, besides
//! its own calls and those of the row `start`. A VMM whose API thread shall have a narrow filter calls the
//! engine from another thread, which is made before.
//!
//! # What each asks of the kernel
//!
//! Measured on x86-64 with Linux 6.18 and glibc, with root and without, over tcp and unix sockets, with
//! and without TLS. A test saves in the background, restores in each way, and migrates, each thread under a
//! filter of exactly these calls, which kills. The row `each` goes for all of them; the rows `call/...` are
//! the VMM's own threads that call the functions. To be added are the VMM's callbacks
//! ([`Machine`](crate::machine::Machine), [`restore::Failure`](crate::restore::Failure), the hook), its
//! subscriber of `tracing`, what a panic takes to say so, and, where channels are commands or files,
//! what those take. Older kernels take other ways, and other C libraries other calls.
//!
//! | role | what it does | starts | system calls |
//! |---|---|---|---|
//! | `each` | allocates, waits for locks, ends | | `futex` `mmap` `munmap` `mremap` `mprotect` `madvise` `brk` `getrandom` `sched_yield` `sched_getaffinity` `sigaltstack` `rt_sigprocmask` `rt_sigreturn` `restart_syscall` `close` `fcntl` `exit` |
//! | `start` | starts a thread, and is one until its filter is there | | `clone3` `rseq` `set_robust_list` `gettid` `prctl` `seccomp` |
//! | `faults` | reads events of userfaultfd, copies and releases what is about to be written | | `ppoll` `read` `write` `ioctl` `lseek` `mincore` `setpriority` |
//! | `save` | copies frozen pages into the file | | `openat` `read` `pread64` `pwrite64` `pwritev` `lseek` `statx` `ioctl` `mincore` `getpriority` `setpriority` `clock_nanosleep` |
//! | `save/cancel` | ends what waits, if the snapshot is cancelled | | |
//! | `pager` | fetches pages that somebody waits for | | `pread64` `write` `ioctl` `statx` `setpriority` |
//! | `pager/fill` | fetches the rest | | `openat` `pread64` `write` `ioctl` `statx` `clock_nanosleep` |
//! | `pager/look` | looks after reads that do not return | | |
//! | `restore/read` | reads a file at once | | `pread64` `statx` `clock_nanosleep` |
//! | `restore/watch` | looks after a mapped file | | `ppoll` `read` `write` |
//! | `restore/ask` | asks whether it was changed | | `pread64` `statx` |
//! | `migrate/send` | sends the stream, and all that has no way of its own | | `ppoll` `sendmsg` `recvfrom` `shutdown` `write` `openat` `pread64` `ioctl` `lseek` `mincore` `statx` `clock_nanosleep` |
//! | `migrate/answers` | hears the destination | | `ppoll` `recvfrom` `sendmsg` `shutdown` `write` |
//! | `migrate/lane` | sends pages, one a multifd channel | | `ppoll` `sendmsg` `recvfrom` `shutdown` `write` |
//! | `migrate/ask` | asks the destination how it went, where that is in doubt | `resolve` | `socket` `connect` `getsockopt` `setsockopt` `ppoll` `sendmsg` `recvfrom` `shutdown` `write` `openat` `read` `statx` `ioctl` `eventfd2` |
//! | `resolve` | looks a host name up; modules of `nsswitch.conf` may do more | | `openat` `read` `lseek` `newfstatat` `socket` `connect` `uname` |
//! | `receive` | takes in what comes over a connection | | `ppoll` `recvfrom` `recvmsg` `sendmsg` `shutdown` `write` |
//! | `receive/door` | accepts connections | `receive` | `ppoll` `accept4` `recvfrom` `sendmsg` `shutdown` `eventfd2` `getsockopt` `setsockopt` `write` `ioctl` `openat` `read` `statx` `unlink` |
//! | `receive/hang-up` | ends a connection after last words | | `ppoll` `recvfrom` `shutdown` `write` |
//! | `call/snapshot` | [`snapshot`](crate::snapshot()) | `faults` `save` `save/cancel` | `openat` `read` `pread64` `pwrite64` `lseek` `fstat` `fstatfs` `statx` `fsync` `ftruncate` `linkat` `renameat` `unlinkat` `ioctl` `userfaultfd` `eventfd2` `write` `prctl` `getpriority` `setpriority` `clock_nanosleep` |
//! | `call/restore` | [`RestoreFile::open`](crate::restore::RestoreFile::open), [`fill`](crate::restore::fill), [`restore_ram`](crate::restore::restore_ram) | `faults` `pager` `pager/fill` `pager/look` `restore/read` `restore/watch` `restore/ask` | `openat` `read` `pread64` `lseek` `mincore` `fstat` `statx` `memfd_create` `ftruncate` `ioctl` `userfaultfd` `eventfd2` `rt_sigaction` |
//! | `call/migrate` | [`migrate`](crate::source::migrate) | `resolve` `migrate/send` `migrate/answers` `migrate/lane` `migrate/ask` | `socket` `connect` `getsockopt` `setsockopt` `ppoll` `sendmsg` `recvfrom` `shutdown` `openat` `read` `pread64` `lseek` `mincore` `write` `statx` `ioctl` `userfaultfd` `eventfd2` |
//! | `call/receive` | [`Incoming::listen`](crate::channel::Incoming::listen), [`receive`](crate::destination::receive) | `receive/door` `receive/hang-up` | `socket` `bind` `listen` `getsockname` `setsockopt` `sendmsg` `shutdown` `openat` `read` `statx` `unlink` `write` `eventfd2` |

pub use paguro_sys::{HookTaken, on_thread_start};
