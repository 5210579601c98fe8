//! What the engine needs from a VMM.
//!
//! A VMM implements [`Board`], [`Machine`] and [`Paused`]; nothing else of it is known here. The order
//! of a pause is the engine's business and is kept by these types: whoever pauses holds a [`Paused`], and
//! ends it by [`Paused::resume`], or by letting go of it after [`Paused::stay`].

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
    /// Called in the thread that takes the snapshot or migrates, which is the VMM's: it may wait there.
    ///
    /// **How devices are made quiet.** In this order: vCPUs first, so that nothing new is asked of a
    /// device; then each device ends what it has in hand (a request that was taken from a queue is
    /// completed, and the interrupt of that is part of its state) and takes no more. A device with a thread
    /// of its own is told and waited for: the thread looks for the order between two pieces of work, says
    /// that it rests, and waits (`examples/vmm.rs`). I/O of the kernel into guest RAM (io_uring, AIO,
    /// vhost) is drained: submitted no more, and its completions waited for. What a device cannot finish
    /// (a disk that does not answer) is an error here, or the pause lasts as long.
    ///
    /// **A VMM of one thread**, which emulates devices and serves its API in one event loop, makes them quiet
    /// by standing still itself: the snapshot runs in another thread; `pause` has the loop hand over
    /// between two events and wait. While it waits it serves nobody, so it must not be asked for anything
    /// that the snapshot needs, and whoever cancels does it from elsewhere ([`Control`](crate::Control) may
    /// be shared). Where that is too long (below), the loop goes on with its API alone, and leaves the
    /// events of devices unread: what matters is that no device writes RAM.
    ///
    /// **How long it may last** until the [`Paused`] goes: a background snapshot some milliseconds; a
    /// stopped snapshot as long as its file takes, and afterwards nobody resumes; a migration from the
    /// stop until the outcome is known, which is the downtime, but for as long as it is in doubt, and so
    /// until the destination answers or an operator decides. Meanwhile these go on: page faults on its
    /// RAM ([`Memory`] does that by itself), the commands by which an operator looks and decides
    /// ([`Migration`](crate::source::Migration)), and whatever the operator needs to send them.
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

/// Why a machine stays at rest when its pause is over. What a VMM answers to whoever wants it to run again
/// hangs on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stay {
    /// It was stopped for its snapshot, which is complete. It may run again, beside what is in the file, if
    /// its owner wants that.
    Stopped,
    /// Its copy runs at the destination, or will as soon as somebody there says so. Here it is whole, and
    /// runs again only at the word of an operator who knows that the copy does not.
    MigratedAway,
    /// Its RAM was [handed over](crate::handover) to another process, whose guest writes it from now on: it
    /// must never run or be saved here again, whoever asks for that.
    HandedOver,
    /// Its copy may run elsewhere, or be run from a file, and nobody knows. As [`Stay::MigratedAway`]; but
    /// RAM that was being handed over may have been written there, and then it can never run here.
    InDoubt,
    /// Pages of its RAM are lost: it is to run nowhere.
    Spoilt,
}

/// A machine at rest.
///
/// Its pause ends with [`Paused::resume`], which says whether it runs, or when this is dropped: after
/// [`Paused::stay`] it stays at rest; otherwise dropping it is the last resort, of a panic, and does what
/// `resume` does with nobody there to hear that it failed.
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

    /// Ends the pause: devices go on, then vCPUs, if they did before it; also after [`Paused::stay`], which
    /// it takes back. A machine that was stopped before its pause, or was told meanwhile to stop, stays so,
    /// which is no error.
    ///
    /// # Errors
    ///
    /// The machine's: it was to run on, and stands still. The engine tells it with the outcome of what it
    /// was doing, and does not try again.
    fn resume(self: Box<Self>) -> Result<(), MachineError>;

    /// From now on dropping this leaves the machine at rest, for this reason; the last one counts. Called
    /// before the outcome is known, so that not even a panic lets a guest run twice.
    fn stay(&mut self, why: Stay);
}
