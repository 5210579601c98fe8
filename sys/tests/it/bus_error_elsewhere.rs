//! A SIGBUS that is not of watched memory: each case in a process of its own.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use paguro_sys::{BusErrors, Mapping, catch_bus_errors};
use paguro_testkit::alone;

const PAGE: usize = 4096;
const CHILD: &str = "PAGURO_TEST_BUS_ERROR";

/// Two pages, mapped, of a file that keeps only the first.
fn cut_short() -> Arc<Mapping> {
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, &[1; 2 * PAGE], 0).unwrap();
    let mapping = Mapping::private_file(file.as_fd(), 0, 2 * PAGE).unwrap();
    file.set_len(PAGE as u64).unwrap();
    Arc::new(mapping)
}

/// Runs a case in a process of its own, which ends by that signal or well: what it said, on this side.
fn case(name: &str, ends_by: Option<i32>, inside: impl FnOnce()) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        inside();
        return None;
    }
    let _alone = alone();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("bus_error_elsewhere::{name}")])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(ended.status.signal(), ends_by, "{ended:?}");
    assert_eq!(ended.status.success(), ends_by.is_none(), "{ended:?}");
    Some(String::from_utf8(ended.stderr).unwrap())
}

fn before(handler: usize, flags: i32) {
    // SAFETY: an all-zero `sigaction` is valid; the handlers here only use atomics and system calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1);
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

fn watch() -> (BusErrors, Arc<Mapping>) {
    let watched = cut_short();
    (catch_bus_errors(&watched, Duration::ZERO).unwrap(), watched)
}

fn send() {
    // SAFETY: it takes a number.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
}

static AT: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BLOCKED: AtomicUsize = AtomicUsize::new(0);

fn is_blocked() -> usize {
    // SAFETY: a set that is filled, of this thread.
    unsafe {
        let mut now: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut now);
        libc::sigismember(&raw const now, libc::SIGUSR1) as usize
    }
}

/// As a VMM may mend its own memory.
extern "C" fn mends(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a valid siginfo is what it is to be given.
    let at = unsafe { (*info).si_addr() } as usize;
    AT.store(at, Ordering::SeqCst);
    BLOCKED.store(is_blocked(), Ordering::SeqCst);
    CALLS.fetch_add(usize::from(!context.is_null()), Ordering::SeqCst);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let page = (at & !(PAGE - 1)) as *mut _;
    // SAFETY: the page of the test's own mapping that failed.
    let mapped = unsafe { libc::mmap(page, PAGE, libc::PROT_READ, flags, -1, 0) };
    assert!(mapped != libc::MAP_FAILED);
}

extern "C" fn counts(signal: i32) {
    assert_eq!(signal, libc::SIGBUS);
    CALLS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: bytes that live for ever; allowed in a handler.
    unsafe { libc::write(2, c"called;".as_ptr().cast(), 7) };
}

#[test]
fn a_handler_that_was_there_is_called_as_ever() {
    case("a_handler_that_was_there_is_called_as_ever", None, || {
        before(mends as *const () as usize, libc::SA_SIGINFO);
        let (watch, watched) = watch();
        let other = cut_short();
        assert!(other.is_zero(PAGE, PAGE));
        assert_eq!(AT.load(Ordering::SeqCst) & !(PAGE - 1), other.addr() + PAGE);
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        assert_eq!((BLOCKED.load(Ordering::SeqCst), is_blocked()), (1, 0));
        // What is watched is not its business.
        assert!(watch.lost() == 0 && watched.is_zero(PAGE, PAGE));
        assert_eq!((watch.lost(), CALLS.load(Ordering::SeqCst)), (1, 1));
    });
}

#[test]
fn so_is_one_that_wants_to_know_nothing() {
    case("so_is_one_that_wants_to_know_nothing", None, || {
        before(counts as *const () as usize, 0);
        let _watch = watch();
        (0..3).for_each(|_| send());
        assert_eq!(CALLS.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn one_for_once_is_called_once() {
    let bus = Some(libc::SIGBUS);
    let said = case("one_for_once_is_called_once", bus, || {
        before(counts as *const () as usize, libc::SA_RESETHAND);
        let _watch = watch();
        send();
        send();
    });
    assert!(said.is_none_or(|said| said == "called;"));
}

#[test]
fn a_bus_error_elsewhere_ends_the_process_as_ever() {
    let bus = Some(libc::SIGBUS);
    case(
        "a_bus_error_elsewhere_ends_the_process_as_ever",
        bus,
        || {
            let _watch = watch();
            cut_short().is_zero(PAGE, PAGE);
        },
    );
}

#[test]
fn one_that_was_sent_ends_the_process_too() {
    let bus = Some(libc::SIGBUS);
    case("one_that_was_sent_ends_the_process_too", bus, || {
        before(libc::SIG_DFL, 0);
        let _watch = watch();
        send();
    });
}

#[test]
fn one_that_was_sent_can_be_ignored() {
    case("one_that_was_sent_can_be_ignored", None, || {
        before(libc::SIG_IGN, 0);
        let (watch, watched) = watch();
        send();
        assert!(watched.is_zero(PAGE, PAGE) && watch.lost() == 1);
    });
}

#[test]
fn one_that_an_access_raised_cannot_be_ignored() {
    let bus = Some(libc::SIGBUS);
    case("one_that_an_access_raised_cannot_be_ignored", bus, || {
        before(libc::SIG_IGN, 0);
        let _watch = watch();
        cut_short().is_zero(PAGE, PAGE);
    });
}
