//! How the ends of child processes are told.

use std::io;

/// From now on a child that ended is kept until it is waited for. A parent may have started this
/// program with SIGCHLD ignored, which is inherited, and then the kernel keeps no status.
///
/// To be called before there are children, and by programs only: it changes the whole process.
///
/// # Errors
///
/// The host's; none are known.
pub fn keep_status_of_children() -> io::Result<()> {
    // SAFETY: it takes no pointer, and the default is no handler that could run.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
