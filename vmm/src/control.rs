//! Who may run, and who is told.
//!
//! A machine runs if it *shall* (`start`, `cont`, `stop`), *no pause is held*, and it has neither
//! *failed* nor *ended*. A pause is held by the engine for a moment; `stop` and `cont` meanwhile
//! are remembered and take effect when the last pause ends. It may also be *halted*, because it needs
//! something that cannot be had for now; `cont` tries again.
//!
//! Two locks. `turn` is held by those who ask for a change and wait for it: one at a time, so
//! that events and changes come in order. `inner` guards the decision and is never held while
//! anything waits, so a thread that finds the machine broken can always say so. Gates are only
//! opened under both, and closed under `inner`.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use paguro_migration::machine::Stay;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::state::{Ended, Event, RunState, ShutdownCause, StateError};

/// How long a thread may take to come to rest. It takes a fraction of a millisecond, but for one that
/// the kernel holds in a page fault that nobody answers, out of which no signal helps: KVM reading for
/// itself what a guest's page tables say is such a one. Whoever asked must not be held with it.
const AT_REST: Duration = Duration::from_secs(10);

/// Somebody who can be held: a gate, or what else obeys these rules. Only `wait_at_rest` waits.
pub(crate) trait Hold: Send + Sync {
    /// Lets it go on, when it looks.
    fn open(&self);
    /// Makes it look, if it rests.
    fn wake(&self);
    /// Stops it.
    fn close(&self);
    /// Waits until it rests, at most until `deadline`; whether it does. It must not be opened meanwhile.
    fn wait_at_rest(&self, deadline: Instant) -> bool;
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
    /// Why it was left at rest when it was paused last; nothing once it was told to run again.
    stays: Option<Stay>,
    /// Why it cannot go on for now.
    halted: Option<String>,
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
        let free = self.holds == 0 && self.check_here().is_ok() && self.halted.is_none();
        self.wanted && free && self.check().is_ok()
    }

    /// Whether its RAM is its own, and what it should be. One that was stopped for its snapshot, or moved
    /// as a copy, runs again if its operator says so, as in QEMU: he knows what became of the other.
    fn check_here(&self) -> Result<(), StateError> {
        match self.stays {
            Some(Stay::HandedOver) => Err(StateError::Gone),
            Some(Stay::Spoilt) => Err(StateError::Spoilt),
            _ => Ok(()),
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
                stays: None,
                halted: None,
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
        self.inner.lock().subscribers.push(sender);
        receiver
    }

    pub(crate) fn run_state(&self) -> RunState {
        let inner = self.inner.lock();
        match (&inner.end, &inner.failure) {
            (Some(_), _) => RunState::Shutdown,
            (None, Some(_)) => RunState::InternalError,
            (None, None) if inner.halted.is_some() => RunState::IoError,
            (None, None) if inner.running => RunState::Running,
            (None, None) => inner.stopped_as,
        }
    }

    /// Which state to show while the machine does not run; until it runs again.
    pub(crate) fn set_stopped_state(&self, state: RunState) {
        self.inner.lock().stopped_as = state;
    }

    /// Why it was left at rest, if it was and was not told to run again.
    pub(crate) fn stays(&self) -> Option<Stay> {
        self.inner.lock().stays
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.inner.lock().failure.clone()
    }

    /// Why it is halted, if it is.
    pub(crate) fn halted(&self) -> Option<String> {
        self.inner.lock().halted.clone()
    }

    /// Runs the machine, or remembers to when the last pause ends.
    pub(crate) fn cont(&self) -> Result<(), StateError> {
        let turn = self.turn.lock();
        let mut inner = self.inner.lock();
        inner.check()?;
        inner.check_here()?;
        inner.wanted = true;
        inner.halted = None;
        inner.stays = None;
        self.resume_if_free(&turn, &mut inner);
        Ok(())
    }

    /// Stops the machine and waits until all is at rest.
    pub(crate) fn stop(&self) -> Result<(), StateError> {
        let turn = self.turn.lock();
        let mut inner = self.inner.lock();
        inner.check()?;
        inner.wanted = false;
        if inner.halted.is_some() {
            return Ok(());
        }
        if inner.holds == 0 && inner.running {
            inner.stopped_as = RunState::Paused;
        }
        drop(inner);
        // It is stopped all the same: who is held executes nothing before it rests.
        let rests = self.rest(&turn);
        self.inner.lock().stopped();
        if rests { Ok(()) } else { Err(StateError::Held) }
    }

    /// Holds a pause; whether the machine shall run when it ends.
    pub(crate) fn hold(&self) -> Result<bool, StateError> {
        let turn = self.turn.lock();
        let mut inner = self.inner.lock();
        inner.check()?;
        inner.check_here()?;
        inner.holds += 1;
        if inner.running {
            inner.stopped_as = RunState::Paused;
        }
        let was_running = inner.wanted;
        drop(inner);
        let rests = self.rest(&turn);
        let mut inner = self.inner.lock();
        inner.stopped();
        // What failed while it came to rest is not what it should be, and nobody is to save it.
        let sound = inner.check();
        if rests && sound.is_ok() {
            return Ok(was_running);
        }
        inner.holds -= 1;
        sound?;
        self.resume_if_free(&turn, &mut inner);
        Err(StateError::Held)
    }

    /// Ends a pause. With `stay` the machine shall not run afterwards, and shows that it was left at rest
    /// (`postmigrate`). Otherwise it is an error if it shall run and has failed; one that has ended does as
    /// it was told.
    pub(crate) fn release(&self, stay: Option<Stay>) -> Result<(), StateError> {
        let turn = self.turn.lock();
        let mut inner = self.inner.lock();
        inner.holds = inner.holds.saturating_sub(1);
        if let Some(why) = stay {
            inner.wanted = false;
            inner.halted = None;
            // Of two who leave it at rest the one counts after whom it can never run.
            if !matches!(inner.stays, Some(Stay::HandedOver | Stay::Spoilt)) {
                inner.stays = Some(why);
            }
            inner.stopped_as = RunState::PostMigrate;
            return Ok(());
        }
        self.resume_if_free(&turn, &mut inner);
        match inner.check() {
            Err(failed @ StateError::Failed(_)) if inner.wanted => Err(failed),
            _ => Ok(()),
        }
    }

    /// Stops the machine for good, for `reason`. Waits for nobody.
    pub(crate) fn fail(&self, reason: String) {
        let mut inner = self.inner.lock();
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

    /// Stops the machine, for `reason`, until the next `cont`. One that shall not run is not halted: it
    /// needs nothing. Waits for nobody.
    pub(crate) fn halt(&self, reason: String) {
        let mut inner = self.inner.lock();
        if inner.check().is_err() || !inner.wanted || inner.halted.is_some() {
            tracing::debug!(%reason, "a machine that does not run would be halted");
            return;
        }
        inner.halted = Some(reason.clone());
        self.close_all();
        inner.stopped();
        inner.tell(&Event::Halted { reason });
    }

    /// Ends the machine. Waits for nobody.
    pub(crate) fn shut_down(&self, cause: ShutdownCause, detail: Option<String>) {
        let mut inner = self.inner.lock();
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
        self.inner.lock().end.clone()
    }

    pub(crate) fn wait_ended(&self) -> Ended {
        let mut inner = self.inner.lock();
        loop {
            if let Some(end) = &inner.end {
                return end.clone();
            }
            self.ended.wait(&mut inner);
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

    /// Brings all to rest, unless the machine may run; whether they are.
    fn rest(&self, _turn: &MutexGuard<'_, ()>) -> bool {
        if self.inner.lock().may_run() {
            return true;
        }
        let Some(stages) = self.stages.get() else {
            return true;
        };
        let deadline = Instant::now() + AT_REST;
        let rest = [&stages.vcpus, &stages.devices].into_iter().all(|stage| {
            stage.iter().for_each(|one| one.close());
            stage.iter().all(|one| one.wait_at_rest(deadline))
        });
        if !rest {
            // Not all have been told.
            self.close_all();
        }
        rest
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

    fn wait_at_rest(&self, deadline: Instant) -> bool {
        crate::gate::Gate::wait_at_rest(self, deadline)
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
        /// It does not come to rest.
        held: AtomicBool,
    }

    impl Hold for Light {
        fn open(&self) {
            self.open.store(true, Ordering::SeqCst);
        }
        fn wake(&self) {}
        fn close(&self) {
            self.open.store(false, Ordering::SeqCst);
        }
        fn wait_at_rest(&self, _: Instant) -> bool {
            assert!(!self.open.load(Ordering::SeqCst));
            self.waits.fetch_add(1, Ordering::SeqCst);
            !self.held.load(Ordering::SeqCst)
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
        control.release(None).unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        assert_eq!(seen(&events), [Event::Resumed, Event::Stopped]);
        assert!(!control.hold().unwrap());
        control.cont().unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        control.release(None).unwrap();
        assert!(light.open.load(Ordering::SeqCst));
        assert_eq!(control.run_state(), RunState::Running);
        assert_eq!(seen(&events), [Event::Resumed]);
    }

    #[test]
    fn what_is_halted_runs_again_when_it_is_told_to() {
        let (control, light, events) = control();
        let reason = || "a page cannot be read".to_owned();
        let halted = Event::Halted { reason: reason() };
        // Not before it shall run.
        control.halt(reason());
        assert_eq!(control.run_state(), RunState::Prelaunch);
        control.cont().unwrap();
        control.halt(reason());
        control.halt("another".to_owned());
        assert_eq!(control.run_state(), RunState::IoError);
        assert_eq!(control.halted(), Some(reason()));
        assert!(!light.open.load(Ordering::SeqCst));
        // A pause, and a stop, change nothing about it.
        assert!(control.hold().unwrap());
        control.release(None).unwrap();
        control.stop().unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        assert_eq!(control.run_state(), RunState::IoError);
        control.cont().unwrap();
        assert!(light.open.load(Ordering::SeqCst));
        assert_eq!(
            (control.run_state(), control.halted()),
            (RunState::Running, None)
        );
        assert_eq!(
            seen(&events),
            [
                Event::Resumed,
                Event::Stopped,
                halted.clone(),
                Event::Resumed
            ]
        );
        // In a pause it takes effect at its end.
        control.hold().unwrap();
        control.halt(reason());
        control.release(None).unwrap();
        assert_eq!(control.run_state(), RunState::IoError);
        assert_eq!(seen(&events), [Event::Stopped, halted]);
        control.fail("a page is lost".to_owned());
        assert_eq!(control.run_state(), RunState::InternalError);
    }

    #[test]
    fn who_is_held_holds_nobody_else() {
        let (control, light, events) = control();
        control.cont().unwrap();
        light.held.store(true, Ordering::SeqCst);
        // A pause does not come about, and the machine runs on.
        assert!(matches!(control.hold(), Err(StateError::Held)));
        assert_eq!(control.run_state(), RunState::Running);
        assert!(light.open.load(Ordering::SeqCst));
        // A stop does.
        assert!(matches!(control.stop(), Err(StateError::Held)));
        assert_eq!(control.run_state(), RunState::Paused);
        assert!(!light.open.load(Ordering::SeqCst));
        let (stopped, resumed) = (Event::Stopped, Event::Resumed);
        assert_eq!(
            seen(&events),
            [resumed.clone(), stopped.clone(), resumed, stopped]
        );
    }

    /// A vCPU that fails instead of coming to rest.
    struct Failing(std::sync::Weak<Control>);

    impl Hold for Failing {
        fn open(&self) {}
        fn wake(&self) {}
        fn close(&self) {}
        fn wait_at_rest(&self, _: Instant) -> bool {
            let control = self.0.upgrade().unwrap();
            control.fail("a page is lost".to_owned());
            true
        }
    }

    #[test]
    fn what_fails_while_it_comes_to_rest_is_not_paused() {
        let control = Arc::new(Control::new());
        control.set_stages(Stages {
            vcpus: vec![Arc::new(Failing(Arc::downgrade(&control)))],
            devices: Vec::new(),
        });
        control.cont().unwrap();
        assert!(matches!(control.hold(), Err(StateError::Failed(_))));
        assert_eq!(control.inner.lock().holds, 0);
    }

    #[test]
    fn nested_pauses_end_with_the_last() {
        let (control, light, events) = control();
        control.cont().unwrap();
        assert!(control.hold().unwrap());
        assert!(control.hold().unwrap());
        control.release(None).unwrap();
        assert!(!light.open.load(Ordering::SeqCst));
        control.release(None).unwrap();
        assert!(light.open.load(Ordering::SeqCst));
        assert_eq!(
            seen(&events),
            [Event::Resumed, Event::Stopped, Event::Resumed]
        );
    }

    /// Two who paused it, of whom one gave its RAM away.
    #[test]
    fn who_was_left_at_rest_for_good_stays_so_whoever_leaves_it_last() {
        let (control, _light, _events) = control();
        control.hold().unwrap();
        control.hold().unwrap();
        control.release(Some(Stay::HandedOver)).unwrap();
        control.release(Some(Stay::Stopped)).unwrap();
        assert_eq!(control.stays(), Some(Stay::HandedOver));
        assert!(control.cont().is_err());
    }

    #[test]
    fn a_paused_machine_stays_paused() {
        let (control, light, events) = control();
        assert_eq!(control.run_state(), RunState::Prelaunch);
        assert!(!control.hold().unwrap());
        assert!(light.waits.load(Ordering::SeqCst) > 0);
        control.release(None).unwrap();
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
        control.release(Some(Stay::Stopped)).unwrap();
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
        assert!(matches!(control.release(None), Err(StateError::Failed(_))));
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
