//! vCPUs as threads of this process.
//!
//! They run the same workload over the same RAM, keep the same counters in it, and are stopped in
//! mid-write as vCPUs are, so a picture of such a machine means the same and is checked by the
//! same oracle. Nothing of `/dev/kvm` is needed, and page faults come from user mode.
//!
//! Who wrote what is known by the kernel (pages protected for everybody), or by Arm stage-2 tables in
//! software: then each thread looks its addresses up in a TLB of its own and in the tables, as a CPU
//! does, and its writes are logged as a hypervisor logs them.

mod park;
mod walker;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_dirty::tracker::{AsyncProtect, Tracker};
use paguro_migration::Memory;
use paguro_ram::GuestRam;
use paguro_stage2_tracker::Stage2Tracker;
use paguro_stage2_tracker::soft::SoftLog;
use paguro_wire::device::{DeviceSection, SectionReader, SectionWriter};

use crate::control::{Control, Hold};
use crate::devices::{Sections, compare};
use crate::progress::ProgressMemory;
use crate::{Config, VmError};

pub(crate) const SECTION: &str = "paguro/threads";
const VERSION: u32 = 1;

/// Ticks a second of the clock that the threads read: nanoseconds.
pub(crate) const TICKS_PER_S: u64 = 1_000_000_000;

/// All threads that play a vCPU.
pub(crate) struct ThreadCpus {
    parks: Vec<Arc<park::Park>>,
    log: Option<Arc<SoftLog>>,
}

impl ThreadCpus {
    /// Starts them, parked.
    pub(crate) fn new(
        config: &Config,
        ram: &GuestRam,
        progress: &Arc<ProgressMemory>,
        control: &Arc<Control>,
    ) -> Result<Self, VmError> {
        park::install().map_err(VmError::host("handle the signal that parks threads"))?;
        let log = config.stage2.map(|stage2| walker::log(stage2, config, ram));
        let mut cpus = Self {
            parks: Vec::new(),
            log: log.transpose()?.map(Arc::new),
        };
        for vcpu in 0..config.cpus {
            let park = Arc::new(park::Park::default());
            let worker = worker::Worker {
                vcpu,
                vcpus: config.cpus,
                park: park.clone(),
                ram: ram.clone(),
                log: cpus.log.clone(),
                progress: progress.clone(),
                control: control.clone(),
            };
            cpus.parks.push(park);
            worker
                .spawn()
                .map_err(VmError::host("start a thread that plays a vCPU"))?;
        }
        for pair in cpus.parks.windows(2) {
            pair[0].chain(pair[1].clone());
        }
        Ok(cpus)
    }

    pub(crate) fn parks(&self) -> Vec<Arc<dyn Hold>> {
        self.parks
            .iter()
            .map(|park| park.clone() as Arc<dyn Hold>)
            .collect()
    }

    /// A tracker of what they write.
    pub(crate) fn tracker(&self, config: &Config, memory: &Memory) -> Arc<dyn Tracker> {
        match (&self.log, config.stage2) {
            (Some(log), Some(stage2)) => Arc::new(Stage2Tracker::new(log.clone(), stage2.log)),
            _ => Arc::new(AsyncProtect::new(memory.host(), memory.ram().clone())),
        }
    }

    /// There is nothing but their number: the counters are in RAM.
    pub(crate) fn save(&self) -> Result<Vec<DeviceSection>, VmError> {
        let workers = self.parks.len() as u32;
        Ok(vec![
            SectionWriter::new(SECTION, 0, VERSION)
                .u32("workers", workers)
                .finish()?,
        ])
    }

    pub(crate) fn load(&self, sections: &mut Sections<'_>) -> Result<(), VmError> {
        let section = sections.take(SECTION, 0)?;
        let mut reader = SectionReader::open(section, SECTION, 1..=VERSION)?;
        let workers = reader.u32("workers")?;
        reader.finish()?;
        compare("a number of threads of", workers, self.parks.len() as u32)
    }

    /// Ends all threads; one that a page fault holds is left behind.
    pub(crate) fn end(&self, most: Duration) {
        let deadline = Instant::now() + most;
        self.parks.iter().for_each(|park| park.end());
        for (vcpu, park) in self.parks.iter().enumerate() {
            if !park.wait_gone(deadline) {
                tracing::warn!(vcpu, "a thread does not end; it is left behind");
            }
        }
    }
}

impl Drop for ThreadCpus {
    fn drop(&mut self) {
        self.parks.iter().for_each(|park| park.end());
    }
}
