//! A machine together with the file that it came back from: what the control socket works on.

use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::Result;
use paguro_dirty::tracker::DirtyRate;
use paguro_dirty::{Sampling, SamplingError};
use paguro_migration::channel::{self, Address, Listener};
use paguro_migration::destination::{self, Arrival, ReceiveError};
use paguro_migration::machine::{Machine, Stay, WriterClass};
use paguro_migration::restore::{Filler, MapWatch, RestoreMode, Waiters};
use paguro_migration::source::{self, MigrateOptions, Migration};
use paguro_migration::{
    Control, SnapshotError, SnapshotOptions, check_can_freeze, snapshot, snapshot_to_stream,
};
use paguro_ram::{Backing, GuestRam};
use paguro_sys::{Advice, HUGE_PAGE_BYTES};
use paguro_vmm::{Config, RunState, StateError, Vm};
use paguro_workload::Size;
use paguro_workload::area::{DMA, DMA_DIRECT};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// A machine that can be saved.
pub struct Guest {
    vm: Arc<Vm>,
    restored: Option<Return>,
}

/// How a machine came back from a file.
pub struct Return {
    /// In which way.
    pub mode: RestoreMode,
    /// What fills its RAM, if that happens while it runs.
    pub filler: Option<Arc<Filler>>,
    /// What watches the file that its RAM maps, if it does.
    pub watch: Option<Arc<MapWatch>>,
    /// What its file brought about.
    pub alarm: Arc<Alarm>,
}

