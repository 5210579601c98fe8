//! Panics of the threads that run for a machine.
//!
//! A thread that is gone is at rest for ever, and whoever waits for what it was to do waits as long: a
//! machine with a thread less would stand still, and nobody would know why. So nothing leaves the top
//! of such a thread: a panic is the machine's failure, as any other reason not to go on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::control::Control;
use crate::gate::Passage;

/// Does a thread's work; a panic in it is an error like its others. What the work has in hand is
/// not used again but to be ended.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        Err(format!("its thread {name} panicked: {}", text(&*panic)))
    })
}

/// What it said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<&str>().copied();
    said.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}

/// The life of a thread behind a gate. If it goes wrong the machine fails, of which `who` is a part,
/// and the thread rests until it is to end.
pub(crate) fn live(
    passage: &Passage<'_>,
    control: &Control,
    who: &str,
    life: impl FnOnce() -> Result<(), String>,
) {
    if let Err(why) = caught(life) {
        control.fail(format!("{who}: {why}"));
        passage.wait_end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::control::{Hold, Stages};
    use crate::gate::Gate;
    use crate::state::RunState;

    /// Long enough that only a test that fails gets there.
    const IN_VAIN: Duration = Duration::from_secs(20);

    /// Whether somebody asks the machine to rest.
    #[derive(Default)]
    struct Asked(AtomicBool);

    impl Hold for Asked {
        fn open(&self) {}
        fn wake(&self) {}
        fn close(&self) {
            self.0.store(true, Ordering::Release);
        }
        fn wait_at_rest(&self, _: Instant) -> bool {
            true
        }
    }

    /// What a thread has in hand that panics, and does not give up before it is asked to rest.
    struct Unwinding(Sender<()>, Arc<Asked>);

    impl Drop for Unwinding {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            while !self.1.0.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // Time for the signal to come.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A machine whose one thread panics while a pause waits for it. `spawn` is given what the thread is
    /// to do, and starts it. The machine has failed, for the reason that is returned.
    pub(crate) fn failure_of(
        thread: Arc<dyn Hold>,
        spawn: impl FnOnce(Arc<Control>, Box<dyn FnOnce() + Send>),
    ) -> String {
        let (control, asked) = (Arc::new(Control::new()), Arc::new(Asked::default()));
        control.set_stages(Stages {
            vcpus: vec![thread.clone(), asked.clone()],
            devices: Vec::new(),
        });
        let (panics, panicked) = channel();
        let its = Unwinding(panics, asked.clone());
        let body = move || {
            let (_unwinding, number) = (its, 7);
            panic!("table {number} is gone");
        };
        spawn(control.clone(), Box::new(body));
        control.cont().unwrap();
        panicked.recv_timeout(IN_VAIN).unwrap();
        let (paused, pauses) = channel();
        let (pausing, events) = (control.clone(), control.subscribe());
        std::thread::spawn(move || paused.send(pausing.hold().is_ok()));
        let ended = pauses.recv_timeout(IN_VAIN);
        ended.expect("a pause waits for ever for a thread that panicked");
        // Who panicked rests before it says so.
        let deadline = Instant::now() + IN_VAIN;
        while control.failure().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let why = control.failure().expect("nobody says that it panicked");
        assert_eq!(control.run_state(), RunState::InternalError);
        assert!(control.hold().is_err() && control.cont().is_err());
        let failed = crate::Event::Failed {
            reason: why.clone(),
        };
        assert!(events.try_iter().any(|event| event == failed));
        // A second pause does not wait for it either.
        thread.close();
        assert!(thread.wait_at_rest(Instant::now() + IN_VAIN));
        why
    }

    #[test]
    fn a_panic_behind_a_gate_fails_the_machine_and_holds_up_no_pause() {
        let gate = Arc::new(Gate::new());
        let its = gate.clone();
        let why = failure_of(gate.clone(), |control, body| {
            let behind = move || {
                let passage = its.enter();
                live(&passage, &control, "vCPU 1", || {
                    assert!(passage.pass());
                    body();
                    Ok(())
                });
            };
            let named = paguro_sys::NewThread::named("vcpu1".to_owned());
            named.spawn(behind).unwrap();
        });
        assert_eq!(why, "vCPU 1: its thread vcpu1 panicked: table 7 is gone");
        assert!(!gate.wait_gone(Instant::now()));
        gate.end();
        assert!(gate.wait_gone(Instant::now() + IN_VAIN));
    }

    #[test]
    fn what_panics_without_words_is_named_all_the_same() {
        let why = caught::<()>(|| std::panic::panic_any(7)).unwrap_err();
        assert!(why.ends_with(" panicked: without a word"), "{why}");
        assert_eq!(caught(|| Ok(7)), Ok(7));
        assert_eq!(caught::<()>(|| Err("no".to_owned())), Err("no".to_owned()));
    }
}
