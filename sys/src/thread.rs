//! What a thread says about itself.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Lowers the priority of the calling thread for good, so that work in the background leaves vCPUs
/// and fault handling their cores. A host that refuses is left as it is.
pub fn lower_priority() {
    set_nice(5);
}

/// A thread that does urgent things (a vCPU may be waiting for them) and things that can wait.
///
/// What is urgent is done at normal priority: a thread that holds a page and does not get a core
/// keeps the vCPU that wants the page waiting. Going back up takes a privilege; without it the
/// thread stays where it is.
#[derive(Debug)]
pub struct Priority {
    may_rise: bool,
}

impl Priority {
    /// That of the calling thread, for use in it only.
    pub fn of_this_thread() -> Self {
        // Only who may go above normal may come back to it from below.
        let may_rise = set_nice(-1) && set_nice(0);
        Self { may_rise }
    }

    /// From here on nobody waits for this thread.
    pub fn background(&self) {
        if self.may_rise {
            set_nice(19);
        }
    }

    /// From here on somebody may wait for this thread.
    pub fn foreground(&self) {
        if self.may_rise {
            set_nice(0);
        }
    }
}

fn set_nice(nice: i32) -> bool {
    // SAFETY: setpriority takes plain numbers; on Linux who = 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
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
    set_nice(-10);
}

/// Does something while the signals of the calling thread wait, all that can.
pub(crate) fn without_signals<T>(what: impl FnOnce() -> T) -> T {
    /// Puts back what was there, after a panic too.
    struct Before(libc::sigset_t);

    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: a set that was filled, of this thread.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, null_mut()) };
        }
    }

    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both are filled before they are used; sets concern this thread only.
    let before = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        Before(before.assume_init())
    };
    let done = what();
    drop(before);
    done
}
