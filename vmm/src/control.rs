//! Who may run, and who is told.
//!
//! A machine runs if it *shall* (`start`, `cont`, `stop`), *no pause is held*, and it has neither
//! *failed* nor *ended*. A pause is held by the engine for a moment; `stop` and `cont` meanwhile
//! are remembered and take effect when the last pause ends.
//!
//! Two locks. `turn` is held by those who ask for a change and wait for it: one at a time, so
//! that events and changes come in order. `inner` guards the decision and is never held while
//! anything waits, so a thread that finds the machine broken can always say so. Gates are only
//! opened under both, and closed under `inner`.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::state::{Ended, Event, RunState, ShutdownCause, StateError};

/// Somebody who can be held: a gate, or what else obeys these rules. Only `wait_at_rest` waits.
pub(crate) trait Hold: Send + Sync {
    /// Lets it go on, when it looks.
    fn open(&self);
    /// Makes it look, if it rests.
    fn wake(&self);
    /// Stops it.
    fn close(&self);
    /// Waits until it rests. It must not be opened meanwhile.
    fn wait_at_rest(&self);
    /// Has it do nothing for so long, unless it is stopped before.
    fn nap(&self, _length: Duration) {}
}

/// Those that run for a machine. At a pause each stage is at rest before the next is stopped.
#[derive(Default)]
pub(crate) struct Stages {
    pub(crate) vcpus: Vec<Arc<dyn Hold>>,
    pub(crate) devices: Vec<Arc<dyn Hold>>,
}

pub(crate) struct Control {
    turn: Mutex<()>,
    inner: Mutex<Inner>,
    ended: Condvar,
    stages: OnceLock<Stages>,
}

struct Inner {
    wanted: bool,
    holds: u32,
    running: bool,
    stopped_as: RunState,
    /// Its RAM was handed over.
    gone: bool,
    failure: Option<String>,
    end: Option<Ended>,
    subscribers: Vec<Sender<Event>>,
}

impl Inner {
    fn check(&self) -> Result<(), StateError> {
        match (&self.end, &self.failure) {
            (Some(end), _) => Err(StateError::Ended(end.cause)),
            (None, Some(reason)) => Err(StateError::Failed(reason.clone())),
            (None, None) => Ok(()),
        }
    }

    fn may_run(&self) -> bool {
        self.wanted && self.holds == 0 && !self.gone && self.check().is_ok()
    }

    /// Whether its RAM is its own.
    fn check_here(&self) -> Result<(), StateError> {
        match self.gone {
            true => Err(StateError::Gone),
            false => Ok(()),
        }
    }

    fn tell(&mut self, event: &Event) {
        self.subscribers
            .retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }

