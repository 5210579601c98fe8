//! Work for the other cores.

use crate::boot::CORES;
use crate::console::exit;
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

const PSCI_CPU_ON: u64 = 0xc400_0003;

/// A job is the address of a `Job`, or 0 while there is none.
static JOBS: [AtomicUsize; CORES] = [const { AtomicUsize::new(0) }; CORES];

struct Job<'a>(&'a (dyn Fn(usize) + Sync));

unsafe extern "C" {
    fn secondary_start();
}

/// Starts all cores but this one.
pub fn start_all() {
    for core in 1..CORES {
        let result: i64;
        // SAFETY: PSCI, by SMC as this machine has EL2; the core starts on a stack of its own.
        unsafe {
            asm!("smc #0", inout("x0") PSCI_CPU_ON => result, in("x1") core as u64,
                in("x2") secondary_start as *const () as u64, in("x3") core as u64,
                clobber_abi("C"), options(nostack));
        }
        assert_eq!(result, 0, "core {core} does not start");
    }
}

/// A core's life: one job after the other.
pub fn serve(core: usize) -> ! {
    loop {
        let job = JOBS[core].load(Ordering::Acquire);
        if job == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: `with` keeps the job alive until this core has taken its address back.
        let job = unsafe { &*(job as *const Job<'_>) };
        (job.0)(core);
        JOBS[core].store(0, Ordering::Release);
    }
}

/// Runs `job` on the given cores while `meanwhile` runs on this one; returns when all are done.
pub fn with(cores: &[usize], job: &(dyn Fn(usize) + Sync), meanwhile: impl FnOnce()) {
    let job = Job(job);
    for core in cores {
        JOBS[*core].store(&raw const job as usize, Ordering::Release);
    }
    meanwhile();
    for core in cores {
        while JOBS[*core].load(Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn unexpected(group: u64) -> ! {
    let (esr, elr, far): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mrs {}, esr_el2", "mrs {}, elr_el2", "mrs {}, far_el2", out(reg) esr, out(reg) elr, out(reg) far);
    }
    println!("FAILED: exception {group}, esr {esr:#x}, elr {elr:#x}, far {far:#x}");
    exit(1)
}
