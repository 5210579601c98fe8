//! A machine that comes in: `--incoming`, `migrate-incoming`, and how far it is.

use std::sync::Arc;

use paguro_migration::channel::{Address, Incoming, Listener};
use paguro_migration::destination::{Arrival, ReceiveError, ReceiveMode, ReceiveOptions};
use paguro_migration::switchover::{HeldState, MigrationId, MigrationStatus, Reason};
use paguro_vmm::ShutdownCause;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::commands::Answer;
use super::jobs::Outcome;
use super::settings::Mode;
use super::{Args, Monitor, QmpError, address};
use crate::hints;

/// What this process waits for.
#[derive(Default)]
pub struct Arrivals(Mutex<State>);

#[derive(Default)]
enum State {
    /// Nothing: the machine began here.
    #[default]
    None,
    /// An address, which `migrate-incoming` will give.
    Deferred { paused: bool },
    /// A source, or one came.
    Open(Arc<Entry>),
}

/// A machine that comes in, or came.
pub struct Entry {
    /// How far it is.
    pub arrival: Arrival,
    /// Where a source can connect.
    pub local: Address,
    /// Whether the channels can answer. An inherited descriptor that was taken over cannot be asked.
    returns: bool,
    ended: Mutex<Ended>,
}

#[derive(Default)]
struct Ended {
    outcome: Option<Outcome>,
    /// For which the process ends.
    fatal: Option<anyhow::Error>,
}

/// How a machine is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// It stays paused when it is here.
    pub paused: bool,
    /// The process ends if it does not come.
    pub exit_on_error: bool,
}

impl Arrivals {
    /// `migrate-incoming` will say where from.
    pub fn defer(&self, paused: bool) {
        *self.lock() = State::Deferred { paused };
    }

    /// Opens the door. When this returns a source can connect.
    pub fn open(
        &self,
        monitor: &Monitor,
        address: &Address,
        manner: Manner,
    ) -> Result<Arc<Entry>, anyhow::Error> {
        let (channel, silence, multifd) = {
            let migrations = monitor.migrations.lock();
            let settings = &migrations.settings;
            let channel = settings.channel_options();
            let channel = channel.map_err(|error| anyhow::Error::msg(error.desc))?;
            let multifd = settings.multifd(migrations.capabilities);
            (channel, settings.silence(), multifd)
        };
        let options = ReceiveOptions {
            silence,
            mode: ReceiveMode::Precopy { multifd },
            ..ReceiveOptions::new(address.can_return(), manner.paused)
        };
        let listener = Incoming::listen(address, &channel)?;
        self.admit(monitor, listener, options, manner)
    }

    /// Lets a machine in whose RAM was handed over, and is here already.
    pub fn complete(
        &self,
        monitor: &Monitor,
        whose: MigrationId,
        listener: Listener,
        manner: Manner,
    ) -> Result<Arc<Entry>, anyhow::Error> {
        let silence = monitor.migrations.lock().settings.silence();
        let options = ReceiveOptions {
            silence,
            mode: ReceiveMode::HandOver { migration: whose },
            ..ReceiveOptions::new(true, manner.paused)
        };
        self.admit(monitor, listener, options, manner)
    }

    fn admit(
        &self,
        monitor: &Monitor,
        listener: Listener,
        options: ReceiveOptions,
        manner: Manner,
    ) -> Result<Arc<Entry>, anyhow::Error> {
        let events = monitor.events.clone();
        let hook = move |status: MigrationStatus| events.migration(status.name());
        let entry = Arc::new(Entry {
            returns: options.return_path,
            arrival: Arrival::new(options, Some(Box::new(hook))),
            local: listener.local_address().clone(),
            ended: Mutex::default(),
        });
        // It begins so, which is no change.
        monitor.events.migration(entry.arrival.status().name());
        *self.lock() = State::Open(entry.clone());
        let (guest, waiting) = (monitor.guest.clone(), entry.clone());
        let wait = move || {
            let Some(error) = waiting.wait(&guest, listener) else {
                return;
            };
            let outcome = Outcome::of(&error);
            let mut ended = waiting.ended.lock();
            ended.outcome = Some(outcome);
            if manner.exit_on_error {
                ended.fatal = Some(error);
                drop(ended);
                guest.vm().quit(ShutdownCause::HostError);
            }
        };
        paguro_sys::NewThread::named("incoming".to_owned()).spawn(wait)?;
        Ok(entry)
    }

