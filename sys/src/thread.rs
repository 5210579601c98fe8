//! What a thread says about itself.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::held;
use crate::reserve::has_room;
use crate::thread_start::{First, halves};

/// How much a thread is raised that a vCPU waits for. No real-time class: one that ran away with a
/// core would take the host with it.
const RAISED_NICE: i32 = -10;

/// What a new thread takes of address space: a stack as threads have it by default, and a little that it
/// makes for itself before it begins.
const NEW_THREAD_BYTES: usize = (2 << 20) + (256 << 10);

/// A thread that is to be started, and that can be refused: as [`std::thread::Builder`], but that it looks
/// for room first. A new thread makes a stack for signals before anything else, and the standard library
/// ends the program, with the guest, where address space for that is refused. A first stack may
/// still be there from an earlier thread, so that it comes that far.
///
/// What [`on_thread_start`](crate::on_thread_start) was given comes first in it.
#[derive(Debug)]
pub struct NewThread {
    name: String,
}

impl NewThread {
    /// With a name.
    pub fn named(name: String) -> Self {
        Self { name }
    }

    /// As [`std::thread::Builder::spawn`].
    ///
    /// # Errors
    ///
    /// The host's: it lets this process have no more threads, or no more address space. The program's: its
    /// hook failed in the new thread.
    pub fn spawn<F, T>(self, body: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (first, begun) = halves(&self.name);
        let thread = self.with_room()?.spawn(move || first_then(first, body))?;
        match begun.wait() {
            Ok(()) => Ok(thread),
            Err(error) => {
                // It ends at once. Its panic, if it was one, is told by the error.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// As [`std::thread::Builder::spawn_scoped`].
    ///
    /// # Errors
    ///
    /// As [`NewThread::spawn`].
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        body: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let (first, begun) = halves(&self.name);
        let thread = self
            .with_room()?
            .spawn_scoped(scope, move || first_then(first, body))?;
        match begun.wait() {
            Ok(()) => Ok(thread),
            Err(error) => {
                // As above; and the scope knows then that somebody has taken note.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    fn with_room(self) -> io::Result<Builder> {
        if has_room(NEW_THREAD_BYTES) {
            Ok(Builder::new().name(self.name))
        } else {
            Err(io::Error::from_raw_os_error(libc::ENOMEM))
        }
    }
}

/// The hook, then the work of the thread.
fn first_then<T>(first: First, body: impl FnOnce() -> T) -> T {
    if !first.run() {
        // There is nothing to return. No hook of panics is called.
        std::panic::resume_unwind(Box::new("the hook for threads that start failed"));
    }
    body()
}

/// While it lives the calling thread is raised: a vCPU waits for what it does. Without the right to,
/// it stays as it is.
///
/// Everybody else runs at normal priority. Whoever goes below it gets next to nothing of a core on
/// which somebody else is busy, and what he does takes a hundred times as long.
#[derive(Debug)]
pub struct Raised {
    before: Option<i32>,
    /// For the thread that made it only.
    _here: PhantomData<*const ()>,
}

impl Raised {
    /// From here on.
    pub fn begin() -> Self {
        // SAFETY: getpriority takes plain numbers; on Linux who = 0 means the calling thread, and for
        // that it does not fail.
        let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let rises = before > RAISED_NICE && set_nice(RAISED_NICE);
        Self {
            before: rises.then_some(before),
            _here: PhantomData,
        }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set_nice(before);
        }
    }
}

/// Paces a thread that nobody waits for, where there are more threads than cores: it sleeps half as
/// long as it has used a core, whenever it had to wait for one. So it takes one and a half times as
/// long at most as it would take among equals, and leaves the guest that much. Alone it does not
/// sleep at all. Where the kernel does not count how long threads wait, or after
/// [`Resources::open`](crate::Resources::open), nobody is paced.
#[derive(Debug)]
pub struct Pacer {
    file: Option<File>,
    before: Spent,
}

/// Nanoseconds of a thread: with a core, and waiting for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    ran: u64,
    waited: u64,
}

impl Spent {
    /// Out of `/proc/thread-self/schedstat`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(str::parse);
        Some(Self {
            ran: numbers.next()?.ok()?,
            waited: numbers.next()?.ok()?,
        })
    }

    /// What is to be slept after so much more.
    fn due_after(self, before: Self) -> Duration {
        let ran = self.ran.saturating_sub(before.ran);
        let waited = self.waited.saturating_sub(before.waited);
        // A wait now and then is everybody's: timers, interrupts.
        if waited > ran / 8 {
            Duration::from_nanos(ran / 2).min(LONGEST_SLEEP)
        } else {
            Duration::ZERO
        }
    }
}

/// Who sleeps longer may be wanted meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_millis(5);

impl Pacer {
    /// Of the calling thread, from now on.
    pub fn of_this_thread() -> Self {
        let mut pacer = Self {
            file: held::of_thread("/proc/thread-self/schedstat"),
            before: Spent::default(),
        };
        pacer.before = pacer.spent().unwrap_or_default();
        pacer
    }

    /// How long to sleep now; nothing where it did not have to wait for a core since the last call.
    pub fn due(&mut self) -> Duration {
        let Some(now) = self.spent() else {
            return Duration::ZERO;
        };
        now.due_after(std::mem::replace(&mut self.before, now))
    }

    fn spent(&self) -> Option<Spent> {
        let mut bytes = [0; 96];
        let got = self.file.as_ref()?.read_at(&mut bytes, 0).ok()?;
        Spent::parse(std::str::from_utf8(&bytes[..got]).ok()?)
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

/// Raises the priority of the calling thread for good: its delay is always a vCPU's delay. Without
/// the right to, it stays as it is.
pub fn raise_priority() {
    set_nice(RAISED_NICE);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        // SAFETY: as in `Raised::begin`.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn a_thread_is_raised_for_as_long_as_it_is_waited_for() {
        std::thread::spawn(|| {
            let before = nice();
            let raised = Raised::begin();
            let may = nice() < before;
            let again = Raised::begin();
            drop(again);
            assert_eq!(nice() < before, may);
            drop(raised);
            assert_eq!(nice(), before);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_had_to_wait_for_a_core_sleeps_half_of_what_he_had() {
        let spent = |ran, waited| Spent { ran, waited };
        let due = |ran, waited| spent(ran, waited).due_after(spent(1000, 500)).as_nanos();
        assert_eq!(due(1000, 500), 0);
        assert_eq!(due(9000, 500), 0);
        assert_eq!(due(9000, 1500), 0, "a wait now and then");
        assert_eq!(due(9000, 1501), 4000);
        assert_eq!(due(u64::MAX, u64::MAX), 5_000_000);
        assert_eq!(Spent::parse("12 34 5\n"), Some(spent(12, 34)));
        assert_eq!(Spent::parse(""), None);
        // This one counts, or the kernel does not.
        let mut pacer = Pacer::of_this_thread();
        assert!(pacer.due() <= LONGEST_SLEEP);
    }
}
