//! A SIGBUS that is not ours: it goes to whoever had the signal before.
//!
//! A VMM may have a handler of its own, for other memory that can fail. It is called as the kernel would
//! have called it, but for the stack: ours runs on the thread's own, and so does it. What the default or
//! the wish to ignore it means depends on where the signal comes from. One that an access has raised
//! cannot be ignored: the kernel ends the process, and so it is here. One that was sent can.

use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, siginfo_t};

/// "A memory error was found, and nobody is in its way": sent, not raised by an access. Not in libc.
const BUS_MCEERR_AO: c_int = 5;

type Plain = extern "C" fn(c_int);
pub(super) type WithInfo = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// What became of the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// A handler that wanted to be called once only was.
static IS_SPENT: AtomicBool = AtomicBool::new(false);

/// Has `handler` called for a SIGBUS, and keeps what was before. To be called once.
pub(super) fn install(handler: WithInfo) {
    // SAFETY: an all-zero `sigaction` is valid, and each call has the ones it reads or writes. The handler
    // only does what is allowed in one. What was before is kept first, so that it finds it.
    unsafe {
        let mut before: libc::sigaction = zeroed();
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
        let _ = BEFORE.set(before);
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
    }
}

/// In a handler, with what it was given.
pub(super) fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let code = unsafe { (*info).si_code };
    // What others send is zero or less.
    let is_raised = code > 0 && code != BUS_MCEERR_AO;
    match BEFORE.get() {
        Some(before) if is_handler(before) => call(before, signal, info, context),
        Some(before) if before.sa_sigaction == libc::SIG_IGN && !is_raised => {}
        _ => end(is_raised),
    }
}

fn is_handler(before: &libc::sigaction) -> bool {
    let once = before.sa_flags & libc::SA_RESETHAND != 0;
    let is_spent = once && IS_SPENT.swap(true, Ordering::AcqRel);
    ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) && !is_spent
}

/// The default: the process ends.
fn end(is_raised: bool) {
    // SAFETY: both are allowed in a handler, and take numbers.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        // An access is made again when this returns; what was sent is sent again, and is blocked until
        // then.
        if !is_raised {
            libc::raise(libc::SIGBUS);
        }
    }
}

fn call(before: &libc::sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let has = |flag| before.sa_flags & flag != 0;
    // SAFETY: sets of signals that live here, of this thread only; allowed in a handler. The address is
    // one that the process gave the kernel for a handler of the kind that its flags say, and it gets what
    // such a handler gets.
    unsafe {
        let mut blocked = before.sa_mask;
        if has(libc::SA_NODEFER) {
            libc::sigdelset(&raw mut blocked, signal);
        }
        let mut now: libc::sigset_t = zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut now);
        if has(libc::SA_NODEFER) {
            let mut own: libc::sigset_t = zeroed();
            libc::sigaddset(&raw mut own, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const own, null_mut());
        }
        if has(libc::SA_SIGINFO) {
            let handler: WithInfo = std::mem::transmute(before.sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: Plain = std::mem::transmute(before.sa_sigaction);
            handler(signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const now, null_mut());
    }
}