impl Guest {
    /// A machine, and how it came back if it did.
    pub fn new(vm: Arc<Vm>, restored: Option<Return>) -> Self {
        Self { vm, restored }
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What it is made of.
    pub fn config(&self) -> &Config {
        self.vm.config()
    }

    /// Its RAM.
    pub fn ram(&self) -> &GuestRam {
        self.vm.guest_ram()
    }

    /// Saves it; blocks until that is done.
    pub fn snapshot(
        &self,
        path: &Path,
        options: &SnapshotOptions,
        control: &Control,
    ) -> Result<Value> {
        let report = snapshot(&*self.vm, path, options, control)?;
        Ok(serde_json::to_value(report)?)
    }

    /// Saves it as a stream; blocks until that is done.
    pub fn snapshot_to_stream(
        &self,
        address: &Address,
        channel: &channel::Options,
        options: &SnapshotOptions,
        control: &Control,
    ) -> Result<Value> {
        let report = snapshot_to_stream(&*self.vm, address, channel, options, control)?;
        Ok(serde_json::to_value(report)?)
    }

    /// Moves it to another process; blocks until it is decided where it runs.
    pub fn migrate(&self, options: &MigrateOptions, migration: &Migration) -> Result<Value> {
        let report = source::migrate(&*self.vm, options, migration)?;
        Ok(serde_json::to_value(report)?)
    }

    /// Lets it come in; blocks until it is decided where it runs, and nobody can ask any more.
    pub fn receive(&self, listener: Listener, arrival: &Arrival) -> Result<(), ReceiveError> {
        destination::receive(&*self.vm, listener, arrival)
    }

    /// How fast it writes while `wait` waits, by a sample.
    pub fn sample_writes(
        &self,
        sampling: &Sampling,
        wait: impl FnOnce(),
    ) -> Result<DirtyRate, SamplingError> {
        self.vm.memory().sample_writes(sampling, wait)
    }

    /// Whether its RAM could be frozen on this host; if not, why.
    pub fn check_can_freeze(&self) -> Result<(), SnapshotError> {
        check_can_freeze(&*self.vm)
    }

    /// Why it failed, if it did. What became of its file comes first: whatever else was noticed may
    /// come of what stands in RAM therefore.
    pub fn failure(&self) -> Option<String> {
        let reason = self.vm.failure()?;
        let alarm = self.restored.as_ref().and_then(|it| it.alarm.reason());
        match alarm.filter(|alarm| *alarm != reason) {
            Some(alarm) => Some(format!("{alarm}; {reason}")),
            None => Some(reason),
        }
    }

    fn watch(&self) -> Option<&MapWatch> {
        self.restored.as_ref()?.watch.as_deref()
    }

    fn filler(&self) -> Option<&Filler> {
        self.restored.as_ref()?.filler.as_deref()
    }

    /// Why it does not run, if it failed, or is halted until `cont`.
    pub fn trouble(&self) -> Option<String> {
        self.failure().or_else(|| self.vm.halted())
    }

    /// It runs again: what it waits for is tried again as if it had been asked for just now.
    pub fn resumed(&self) {
        if let Some(filler) = self.filler() {
            filler.renew();
        }
        if let Some(watch) = self.watch() {
            watch.renew();
        }
    }

    /// Whether its state allows a migration; if not, why.
    pub fn check_can_migrate(&self) -> Result<(), String> {
        match self.vm.run_state() {
            RunState::InMigrate => Err("Guest is waiting for an incoming migration".to_owned()),
            RunState::PostMigrate => Err(match self.vm.stays() {
                Some(Stay::HandedOver) => StateError::Gone.to_string(),
                Some(Stay::Spoilt) => StateError::Spoilt.to_string(),
                _ => "Can't migrate the vm that was paused due to previous migration; 'cont' first"
                    .to_owned(),
            }),
            RunState::IoError => Err(match self.vm.halted() {
                Some(reason) => format!("the machine is stopped, 'cont' first: {reason}"),
                None => "the machine was stopped, 'cont' first".to_owned(),
            }),
            RunState::InternalError => Err(match self.failure() {
                Some(reason) => format!("the machine has failed: {reason}"),
                None => "the machine has failed".to_owned(),
            }),
            RunState::Shutdown => Err("the machine has ended".to_owned()),
            _ => Ok(()),
        }
    }

    /// Its writers, as `x-paguro-query-writers` lists them.
    pub fn writers(&self) -> Value {
        let list = self.vm.writers().into_iter().map(|writer| {
            let class = match writer.class {
                WriterClass::Seen => "seen",
                WriterClass::Drained => "drained",
                WriterClass::Unseen => "unseen",
            };
            json!({ "name": writer.name, "class": class })
        });
        Value::from_iter(list)
    }

    /// The counters of its devices that write RAM, as `x-paguro-query-device-writers` lists them.
    pub fn device_writers(&self) -> Value {
        let Some(counters) = self.vm.dma_counters() else {
            return json!([]);
        };
        let writers = [
            (DMA, Some(counters.done)),
            (DMA_DIRECT, counters.direct_done),
        ];
        let there = writers
            .into_iter()
            .filter_map(|(writer, done)| Some(json!({ "writer": writer, "done": done? })));
        Value::from_iter(there)
    }

    /// Has all of RAM arrive, and be present. Another process cannot do that by reading this one's
    /// memory: the kernel does not let it wait for a userfaultfd.
    pub fn touch(&self) -> Result<()> {
        if let Some(filler) = self.filler() {
            filler.bring_all()?;
        }
        for block in self.ram().blocks() {
            let (mapping, bytes) = (block.mapping(), block.used_bytes());
            for at in (0..bytes).step_by(HUGE_PAGE_BYTES) {
                let len = HUGE_PAGE_BYTES.min(bytes - at);
                if block.backing() == Backing::PrivateFile
                    && let Err(error) = mapping.advise(at, len, Advice::PopulateRead)
                    && error.is_unreadable()
                {
                    return Err(error.into());
                }
                mapping.touch(at, len);
            }
        }
        Ok(())
    }

    /// Asks the kernel to join pages to huge ones, wherever 2 MiB of a block have something in
    /// them; the bytes for which it said yes.
    pub fn collapse(&self) -> u64 {
        let mut bytes = 0;
        for block in self.ram().blocks() {
            for at in (0..block.used_bytes() / HUGE_PAGE_BYTES).map(|at| at * HUGE_PAGE_BYTES) {
                let mapping = block.mapping();
                match mapping.advise(at, HUGE_PAGE_BYTES, Advice::Collapse) {
                    Ok(()) => bytes += HUGE_PAGE_BYTES as u64,
                    Err(error) => tracing::debug!(%error, "not collapsed"),
                }
            }
        }
        bytes
    }

    /// How far its RAM is filled, and whether what fills it can be read; `{}` if nothing does.
    pub fn restore_progress(&self) -> Value {
        let mut progress = json!({});
        let (reads, trouble) = match (self.filler(), self.watch()) {
            (Some(filler), _) => {
                progress = json!({
                    "total-pages": filler.total_pages(),
                    "left-pages": filler.left_pages(),
                    "faults": filler.faults_served(),
                    "done": filler.is_done(),
                    "failed": filler.has_failed(),
                });
                (filler.failed_reads(), filler.trouble())
            }
            (None, Some(watch)) => (watch.failed_reads(), watch.trouble()),
            (None, None) => return progress,
        };
        progress["failed-reads"] = reads.into();
        if let Some(trouble) = trouble {
            progress["trouble"] = trouble.into();
        }
        progress
    }

    /// What it is, how long it took to make, and what became of what it said.
    pub fn describe(&self) -> Value {
        let config = self.config();
        let timings = self.vm.timings();
        let serial = self.vm.serial_counts();
        let mode = self
            .restored
            .as_ref()
            .map(|restored| mode_name(restored.mode));
        json!({
            "accel": config.accel.name(),
            "cpus": config.cpus,
            "memory": Size(config.memory_bytes).to_string(),
            "memory-bytes": config.memory_bytes,
            "restore-mode": mode,
            "main-at-ns": crate::MAIN_AT_NS.get(),
            "create-us": {
                "vm": timings.vm_us,
                "memslots": timings.memslots_us,
                "chips": timings.chips_us,
                "vcpus": timings.vcpus_us,
                "total": timings.total_us,
            },
            "serial": {
                "written-bytes": serial.written_bytes,
                "lost-bytes": serial.lost_bytes,
            },
        })
    }
}

fn mode_name(mode: RestoreMode) -> &'static str {
    match mode {
        RestoreMode::Eager => "eager",
        RestoreMode::Map => "map",
        RestoreMode::Lazy => "lazy",
    }
}

/// Brings the failure of whoever fills RAM to the machine.
pub struct Alarm {
    reason: Mutex<Option<String>>,
    /// Weak, as the machine keeps its memory, and the memory keeps whoever raises this.
    vm: Weak<Vm>,
}

impl Alarm {
    /// For this machine.
    pub fn new(vm: &Arc<Vm>) -> Self {
        Self {
            reason: Mutex::default(),
            vm: Arc::downgrade(vm),
        }
    }

    /// Something that the machine cannot live with. The first reason counts.
    pub fn raise(&self, reason: String) {
        let mut first = self.reason.lock();
        if let Some(vm) = self.vm.upgrade() {
            vm.fail(&reason);
        }
        first.get_or_insert(reason);
    }

    /// Something that the machine cannot go on without for now. One that is going can wait for nothing.
    pub fn halt(&self, reason: String) -> Waiters {
        match self.vm.upgrade() {
            Some(vm) => {
                vm.halt(reason);
                Waiters::Keep
            }
            None => Waiters::LetGo,
        }
    }

    /// The first reason that was raised.
    fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }
}
