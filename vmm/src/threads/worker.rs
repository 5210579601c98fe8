//! A thread that plays a vCPU.

use std::sync::Arc;
use std::time::Duration;

use paguro_ram::GuestRam;
use paguro_stage2_tracker::soft::SoftLog;
use paguro_workload::layout::PARAMS_GPA;
use paguro_workload::params::PARAMS_BYTES;
use paguro_workload::progress::PROGRESS_BYTES;
use paguro_workload::{Cpu, End, Params, run};

use super::park::{Park, Parking};
use super::walker::Walker;
use crate::caught::caught;
use crate::control::Control;
use crate::progress::ProgressMemory;
use crate::state::ShutdownCause;

/// What a worker's thread works with, and what must outlive it.
pub(super) struct Worker {
    pub(super) vcpu: u32,
    pub(super) vcpus: u32,
    pub(super) park: Arc<Park>,
    pub(super) ram: GuestRam,
    /// The tables that stand between the thread and RAM, if any do.
    pub(super) log: Option<Arc<SoftLog>>,
    pub(super) progress: Arc<ProgressMemory>,
    pub(super) control: Arc<Control>,
}

impl Worker {
    pub(super) fn spawn(self) -> std::io::Result<()> {
        let park = self.park.clone();
        let name = format!("vcpu{}", self.vcpu);
        let spawned = paguro_sys::NewThread::named(name).spawn(move || {
            let parking = self.park.enter();
            paguro_sys::boost_timer();
            // Stopped wherever it is, so it may wait wherever it is.
            paguro_sys::wait_at_bus_errors(true);
            self.live(&parking);
        });
        if spawned.is_err() {
            park.never_entered();
        }
        spawned.map(drop)
    }

    fn live(&self, parking: &Parking<'_>) {
        if self.park.must_end() {
            return;
        }
        settle(self.vcpu, parking, &self.control, || {
            let (params, memory) = self.start(parking)?;
            self.run(parking, &params, memory)
        });
    }

    fn run(
        &self,
        parking: &Parking<'_>,
        params: &Params,
        mut memory: Memory<'_>,
    ) -> Result<End, String> {
        let vcpu = self.vcpu.into();
        let Some(log) = &self.log else {
            return Ok(parking.work(|| run(&mut memory, params, vcpu)));
        };
        let mut walker = Walker::new(memory, log, parking, params, vcpu);
        let end = parking.work(|| run(&mut walker, params, vcpu));
        match walker.stopped() {
            Some(stopped) => Err(format!("the tables do not let it through: {stopped:?}")),
            None => Ok(end),
        }
    }

    /// Reads from RAM what there is to do: as in a guest, nothing else is known.
    fn start(&self, parking: &Parking<'_>) -> Result<(Params, Memory<'_>), String> {
        let mut bytes = [0; PARAMS_BYTES];
        let block = self.ram.blocks().first().ok_or("there is no RAM")?;
        // This may wait for a page.
        parking.work(|| block.mapping().copy_out(PARAMS_GPA as usize, &mut bytes));
        let params = Params::from_bytes(&bytes).map_err(|error| error.to_string())?;
        if params.vcpus != u64::from(self.vcpus) || !params.threads {
            return Err(format!(
                "RAM has a workload for {} vCPUs{}",
                params.vcpus,
                if params.threads {
                    ""
                } else {
                    " of a real guest"
                }
            ));
        }
        let mut blocks = Vec::new();
        for block in self.ram.blocks() {
            blocks.push((
                block.guest_address(),
                block.used_bytes() as u64,
                block.mapping().as_ptr(),
            ));
        }
        for segment in params
            .area
            .segments
            .iter()
            .filter(|segment| segment.pages > 0)
        {
            let end = segment.gpa + segment.pages * paguro_workload::layout::PAGE_BYTES;
            let inside =
                |&(gpa, bytes, _): &(u64, u64, *mut u8)| gpa <= segment.gpa && end <= gpa + bytes;
            if !blocks.iter().any(inside) {
                return Err(format!(
                    "RAM has a workload for an area at {:#x}",
                    segment.gpa
                ));
            }
        }
        let mailbox = params.mailbox_of(self.vcpu.into());
        let memory = Memory {
            park: &self.park,
            low: blocks.first().copied().ok_or("there is no RAM")?,
            high: blocks
                .get(1)
                .copied()
                .unwrap_or((u64::MAX, 0, std::ptr::null_mut())),
            // SAFETY: mailboxes lie below 2 MiB (`Params` checks their place), within the first
            // block, which is at least that long.
            mailbox: unsafe { block.mapping().as_ptr().add(mailbox as usize) },
            // SAFETY: the progress memory was made for as many vCPUs as there are workers.
            progress: unsafe {
                self.progress
                    .mapping()
                    .as_ptr()
                    .add(PROGRESS_BYTES * self.vcpu as usize)
            },
        };
        Ok((params, memory))
    }
}

