//! Waits that have an end: what a test waits for comes, or the test fails and says what did not.

use std::io::Write;
use std::panic::Location;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Long enough for any host: only a test that fails waits so long.
pub const IN_VAIN: Duration = Duration::from_secs(60);

/// Looks until there is something to be had; nothing if there is not within [`IN_VAIN`].
pub fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let found @ Some(_) = look() {
            return found;
        }
        let waited = begun.elapsed();
        if waited >= IN_VAIN {
            return None;
        }
        if waited < AT_ONCE {
            std::thread::yield_now();
        } else {
            std::thread::sleep(POLL);
        }
    }
}

/// What does not come soon may need the core.
const AT_ONCE: Duration = Duration::from_millis(1);
const POLL: Duration = Duration::from_micros(200);

/// Waits until something is so.
///
/// # Panics
///
/// If it is not within [`IN_VAIN`].
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let is = wait(|| so().then_some(()));
    assert!(is.is_some(), "waited in vain for {what}");
}

/// Runs `body` in a thread of its own; its result comes through the channel.
pub fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(body()));
    receive
}

/// What a thread came back with, or sent; that it does is the test.
///
/// # Panics
///
/// If nothing came within [`IN_VAIN`], or nothing can come any more.
#[track_caller]
pub fn ends<T>(thread: &Receiver<T>) -> T {
    match thread.recv_timeout(IN_VAIN) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("a thread waits for ever"),
        Err(RecvTimeoutError::Disconnected) => panic!("a thread panicked"),
    }
}

/// As long as it lives, this thread's test has to end, or all of the process does: for what no test can
/// give up, as a lock that it waits for, a page that it touches, or the threads of a scope.
#[derive(Debug)]
pub struct MustEnd {
    _over: Sender<()>,
}

/// The test that calls this ends within ten minutes, and is named if it does not.
#[track_caller]
pub fn must_end() -> MustEnd {
    MustEnd::within(Duration::from_secs(600))
}

impl MustEnd {
    /// So long at most.
    #[track_caller]
    pub fn within(time: Duration) -> Self {
        let (over, is_over) = channel::<()>();
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test").to_owned();
        let place = Location::caller();
        let watch = move || {
            if is_over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                // Not by what tests print, which is kept for when they end.
                let seconds = time.as_secs();
                let _ = writeln!(
                    std::io::stderr(),
                    "{test} ({place}) did not end within {seconds} s, so all does"
                );
                std::process::abort();
            }
        };
        // Where there can be no thread, nobody watches.
        let _ = std::thread::Builder::new().spawn(watch);
        Self { _over: over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_does_not_end_is_named_and_ended() {
        const HANGS: &str = "PAGURO_TESTKIT_HANGS";
        if std::env::var_os(HANGS).is_some() {
            let _ends = MustEnd::within(Duration::from_millis(1));
            loop {
                std::thread::park();
            }
        }
        let name = std::thread::current().name().unwrap().to_owned();
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.env(HANGS, "1").args(["--exact", &name]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("did not end within 0 s"), "{said}");
    }

    #[test]
    fn what_comes_late_is_waited_for() {
        let begun = Instant::now();
        wait_until("a moment", || begun.elapsed() > 20 * AT_ONCE);
        let mut looks = 0..;
        assert_eq!(wait(|| looks.next().filter(|look| *look == 3)), Some(3));
    }

    #[test]
    fn what_ends_is_left_alone() {
        drop(must_end());
        let (_over, is_over) = channel::<()>();
        drop(MustEnd { _over });
        assert_eq!(is_over.recv(), Err(std::sync::mpsc::RecvError));
    }
}