    /// The machine that comes in, or came.
    pub fn entry(&self) -> Option<Arc<Entry>> {
        match &*self.lock() {
            State::Open(entry) => Some(entry.clone()),
            _ => None,
        }
    }

    /// What `query-status` says while the machine is not this side's.
    pub fn held(&self) -> Option<HeldState> {
        match &*self.lock() {
            State::None => None,
            State::Deferred { .. } => Some(HeldState::InMigrate),
            State::Open(entry) => entry.arrival.held(),
        }
    }

    /// Whether the machine is here, and nobody knows whether it may run.
    pub fn is_in_doubt(&self) -> bool {
        let entry = self.entry();
        entry.is_some_and(|entry| entry.arrival.status() == MigrationStatus::InDoubt)
    }

    /// `cont`, while the machine is not this side's: it will run when it may.
    pub fn cont(&self) -> Result<(), QmpError> {
        let entry = match &mut *self.lock() {
            State::None => return Ok(()),
            State::Deferred { paused } => {
                *paused = false;
                return Ok(());
            }
            State::Open(entry) => entry.clone(),
        };
        entry.arrival.cont().map_err(QmpError::generic)
    }

    /// `stop`, while the machine is not this side's: it will stay paused, if that can still be
    /// said.
    pub fn stop(&self) -> Result<(), QmpError> {
        match &mut *self.lock() {
            State::None => Ok(()),
            State::Deferred { paused } => {
                *paused = true;
                Ok(())
            }
            State::Open(_) => Err(QmpError::generic(
                "Guest is waiting for an incoming migration: only the option '--paused' makes it \
                 stay paused",
            )),
        }
    }

    /// The process is about to end: the source, if there is one, is told.
    pub fn wind_up(&self) {
        if let Some(entry) = self.entry() {
            entry.arrival.quit();
        }
    }

    /// For which error the process ends, if one it is.
    pub fn take_failure(&self) -> Option<anyhow::Error> {
        self.entry()?.ended.lock().fatal.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Entry {
    /// Lets the machine in; why it did not come, unless that was wanted.
    fn wait(&self, guest: &crate::guest::Guest, listener: Listener) -> Option<anyhow::Error> {
        match guest.receive(listener, &self.arrival) {
            Ok(()) => None,
            Err(ReceiveError::Ended(ended)) if ended.why == Reason::Quit => None,
            Err(error) if !self.returns => Some(hints::of_stored(error)),
            Err(error) => Some(error.into()),
        }
    }

    /// Why the machine did not come, once that is so.
    pub fn outcome(&self) -> Option<Outcome> {
        self.ended.lock().outcome.clone()
    }

    /// `socket-address` of `query-migrate`, for what can be connected to.
    pub fn socket_address(&self) -> Option<Value> {
        let address = match &self.local {
            Address::Tcp { host, port } => {
                json!({ "type": "inet", "host": host, "port": port.to_string() })
            }
            Address::Unix(path) => json!({ "type": "unix", "path": path }),
            Address::Vsock { cid, port } => {
                json!({ "type": "vsock", "cid": cid.to_string(), "port": port.to_string() })
            }
            _ => return None,
        };
        Some(json!([address]))
    }
}

/// `migrate-incoming`
pub fn incoming(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let address = address::channel(&mut args)?;
    let exit_on_error = args.boolean("exit-on-error")?.unwrap_or(true);
    args.finish()?;
    if monitor.migrations.lock().settings.mode == Mode::CprTransfer {
        return Err(QmpError::generic(
            "mode 'cpr-transfer' is not compatible with migrate-incoming: a machine whose RAM is \
             handed over is made of it, as '--incoming' says when the program is started",
        ));
    }
    let paused = match &*monitor.arrivals.lock() {
        State::None => {
            return Err(QmpError::generic(
                "'-incoming' was not specified on the command line",
            ));
        }
        State::Open(_) => {
            return Err(QmpError::generic(
                "The incoming migration has already been started",
            ));
        }
        State::Deferred { paused } => *paused,
    };
    let manner = Manner {
        paused,
        exit_on_error,
    };
    monitor
        .arrivals
        .open(monitor, &address, manner)
        .map_err(|error| QmpError::generic(format!("{error:#}")))?;
    Ok(Answer::default())
}