/// Does a vCPU's work, and tells the machine what came of it.
fn settle(
    vcpu: u32,
    parking: &Parking<'_>,
    control: &Control,
    work: impl FnOnce() -> Result<End, String>,
) {
    let end = caught(work);
    // From here on whoever stops the machine need not wait for this thread, which may hold
    // what they need.
    parking.retire();
    match end {
        Ok(End::Finished) if vcpu == 0 => {
            let detail = "the workload is done, the guest asked for a reset".to_owned();
            control.shut_down(ShutdownCause::GuestReset, Some(detail));
        }
        Ok(_) => {}
        Err(why) => control.fail(format!("vCPU {vcpu}: {why}")),
    }
    parking.wait_end();
}

/// RAM as a thread sees it: through the mapping of each block.
pub(super) struct Memory<'a> {
    park: &'a Park,
    low: (u64, u64, *mut u8),
    high: (u64, u64, *mut u8),
    mailbox: *mut u8,
    progress: *mut u8,
}

impl Memory<'_> {
    /// Where an address is in this process.
    #[inline(always)]
    pub(super) fn place(&self, gpa: u64) -> *mut u8 {
        let (start, _, base) = if gpa < self.high.0 {
            self.low
        } else {
            self.high
        };
        base.wrapping_add((gpa - start) as usize)
    }
}

impl Cpu for Memory<'_> {
    type Page = *mut u8;

    #[inline(always)]
    fn page(&mut self, gpa: u64) -> *mut u8 {
        self.place(gpa)
    }

    #[inline(always)]
    fn store(&mut self, page: *mut u8, word: usize, value: u64) {
        // SAFETY: a word of a page of the area, all of which lies in RAM (`Worker::start`).
        unsafe { page.cast::<u64>().add(word).write_volatile(value) }
    }

    #[inline(always)]
    fn load(&mut self, page: *mut u8, word: usize) -> u64 {
        // SAFETY: as for `store`.
        unsafe { page.cast::<u64>().add(word).read_volatile() }
    }

    #[inline(always)]
    fn mailbox_load(&mut self, offset: usize) -> u64 {
        // SAFETY: the workload passes offsets of words in a page.
        unsafe { self.mailbox.add(offset).cast::<u64>().read_volatile() }
    }

    #[inline(always)]
    fn mailbox_store(&mut self, offset: usize, value: u64) {
        // SAFETY: as for `mailbox_load`.
        unsafe { self.mailbox.add(offset).cast::<u64>().write_volatile(value) }
    }

    #[inline(always)]
    fn progress_load(&mut self, offset: usize) -> u64 {
        // SAFETY: the workload passes offsets of words below PROGRESS_BYTES.
        unsafe { self.progress.add(offset).cast::<u64>().read_volatile() }
    }

    #[inline(always)]
    fn progress_store(&mut self, offset: usize, value: u64) {
        // SAFETY: as for `progress_load`.
        unsafe {
            self.progress
                .add(offset)
                .cast::<u64>()
                .write_volatile(value)
        }
    }

    #[inline(always)]
    fn now_ticks(&mut self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * super::TICKS_PER_S + now.tv_nsec as u64
    }

    fn wait_us(&mut self, us: u32) {
        // Interrupted by the signal that parks: the workload asks again.
        let time = Duration::from_micros(us.into());
        let time = libc::timespec {
            tv_sec: time.as_secs() as _,
            tv_nsec: time.subsec_nanos().into(),
        };
        // SAFETY: the time is valid, and no remainder is asked for.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }

    #[inline(always)]
    fn must_stop(&mut self) -> bool {
        self.park.nap_if_told();
        self.park.must_end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::caught::tests::failure_of;
    use crate::threads::park;

    fn why_it_failed(whole: bool) -> String {
        park::install().unwrap();
        let park = Arc::new(Park::default());
        let its = park.clone();
        let why = failure_of(park.clone(), |control, body| {
            let vcpu = move || {
                let parking = its.enter();
                settle(3, &parking, &control, || {
                    parking.work(|| if whole { parking.whole(body) } else { body() });
                    Ok(End::Stopped)
                });
            };
            let named = paguro_sys::NewThread::named("vcpu3".to_owned());
            named.spawn(vcpu).unwrap();
        });
        assert!(!park.wait_gone(Instant::now()));
        park.end();
        assert!(park.wait_gone(Instant::now() + Duration::from_secs(20)));
        why
    }

    #[test]
    fn a_panic_at_work_fails_the_machine_and_holds_up_no_pause() {
        let why = why_it_failed(false);
        assert_eq!(why, "vCPU 3: its thread vcpu3 panicked: table 7 is gone");
    }

    #[test]
    fn a_panic_in_a_part_that_is_done_whole_fails_the_machine_and_holds_up_no_pause() {
        let why = why_it_failed(true);
        assert_eq!(why, "vCPU 3: its thread vcpu3 panicked: table 7 is gone");
    }
}
