//! What is ended when somebody asks the process to end: first what it waits for, then the machine.
//!
//! Before there is either, nothing has happened that would have to come to an end in order, and what
//! the process is at (reading all of a big file, for one) may take long: then it leaves at once.

use std::sync::Arc;

use paguro_migration::channel::Stop;
use paguro_qmp::SocketFile;
use paguro_vmm::ShutdownCause;
use parking_lot::Mutex;

use crate::guest::Guest;
use crate::log;

/// Shared by all who may ask.
#[derive(Clone, Default)]
pub struct Ending(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    asked: bool,
    /// Something was waited for, or there is a machine.
    begun: bool,
    socket: Option<Arc<SocketFile>>,
    waiting: Option<Stop>,
    guest: Option<Arc<Guest>>,
}

impl Ending {
    /// Ends the machine, or what is waited for before there is one, or both as soon as they are
    /// there; or the process, if neither was ever there.
    pub fn ask(&self) {
        let mut state = self.0.lock();
        state.asked = true;
        if !state.begun {
            // Nobody begins anything meanwhile: that takes the lock.
            if let Some(socket) = &state.socket {
                socket.remove();
            }
            log::exit(0);
        }
        state.end();
    }

    /// From now on leaving takes this file away.
    pub fn has_socket(&self, file: Arc<SocketFile>) {
        self.0.lock().socket = Some(file);
    }

    /// Whether somebody asked.
    pub fn asked(&self) -> bool {
        self.0.lock().asked
    }

    /// From now on asking ends what this stops.
    pub fn waits(&self, stop: &Stop) {
        let mut state = self.0.lock();
        state.begun = true;
        state.waiting = Some(stop.clone());
        if state.asked {
            state.end();
        }
    }

    /// From now on asking ends this machine, and nothing else: what was waited for is here, and its
    /// channels end with the machine, in order.
    pub fn has(&self, guest: &Arc<Guest>) {
        let mut state = self.0.lock();
        state.begun = true;
        state.waiting = None;
        state.guest = Some(guest.clone());
        if state.asked {
            state.end();
        }
    }
}

impl State {
    fn end(&mut self) {
        if let Some(stop) = self.waiting.take() {
            stop.stop();
        }
        if let Some(guest) = &self.guest {
            guest.vm().quit(ShutdownCause::HostSignal);
        }
    }
}
