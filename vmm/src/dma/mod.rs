//! The device `x-dma`: threads that fill pages of guest RAM behind the vCPUs' backs.
//!
//! It exists so that a freeze meets what real devices do. One writer fills pages by `read(2)` from
//! a file: the kernel writes through the mapping, so a freeze sees it like a vCPU. The other keeps
//! `O_DIRECT` reads in flight: their pages are pinned before the data comes, and a freeze that
//! begins meanwhile does not see the data come; so a pause waits until none is in flight.
//!
//! Both write what the workload's arithmetic says for a device, page after page, and keep a
//! counter each in the device's saved state. Neither is seen by KVM's log, nor direct reads by the
//! protection of pages: both say which pages they wrote ([`Marks`]). Direct reads end in any order; they are started in
//! batches without a page twice, and the counter moves only by whole batches.

mod direct;
mod filler;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paguro_dirty::tracker::Marks;
use paguro_migration::machine::{Writer, WriterClass};
use paguro_ram::GuestRam;
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};
use paguro_workload::area::{DMA, DMA_DIRECT};

use crate::control::{Control, Hold};
use crate::devices::compare;
use crate::gate::Gate;
use crate::{DmaConfig, DmaCounters, VmError};

pub(crate) const SECTION: &str = "paguro/x-dma";
const VERSION: u32 = 1;

/// The device, with its threads.
pub(crate) struct Dma {
    config: DmaConfig,
    waits: bool,
    writers: Vec<Arc<filler::Filler>>,
}

/// What a picture says of the device.
pub(crate) struct DmaState {
    pub(crate) config: DmaConfig,
    counters: DmaCounters,
}

impl Dma {
    /// Makes the device; its threads wait at their gates.
    pub(crate) fn new(
        config: DmaConfig,
        ram: &GuestRam,
        marks: &Marks,
        control: &Arc<Control>,
        waits: bool,
    ) -> Result<Self, VmError> {
        let mut device = Self {
            config,
            waits,
            writers: Vec::new(),
        };
        device.add(DMA, Box::new(filler::ByRead::new()?), ram, marks, control)?;
        if config.direct {
            device.add(
                DMA_DIRECT,
                Box::new(direct::ByDirectRead::new()?),
                ram,
                marks,
                control,
            )?;
        }
        Ok(device)
    }

    fn add(
        &mut self,
        number: u64,
        how: Box<dyn filler::Fill>,
        ram: &GuestRam,
        marks: &Marks,
        control: &Arc<Control>,
    ) -> Result<(), VmError> {
        let filler = Arc::new(filler::Filler {
            number,
            rate_pages_per_s: self.config.rate_pages_per_s,
            done: AtomicU64::new(0),
            gate: Gate::new(),
            waits: self.waits,
            marks: marks.clone(),
        });
        self.writers.push(filler.clone());
        filler::spawn(filler, how, ram.clone(), control.clone())
            .map_err(VmError::host("start a thread of the device x-dma"))
    }

    pub(crate) fn gates(&self) -> Vec<Arc<dyn Hold>> {
        self.writers
            .iter()
            .map(|writer| writer.clone() as Arc<dyn Hold>)
            .collect()
    }

    /// How its writers behave towards a freeze.
    pub(crate) fn writers(&self) -> Vec<Writer> {
        let read = ("x-dma", WriterClass::Seen);
        let direct = self
            .config
            .direct
            .then_some(("x-dma direct", WriterClass::Drained));
        let writers = [Some(read), direct].into_iter().flatten();
        writers
            .map(|(name, class)| Writer {
                name: name.to_owned(),
                class,
            })
            .collect()
    }

    pub(crate) fn counters(&self) -> DmaCounters {
        let done = |index: usize| {
            self.writers
                .get(index)
                .map_or(0, |writer| writer.done.load(Ordering::Acquire))
        };
        DmaCounters {
            done: done(0),
            direct_done: self.config.direct.then(|| done(1)),
        }
    }

    /// A list of (writer number, writes done), then the rate.
    pub(crate) fn save(&self) -> Result<DeviceSection, DeviceError> {
        SectionWriter::new(SECTION, 0, VERSION)
            .array_struct("writers", &self.writers, |section, writer| {
                section
                    .u64("writer", writer.number)
                    .u64("done", writer.done.load(Ordering::Acquire));
            })
            .u64("rate_pages_per_s", self.config.rate_pages_per_s)
            .finish()
    }

    /// Takes over a state. The rate stays this machine's.
    pub(crate) fn load(&self, section: &DeviceSection) -> Result<(), VmError> {
        let state = DmaState::read(section)?;
        compare(
            "the device x-dma with direct",
            state.config.direct,
            self.config.direct,
        )?;
        let done = [state.counters.done, state.counters.direct_done.unwrap_or(0)];
        for (writer, done) in self.writers.iter().zip(done) {
            writer.done.store(done, Ordering::Release);
        }
        Ok(())
    }

    /// Ends all threads; one that a page fault holds is left behind.
    pub(crate) fn end(&self, most: Duration) {
        let deadline = Instant::now() + most;
        self.writers.iter().for_each(|writer| writer.gate.end());
        for writer in &self.writers {
            if !writer.gate.wait_gone(deadline) {
                tracing::warn!(writer = writer.number, "a device's thread is left behind");
            }
        }
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        self.writers.iter().for_each(|writer| writer.gate.end());
    }
}

impl DmaState {
    pub(crate) fn read(section: &DeviceSection) -> Result<Self, DeviceError> {
        let mut reader = SectionReader::open(section, SECTION, 1..=VERSION)?;
        let writers = reader.array_struct("writers", |r| Ok((r.u64("writer")?, r.u64("done")?)))?;
        let counters = match writers[..] {
            [(DMA, done)] => DmaCounters {
                done,
                direct_done: None,
            },
            [(DMA, done), (DMA_DIRECT, direct)] => DmaCounters {
                done,
                direct_done: Some(direct),
            },
            _ => {
                let found = format!(
                    "{:?}",
                    writers.iter().take(4).map(|w| w.0).collect::<Vec<_>>()
                );
                return Err(reader.bad_value("writers", "1024, or 1024 and 1025", found));
            }
        };
        let rate_pages_per_s = reader.u64("rate_pages_per_s")?;
        reader.finish()?;
        let direct = counters.direct_done.is_some();
        Ok(Self {
            config: DmaConfig {
                rate_pages_per_s,
                direct,
            },
            counters,
        })
    }
}
