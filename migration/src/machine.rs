//! What the engine needs from a VMM.
//!
//! A VMM implements [`Board`], [`Machine`] and [`Paused`]; nothing else of it is known here. The order
//! of a pause is the engine's business and is kept by these types: whoever pauses holds a [`Paused`],
//! and dropping it, on whatever path, lets the guest run on.

use std::sync::Arc;

use paguro_dirty::tracker::Tracker;
use paguro_wire::device::DeviceSection;

use crate::Memory;

pub use crate::cost::DeviceCost;

/// The VMM failed; its own error is inside.
#[derive(Debug, thiserror::Error)]
#[error("the machine failed to {doing}")]
pub struct MachineError {
    /// What it was doing, as a verb: "stop its vCPUs".
    pub doing: &'static str,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl MachineError {
    /// An error while `doing`.
    pub fn new(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            doing,
            source: source.into(),
        }
    }
}

/// How a writer of guest RAM behaves towards a freeze (property P10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterClass {
    /// It writes through the mapping that is armed, so it faults like a vCPU.
    Seen,
    /// It writes in ways that do not fault, and has nothing in flight once paused.
    Drained,
    /// It writes in ways that do not fault, and cannot be stopped: no freeze is possible.
    Unseen,
}

/// Somebody who writes guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its name, as it appears in a refusal.
    pub name: String,
    /// How it behaves.
    pub class: WriterClass,
}

/// What is known of a machine whether it leaves or comes in. Called from any thread of the engine;
/// never waits.
pub trait Board: Send + Sync {
    /// The engine's side of its RAM: the same at each call, for as long as the machine lives. It was
    /// made when the RAM was, and it is the machine that keeps it: where pages are still to come, it is
    /// what serves them.
    fn memory(&self) -> &Arc<Memory>;

    /// Its name in CONFIGURATION: files and streams of another name are refused.
    fn machine_name(&self) -> &str;
}

/// A machine that the engine can move.
pub trait Machine: Board {
    /// All who write its RAM, vCPUs included.
    fn writers(&self) -> Vec<Writer>;

    /// Whether its RAM is written from inside the kernel (by KVM, by read(2)): then a freeze needs
    /// the right to handle faults taken there. `true` unless said otherwise, as with KVM the kernel writes
    /// for the guest; a machine of threads, whose faults are its own, says `false`. The same goes into
    /// [`RestoreOptions`](crate::restore::RestoreOptions::faults_in_kernel).
    fn faults_in_kernel(&self) -> bool {
        true
    }

    /// A new tracker of all who write its RAM, those that no freeze sees too. It is not started.
    ///
    /// # Errors
    ///
    /// The machine's; this one if it has none, and so cannot be migrated while it runs.
    fn tracker(&self) -> Result<Arc<dyn Tracker>, MachineError> {
        Err(MachineError::new(
            "track writes to its RAM",
            "this machine has no tracker",
        ))
    }

    /// Lets each vCPU run for only `100 - percent` of the time, until it is called again; 0 lets it
    /// run freely. Never waits. As in QEMU a vCPU runs for 10 ms and naps for what is left of the
    /// time. A machine that cannot does nothing: the migration then converges later, or not at all.
    fn throttle(&self, _percent: u8) {}

    /// The same with a percentage for each vCPU, in the order of [`Tracker::vcpu_rates`]. A machine
    /// that knows no difference slows all down as the slowest.
    fn throttle_each(&self, percents: &[u8]) {
        self.throttle(percents.iter().copied().max().unwrap_or(0));
    }

    /// Takes all vCPUs out of the guest with pending I/O completed, then makes the devices quiet:
    /// when this returns nobody writes guest RAM and no I/O into it is in flight. Faults must go
    /// on being served while it waits. Pausing a paused machine is no error.
    ///
    /// # Errors
    ///
    /// The machine's; it then runs on as before.
    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError>;

    /// What the state of vCPUs and devices will cost, as far as the machine knows: by how many vCPUs it
    /// has, by when it was saved or loaded last. The guest is stopped when this and all else is within
    /// the limit. Asked when a migration begins; never waits. For a machine that does not say, the engine
    /// goes by how fast it ever saved it, for any reason, and before that by a machine of a few vCPUs.
    fn device_cost(&self) -> Option<DeviceCost> {
        None
    }
}

/// A machine that another one's state is moved into.
///
/// It was made like the other one, and neither booted nor loaded; its RAM is fresh.
pub trait Recipient: Board {
    /// Takes over the state of vCPUs and devices, after all of RAM came. The engine's own sections
    /// (`globalstate`) may be among them and are passed over.
    ///
    /// # Errors
    ///
    /// The machine's: the state is none of such a machine, or the host does not take it. It can
    /// never run then.
    fn load(&self, devices: &[DeviceSection]) -> Result<(), MachineError>;

    /// Lets it run.
    ///
    /// # Errors
    ///
    /// The machine's; no vCPU has executed an instruction then.
    fn start(&self) -> Result<(), MachineError>;
}

/// A machine at rest. Dropping it resumes devices, then vCPUs, if they ran when it was paused.
pub trait Paused {
    /// Whether the machine ran before the pause.
    fn was_running(&self) -> bool;

    /// The state of vCPUs and devices. What collecting it writes to guest RAM belongs to the
    /// picture, so this comes before the freeze.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError>;

    /// With `true`, dropping this leaves the machine stopped, as after a migration that stopped it
    /// (`postmigrate`); with `false` it lets it run on again.
    fn stay(&mut self, stay: bool);

    /// RAM was [handed over](crate::handover) to another process, whose guest writes it from now
    /// on: dropping this leaves the machine stopped, and it must never run or be saved here again,
    /// whoever asks for that. Without an implementation it just stays stopped, and to keep it so is
    /// up to its owner.
    fn gone(&mut self) {
        self.stay(true);
    }
}