    fn stopped(&mut self) {
        if std::mem::take(&mut self.running) {
            self.tell(&Event::Stopped);
        }
    }
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            turn: Mutex::new(()),
            inner: Mutex::new(Inner {
                wanted: false,
                holds: 0,
                running: false,
                stopped_as: RunState::Prelaunch,
                gone: false,
                failure: None,
                end: None,
                subscribers: Vec::new(),
            }),
            ended: Condvar::new(),
            stages: OnceLock::new(),
        }
    }

    /// Says who runs for the machine: once, before anything is started.
    pub(crate) fn set_stages(&self, stages: Stages) {
        if self.stages.set(stages).is_err() {
            tracing::error!("a machine's threads were named twice");
        }
    }

    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        self.lock().subscribers.push(sender);
        receiver
    }

    pub(crate) fn run_state(&self) -> RunState {
        let inner = self.lock();
        match (&inner.end, &inner.failure) {
            (Some(_), _) => RunState::Shutdown,
            (None, Some(_)) => RunState::InternalError,
            (None, None) if inner.running => RunState::Running,
            (None, None) => inner.stopped_as,
        }
    }

    /// Which state to show while the machine does not run; until it runs again.
    pub(crate) fn set_stopped_state(&self, state: RunState) {
        self.lock().stopped_as = state;
    }

    /// Its RAM is another process's from now on.
    pub(crate) fn set_gone(&self) {
        self.lock().gone = true;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Runs the machine, or remembers to when the last pause ends.
    pub(crate) fn cont(&self) -> Result<(), StateError> {
        let turn = self.take_turn();
        let mut inner = self.lock();
        inner.check()?;
        inner.check_here()?;
        inner.wanted = true;
        self.resume_if_free(&turn, &mut inner);
        Ok(())
    }

    /// Stops the machine and waits until all is at rest.
    pub(crate) fn stop(&self) -> Result<(), StateError> {
        let turn = self.take_turn();
        let mut inner = self.lock();
        inner.check()?;
        inner.wanted = false;
        if inner.holds == 0 && inner.running {
            inner.stopped_as = RunState::Paused;
        }
        drop(inner);
        self.rest(&turn);
        Ok(())
    }

    /// Holds a pause; whether the machine shall run when it ends.
    pub(crate) fn hold(&self) -> Result<bool, StateError> {
        let turn = self.take_turn();
        let mut inner = self.lock();
        inner.check()?;
        inner.check_here()?;
        inner.holds += 1;
        if inner.running {
            inner.stopped_as = RunState::Paused;
        }
        let was_running = inner.wanted;
        drop(inner);
        self.rest(&turn);
        Ok(was_running)
    }

    /// Ends a pause. With `stay` the machine shall not run afterwards and shows that state.
    pub(crate) fn release(&self, stay: Option<RunState>) {
        let turn = self.take_turn();
        let mut inner = self.lock();
        inner.holds = inner.holds.saturating_sub(1);
        if let Some(state) = stay {
            inner.wanted = false;
            inner.stopped_as = state;
        }
        self.resume_if_free(&turn, &mut inner);
    }

    /// Stops the machine for good, for `reason`. Waits for nobody.
    pub(crate) fn fail(&self, reason: String) {
        let mut inner = self.lock();
        if inner.check().is_err() {
            tracing::debug!(%reason, "a machine that is down failed again");
            return;
        }
        tracing::error!(%reason, "the machine failed");
        inner.failure = Some(reason.clone());
        self.close_all();
        inner.stopped();
        inner.tell(&Event::Failed { reason });
    }

    /// Ends the machine. Waits for nobody.
    pub(crate) fn shut_down(&self, cause: ShutdownCause, detail: Option<String>) {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(Ended { cause, detail });
        self.close_all();
        inner.running = false;
        inner.tell(&Event::Shutdown {
            guest: cause.by_guest(),
            reason: cause,
        });
        drop(inner);
        self.ended.notify_all();
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.lock().end.clone()
    }

    pub(crate) fn wait_ended(&self) -> Ended {
        let mut inner = self.lock();
        loop {
            if let Some(end) = &inner.end {
                return end.clone();
            }
            inner = self
                .ended
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn resume_if_free(&self, _turn: &MutexGuard<'_, ()>, inner: &mut Inner) {
        if inner.running || !inner.may_run() {
            return;
        }
        inner.running = true;
        inner.tell(&Event::Resumed);
        if let Some(stages) = self.stages.get() {
            // Whoever is woken may take this thread's CPU. All are open before the first is woken,
            // so that those who are awake can wake the others.
            stages
                .devices
                .iter()
                .chain(&stages.vcpus)
                .for_each(|one| one.open());
            stages
                .devices
                .iter()
                .chain(&stages.vcpus)
                .for_each(|one| one.wake());
        }
    }

    /// Brings all to rest and tells so, unless the machine may run.
    fn rest(&self, _turn: &MutexGuard<'_, ()>) {
        if self.lock().may_run() {
            return;
        }
        if let Some(stages) = self.stages.get() {
            for stage in [&stages.vcpus, &stages.devices] {
                stage.iter().for_each(|one| one.close());
                stage.iter().for_each(|one| one.wait_at_rest());
            }
        }
        self.lock().stopped();
    }

    fn close_all(&self) {
        if let Some(stages) = self.stages.get() {
            stages
                .vcpus
                .iter()
                .chain(&stages.devices)
                .for_each(|one| one.close());
        }
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold for crate::gate::Gate {
    fn open(&self) {
        crate::gate::Gate::open(self);
    }

    fn wake(&self) {
        crate::gate::Gate::wake(self);
    }

    fn close(&self) {
        crate::gate::Gate::close(self);
    }

    fn wait_at_rest(&self) {
        crate::gate::Gate::wait_at_rest(self);
    }

    fn nap(&self, length: Duration) {
        crate::gate::Gate::nap(self, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    #[derive(Default)]
    struct Light {
        open: AtomicBool,
        waits: AtomicU32,
    }

    impl Hold for Light {
        fn open(&self) {
            self.open.store(true, Ordering::SeqCst);
        }
        fn wake(&self) {}
        fn close(&self) {
            self.open.store(false, Ordering::SeqCst);
        }
        fn wait_at_rest(&self) {
            assert!(!self.open.load(Ordering::SeqCst));
            self.waits.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn control() -> (Control, Arc<Light>, Receiver<Event>) {
        let (control, light) = (Control::new(), Arc::new(Light::default()));
        control.set_stages(Stages {
            vcpus: vec![light.clone()],
            devices: Vec::new(),
        });
        let events = control.subscribe();
        (control, light, events)
    }

    fn seen(events: &Receiver<Event>) -> Vec<Event> {
        events.try_iter().collect()
    }

    #[test]
    fn cont_and_stop_during_a_pause_wait_for_its_end() {
        let (control, light, events) = control();
        control.cont().unwrap();
        assert!(control.hold().unwrap());
        assert_eq!(control.run_state(), RunState::Paused);
        control.stop().unwrap();
        control.cont().unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        control.stop().unwrap();
        control.release(None);
        assert!(!light.open.load(Ordering::SeqCst));
        assert_eq!(seen(&events), [Event::Resumed, Event::Stopped]);
        assert!(!control.hold().unwrap());
        control.cont().unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        control.release(None);
        assert!(light.open.load(Ordering::SeqCst));
        assert_eq!(control.run_state(), RunState::Running);
        assert_eq!(seen(&events), [Event::Resumed]);
    }

    #[test]
    fn nested_pauses_end_with_the_last() {
        let (control, light, events) = control();
        control.cont().unwrap();
        assert!(control.hold().unwrap());
        assert!(control.hold().unwrap());
        control.release(None);
        assert!(!light.open.load(Ordering::SeqCst));
        control.release(None);
        assert!(light.open.load(Ordering::SeqCst));
        assert_eq!(
            seen(&events),
            [Event::Resumed, Event::Stopped, Event::Resumed]
        );
    }

    #[test]
    fn a_paused_machine_stays_paused() {
        let (control, light, events) = control();
        assert_eq!(control.run_state(), RunState::Prelaunch);
        assert!(!control.hold().unwrap());
        assert!(light.waits.load(Ordering::SeqCst) > 0);
        control.release(None);
        assert_eq!(control.run_state(), RunState::Prelaunch);
        assert!(seen(&events).is_empty());
    }

    #[test]
    fn staying_shows_its_state_until_cont() {
        let (control, light, _) = control();
        control.cont().unwrap();
        control.hold().unwrap();
        control.set_stopped_state(RunState::FinishMigrate);
        assert_eq!(control.run_state(), RunState::FinishMigrate);
        control.release(Some(RunState::PostMigrate));
        assert_eq!(control.run_state(), RunState::PostMigrate);
        assert!(!light.open.load(Ordering::SeqCst));
        control.cont().unwrap();
        assert_eq!(control.run_state(), RunState::Running);
    }

    #[test]
    fn what_failed_or_ended_never_runs_again() {
        let (control, light, events) = control();
        control.cont().unwrap();
        control.hold().unwrap();
        control.fail("a page is lost".to_owned());
        control.release(None);
        assert!(!light.open.load(Ordering::SeqCst));
        assert_eq!(control.run_state(), RunState::InternalError);
        assert!(matches!(control.cont(), Err(StateError::Failed(_))));
        assert!(control.hold().is_err());
        control.shut_down(ShutdownCause::HostQmpQuit, None);
        control.shut_down(ShutdownCause::GuestReset, None);
        assert_eq!(control.wait_ended().cause, ShutdownCause::HostQmpQuit);
        assert!(matches!(control.cont(), Err(StateError::Ended(_))));
        let reason = ShutdownCause::HostQmpQuit;
        assert_eq!(
            seen(&events),
            [
                Event::Resumed,
                Event::Stopped,
                Event::Failed {
                    reason: "a page is lost".to_owned()
                },
                Event::Shutdown {
                    guest: false,
                    reason
                },
            ]
        );
    }
}
