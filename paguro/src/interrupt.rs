//! Signals whose default is that the process dies: each is something to ask about and to wait for, or
//! nothing at all.
//!
//! | | |
//! |---|---|
//! | HUP, INT, QUIT, TERM, XCPU, PWR | end the work in order; but for TERM none does that the process was started with ignored (`nohup`: HUP; a shell's `&` without job control: INT, QUIT) |
//! | ALRM, IO, PIPE, PROF, STKFLT, USR1, USR2, VTALRM, XFSZ, real-time signals | nothing |
//! | ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP | end the process at once: they tell of its own faults (BUS in guest RAM is seen to elsewhere) |
//!
//! A file that grows beyond its limit (XFSZ) is thus an error of whoever writes it, as a full disk is,
//! and not the end of a machine that only wanted to be saved. Signals are caught, not ignored: what is
//! ignored stays so in the commands that the program runs (`exec:`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::Signal;
use signal_hook::iterator::Signals;

use crate::log;

/// Those that end the work.
const ENDING: [Signal; 6] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::XCPU,
    Signal::POWER,
];

/// Those that end nothing. Of SIGPIPE Rust's runtime sees to that.
const IDLE: [Signal; 8] = [
    Signal::ALARM,
    Signal::IO,
    Signal::PROF,
    Signal::STKFLT,
    Signal::USR1,
    Signal::USR2,
    Signal::VTALARM,
    Signal::XFSZ,
];

/// Real-time signals that the C library leaves to programs. Of these the machine takes some for
/// itself, later.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// From when it is made, none of these signals ends the process by itself.
#[derive(Clone, Debug)]
pub struct Interrupts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    came: Mutex<Option<Signal>>,
    changed: Condvar,
}

/// What a second signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The process ends at once, as one that a signal killed: who is in a hurry need not wait for what
    /// the first one began.
    Leaves,
    /// Nothing: what the first one began must come to its end.
    ChangesNothing,
}

impl Interrupts {
    /// Begins to catch them.
    pub fn catch(again: Again) -> io::Result<Self> {
        let ending = ENDING.iter().filter(|signal| !is_left_ignored(**signal));
        let mut signals = Signals::new(ending.chain(&IDLE).map(|signal| signal.as_raw()))?;
        for number in REAL_TIME {
            if let Err(error) = signals.handle().add_signal(number) {
                tracing::debug!(number, %error, "a real-time signal is left as it is");
            }
        }
        let shared = Arc::new(Shared::default());
        let tell = shared.clone();
        let listen = move || {
            for number in signals.forever() {
                let ends = ENDING.iter().find(|signal| signal.as_raw() == number);
                match ends {
                    Some(signal) => tell.end(*signal, again),
                    None => tracing::debug!(number, "a signal that changes nothing"),
                }
            }
        };
        paguro_sys::NewThread::named("signals".to_owned()).spawn(listen)?;
        Ok(Self(shared))
    }

    /// Whether one came that ends the work.
    pub fn came(&self) -> bool {
        self.which().is_some()
    }

    /// Which came first of those that end the work.
    pub fn which(&self) -> Option<Signal> {
        *self.0.came.lock()
    }

    /// Waits so long, or until one comes.
    pub fn wait(&self, at_most: Duration) {
        let mut came = self.0.came.lock();
        let none = |came: &mut Option<Signal>| came.is_none();
        self.0.changed.wait_while_for(&mut came, none, at_most);
    }

    /// Waits until one comes.
    pub fn wait_for_one(&self) {
        let mut came = self.0.came.lock();
        self.0.changed.wait_while(&mut came, |came| came.is_none());
    }
}

impl Shared {
    fn end(&self, signal: Signal, again: Again) {
        let first = self.came.lock().replace(signal);
        match (first, again) {
            (None, _) => {
                self.changed.notify_all();
            }
            (Some(first), Again::ChangesNothing) => *self.came.lock() = Some(first),
            (Some(_), Again::Leaves) => {
                log::say(format_args!("interrupted again: leaving at once"));
                // As shells have it.
                log::exit(128 + signal.as_raw());
            }
        }
    }
}

/// Whether the process was started with a signal ignored, which is to stay so. There must be one that
/// ends it in order: TERM does, whoever ignored it.
fn is_left_ignored(signal: Signal) -> bool {
    signal != Signal::TERM && paguro_sys::is_ignored(signal)
}
