//! RAM as a thread sees it through stage-2 tables.
//!
//! Every load and store of the thread, those of its mailbox too, looks its address up anew: in the
//! thread's TLB, or in the tables, taking the faults that a CPU would take. A pointer that was kept
//! from one store to the next would be a translation that nobody can invalidate.
//!
//! # A thread that is stopped halfway
//!
//! Whoever harvests the log holds the table lock, and waits in each invalidation until no thread is
//! between translation and access: that is what the completion of an invalidation means. A thread that
//! the signal parked there would hold its TLB, or have a ticket of the table lock, for as long as the
//! machine rests, and the last harvest comes while it rests: it would wait for ever. If instead the
//! harvest passed over threads that are parked, such a thread would wake up with an address that was
//! invalidated meanwhile, and write where nobody looks any more. So an access is done whole
//! ([`Parking::whole`]): the signal finds the thread in it and goes away again, and the thread parks
//! behind it. Nothing that a machine at rest holds is waited for within: the table lock belongs to
//! running threads, which give it back, and to passes of the harvester, which give it up between
//! chunks and wait for no thread but those that are in an access.
//!
//! One thing may hold up an access for longer: RAM itself, where a page fault waits for a freeze or for
//! a page that has not arrived. Pausing must not wait for these. So the word is *touched* before, where
//! the thread can be parked: the fault is taken and served there, and the access that follows meets
//! memory that is present and writable. Only a freeze that arms the page between the two makes the
//! access fault; it releases the page without waiting for a pause.

use std::sync::atomic::{AtomicU64, Ordering};

use paguro_ram::GuestRam;
use paguro_stage2::sim::{Arena, Cpus, SoftCpu, Stopped};
use paguro_stage2::{Access, BlockChange, LogMode};
use paguro_stage2_tracker::soft::{self, SoftLog};
use paguro_stage2_tracker::{Bitmap, RamLogError};
use paguro_workload::{Cpu, Params};

use super::park::Parking;
use super::worker::Memory;
use crate::Config;
use crate::config::{Stage2Config, Stage2Sabotage};

/// Tables over all of RAM, and a TLB for each vCPU.
pub(super) fn log(
    stage2: Stage2Config,
    config: &Config,
    ram: &GuestRam,
) -> Result<SoftLog, RamLogError> {
    let count = config.cpus as usize;
    let cpus = match stage2.sabotage {
        Stage2Sabotage::None => Cpus::new(count),
        Stage2Sabotage::NoInvalidation => Cpus::without_invalidation(count),
        Stage2Sabotage::LateInvalidation => Cpus::with_late_invalidation(count),
    };
    let tables = paguro_stage2::Config {
        hardware_dirty: stage2.log.mode == LogMode::Hardware,
        block_change: match stage2.sabotage {
            Stage2Sabotage::None => BlockChange::BreakBeforeMake,
            // What is broken shall be seen in what arrives, not by a TLB that holds two entries.
            _ => BlockChange::Direct,
        },
        ..paguro_stage2::Config::new(soft::ipa_bits(ram))
    };
    soft::log(ram, tables, cpus, config.cpus)
}

/// A thread's RAM, behind the tables.
pub(super) struct Walker<'a> {
    memory: Memory<'a>,
    cpu: SoftCpu<'a, Arena, Bitmap>,
    parking: &'a Parking<'a>,
    mailbox_gpa: u64,
    stopped: Option<Stopped>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(
        memory: Memory<'a>,
        log: &'a SoftLog,
        parking: &'a Parking<'a>,
        params: &Params,
        vcpu: u64,
    ) -> Self {
        Self {
            memory,
            cpu: SoftCpu::new(log.tables(), vcpu as usize),
            parking,
            mailbox_gpa: params.mailbox_of(vcpu),
            stopped: None,
        }
    }

    /// The access that the tables refused. They map all of RAM, so there should be none.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    #[inline]
    fn write(&mut self, gpa: u64, value: u64) {
        let word = self.memory.place(gpa).cast::<u64>();
        // SAFETY: an aligned word of RAM: callers pass words of the area and of the mailbox.
        unsafe { AtomicU64::from_ptr(word) }.fetch_or(0, Ordering::Relaxed);
        let (memory, cpu) = (&self.memory, &mut self.cpu);
        let store = |pa: u64| {
            // SAFETY: the tables map RAM and nothing else, each address to its own.
            unsafe {
                memory
                    .place(pa - soft::OUTPUT)
                    .cast::<u64>()
                    .write_volatile(value)
            }
        };
        let done = self.parking.whole(|| cpu.access(gpa, Access::Write, store));
        if let Err(stopped) = done {
            self.stopped = Some(stopped);
        }
    }

    #[inline]
    fn read(&mut self, gpa: u64) -> u64 {
        // SAFETY: as for `write`.
        unsafe { self.memory.place(gpa).cast::<u64>().read_volatile() };
        let (memory, cpu) = (&self.memory, &mut self.cpu);
        let load = |pa: u64| {
            // SAFETY: as for `write`.
            unsafe {
                memory
                    .place(pa - soft::OUTPUT)
                    .cast::<u64>()
                    .read_volatile()
            }
        };
        let done = self.parking.whole(|| cpu.access(gpa, Access::Read, load));
        done.unwrap_or_else(|stopped| {
            self.stopped = Some(stopped);
            0
        })
    }
}

impl Cpu for Walker<'_> {
    /// Where it is for the guest.
    type Page = u64;

    #[inline(always)]
    fn page(&mut self, gpa: u64) -> u64 {
        gpa
    }

    #[inline(always)]
    fn store(&mut self, page: u64, word: usize, value: u64) {
        self.write(page + 8 * word as u64, value);
    }

    #[inline(always)]
    fn load(&mut self, page: u64, word: usize) -> u64 {
        self.read(page + 8 * word as u64)
    }

    #[inline(always)]
    fn mailbox_load(&mut self, offset: usize) -> u64 {
        self.read(self.mailbox_gpa + offset as u64)
    }

    #[inline(always)]
    fn mailbox_store(&mut self, offset: usize, value: u64) {
        self.write(self.mailbox_gpa + offset as u64, value);
    }

    #[inline(always)]
    fn progress_load(&mut self, offset: usize) -> u64 {
        self.memory.progress_load(offset)
    }

    #[inline(always)]
    fn progress_store(&mut self, offset: usize, value: u64) {
        self.memory.progress_store(offset, value);
    }

    #[inline(always)]
    fn now_ticks(&mut self) -> u64 {
        self.memory.now_ticks()
    }

    fn wait_us(&mut self, us: u32) {
        self.memory.wait_us(us);
    }

    #[inline(always)]
    fn must_stop(&mut self) -> bool {
        self.stopped.is_some() || self.memory.must_stop()
    }
}
