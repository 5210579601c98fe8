//! What a program does first in each thread that is started here: a filter of system calls, as a rule.
//!
//! Who calls an engine may not make its threads, and what is set for a thread can be set from inside
//! only. So one hook a process is called, in the new thread, before anything of its own. Whoever starts
//! the thread waits for that: a thread without its filter does nothing at all, and is an error of the
//! start, as one is for which there is no room.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Is told the role of the thread that it is called in.
type Hook = Box<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// There is a hook for threads that start.
#[derive(Debug, thiserror::Error)]
#[error("there is a hook for threads that start: a process has one, for good")]
#[non_exhaustive]
pub struct HookTaken;

/// From now on calls `hook` first in each new thread of this engine, with the role of the thread: its
/// name, without the number that tells it from others of its kind (`faults/0`, `migrate/lane2`: `faults`,
/// `migrate/lane`). Roles keep their names within a version of this crate. If the hook fails or panics,
/// the thread is not started, and whoever wanted it gets the error.
///
/// The thread that starts it waits meanwhile, so that a hook must not wait for it; a filter is there in some
/// microseconds. What a filter must permit is more than what the hook's thread was made for: the standard
/// library ends a thread, the allocator asks for memory, and the program's own callbacks and its subscriber
/// of `tracing` run in it.
///
/// # Errors
///
/// [`HookTaken`]: it was called before, maybe by somebody else in this process.
pub fn on_thread_start(
    hook: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static,
) -> Result<(), HookTaken> {
    HOOK.set(Box::new(hook)).map_err(|_| HookTaken)
}

/// In the new thread, and in the one that starts it.
pub(crate) fn halves(name: &str) -> (First, Begun) {
    let Some(hook) = HOOK.get() else {
        return (First(None), Begun(None));
    };
    let (tell, told) = sync_channel(1);
    let role = role_of(name).to_owned();
    (First(Some((hook, role, tell))), Begun(Some(told)))
}

/// What is to be done first.
pub(crate) struct First(Option<(&'static Hook, String, SyncSender<io::Result<()>>)>);

/// Whether it was.
pub(crate) struct Begun(Option<Receiver<io::Result<()>>>);

impl First {
    /// Calls the hook. False: the thread must end, and who started it knows why.
    pub(crate) fn run(self) -> bool {
        let Some((hook, role, tell)) = self.0 else {
            return true;
        };
        let done = hook(&role);
        let goes_on = done.is_ok();
        // Who started it waits.
        let _ = tell.send(done);
        goes_on
    }
}

impl Begun {
    /// Waits until the hook has returned.
    pub(crate) fn wait(self) -> io::Result<()> {
        let panicked = |_| io::Error::other("the hook for threads that start panicked");
        self.0.map_or(Ok(()), |told| told.recv().map_err(panicked)?)
    }
}

fn role_of(name: &str) -> &str {
    let kind = name.trim_end_matches(|it: char| it.is_ascii_digit());
    kind.strip_suffix('/').unwrap_or(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_a_name_without_its_number() {
        for (name, role) in [
            ("faults/0", "faults"),
            ("migrate/lane12", "migrate/lane"),
            ("pager/fill", "pager/fill"),
            ("receive", "receive"),
        ] {
            assert_eq!(role_of(name), role);
        }
    }
}
