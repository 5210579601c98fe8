//! What comes first in each thread; a process has one hook, so these tests have a process of their own.

use std::io;
use std::thread::ThreadId;

use paguro_sys::{NewThread, on_thread_start};
use parking_lot::{Mutex, MutexGuard};

static CALLS: Mutex<Vec<(String, ThreadId)>> = Mutex::new(Vec::new());

fn calls() -> MutexGuard<'static, Vec<(String, ThreadId)>> {
    CALLS.lock()
}

fn hook(role: &str) -> io::Result<()> {
    calls().push((role.to_owned(), std::thread::current().id()));
    match role {
        "refused" => Err(io::Error::from_raw_os_error(libc::EPERM)),
        "panics" => std::panic::resume_unwind(Box::new("on purpose")),
        _ => Ok(()),
    }
}

fn named(name: &str) -> NewThread {
    NewThread::named(name.to_owned())
}

/// Whether the hook was called for this role, and in which threads.
fn called(role: &str) -> Vec<ThreadId> {
    let calls = calls();
    let of_role = calls.iter().filter(|(called, _)| called == role);
    of_role.map(|(_, id)| *id).collect()
}

#[test]
fn a_hook_comes_first_in_each_thread_and_can_refuse_it() {
    let before = named("before").spawn(|| ()).unwrap();
    before.join().unwrap();
    on_thread_start(hook).unwrap();
    assert!(on_thread_start(hook).is_err(), "a process has one");
    assert!(called("before").is_empty());

    let body = || (called("worker").len(), std::thread::current().id());
    let (seen, id) = named("worker/3").spawn(body).unwrap().join().unwrap();
    assert_eq!((seen, called("worker")), (1, vec![id]));

    let name = || std::thread::current().name().map(str::to_owned);
    let kept = named("lane7").spawn(name).unwrap().join().unwrap();
    assert_eq!(kept.as_deref(), Some("lane7"));
    assert_eq!(called("lane").len(), 1);

    let never = || panic!("it was refused");
    let refused = named("refused").spawn(never).map(drop).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    let panicked = named("panics").spawn(never).map(drop).unwrap_err();
    assert!(panicked.to_string().contains("panicked"), "{panicked}");
    // The scope does not take it for a panic of its own.
    let there = std::thread::scope(|scope| {
        let refused = ["refused", "panics"].map(|name| named(name).spawn_scoped(scope, never));
        assert!(refused.iter().all(Result::is_err));
        named("scoped/1").spawn_scoped(scope, || 5).unwrap().join()
    });
    assert_eq!(there.unwrap(), 5);
    assert_eq!(called("scoped").len(), 1);
}
