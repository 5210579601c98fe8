//! What a thread says about itself.

/// Lowers the priority of the calling thread, so that copying pages leaves vCPUs and fault
/// handling their cores. A host that refuses is left as it is.
pub fn lower_priority() {
    // SAFETY: setpriority takes plain numbers; on Linux who = 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) };
}

/// Asks for timers that are exact to a microsecond in the calling thread (the default slack of
/// 50 us would be most of what is measured).
pub fn boost_timer() {
    // SAFETY: PR_SET_TIMERSLACK takes a plain number and concerns this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}

/// Raises the priority of the calling thread, whose delay is a vCPU's delay. Without the right to,
/// it stays as it is.
pub fn raise_priority() {
    // SAFETY: as in `lower_priority`.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}
