//! The thread of a vCPU.
//!
//! A vCPU is taken out of the guest by a signal: `KVM_RUN` returns, also from a page fault that
//! it waits in. The signal's handler sets `immediate_exit` in the vCPU's shared page, so a signal
//! that comes just before `KVM_RUN` is not lost. (A guest in code that KVM emulates may hold on
//! to a page fault until the page comes; the signal is repeated until the vCPU is at rest.)
//!
//! An exit for I/O is complete only when `KVM_RUN` is entered again. Before a vCPU rests, it is
//! therefore entered once more with `immediate_exit` set, and only then are its registers true.
//!
//! Where RAM maps a file, KVM says of a page that cannot be read now that it cannot reach memory. The
//! guest has not got past the access, so entering again is trying again.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, compiler_fence};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use paguro_dirty::tracker::KvmRings;
use paguro_ram::GuestRam;
use parking_lot::Mutex;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::bus::{Bus, Next};
use crate::caught;
use crate::control::Control;
use crate::gate::{Gate, Passage};
use crate::progress::ProgressMemory;
use crate::state::ShutdownCause;

/// `KVM_EXIT_DIRTY_RING_FULL`, for which kvm-ioctls has no name.
const RING_FULL: u32 = 31;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

static INSTALL: Once = Once::new();

/// The signal that takes a vCPU out of the guest.
pub(super) fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Makes that signal do so, for the whole process.
pub(super) fn install_kick() {
    INSTALL.call_once(|| {
        if let Err(error) = register_signal_handler(kick_signal(), on_kick) {
            tracing::error!(%error, "vCPUs cannot be kicked");
        }
    });
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: points into the shared page of this thread's own vCPU, which the thread keeps
        // mapped as long as the pointer is set. KVM and this thread only access it as a byte.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

/// What a vCPU's thread works with, and what must outlive it.
pub(super) struct Thread {
    pub(super) index: u32,
    pub(super) fd: Arc<Mutex<VcpuFd>>,
    pub(super) gate: Arc<Gate>,
    pub(super) paused: Arc<AtomicBool>,
    pub(super) bus: Arc<Bus>,
    pub(super) control: Arc<Control>,
    pub(super) rings: Option<Arc<KvmRings>>,
    /// How long it is tried again to reach memory.
    pub(super) memory_retry: Duration,
    pub(super) _vm: Arc<VmFd>,
    pub(super) _ram: GuestRam,
    pub(super) _progress: Arc<ProgressMemory>,
}

enum Exit {
    Next(Next),
    Interrupted,
    /// `KVM_RUN` could not reach guest memory, and may have said where.
    Unreachable(Option<u64>),
}

/// How often a vCPU that is to rest and cannot looks whether it can.
const LOOK: Duration = Duration::from_millis(5);

/// Since when the guest cannot go on, and how long to wait before the next try.
struct Missing {
    since: Instant,
    step: Duration,
}

impl Thread {
    pub(super) fn spawn(self) -> io::Result<()> {
        let gate = self.gate.clone();
        let name = format!("vcpu{}", self.index);
        let spawned = paguro_sys::NewThread::named(name).spawn(move || self.live());
        if spawned.is_err() {
            gate.never_entered();
        }
        spawned.map(drop)
    }

    fn live(self) {
        let passage = self.gate.enter();
        paguro_sys::boost_timer();
        let who = format!("vCPU {}", self.index);
        caught::live(&passage, &self.control, &who, || {
            self.work(&passage);
            Ok(())
        });
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }

    fn work(&self, passage: &Passage<'_>) {
        {
            let mut fd = self.fd.lock();
            IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        }
        while passage.pass() {
            let mut fd = self.fd.lock();
            if self.paused.swap(false, Ordering::AcqRel) {
                // Refused where the guest has no kvmclock: nothing to tell then.
                let _ = fd.kvmclock_ctrl();
            }
            self.run(&mut fd, passage);
            self.complete(&mut fd, passage);
        }
    }

    /// Runs the guest until the gate closes.
    fn run(&self, fd: &mut VcpuFd, passage: &Passage<'_>) {
        let mut missing: Option<Missing> = None;
        loop {
            fd.set_kvm_immediate_exit(0);
            // A kick after this line stays in the flag; one before it came with a closed gate.
            compiler_fence(Ordering::SeqCst);
            if !passage.is_open() {
                return;
            }
            let exit = self.enter(fd);
            if !matches!(exit, Exit::Unreachable(_) | Exit::Interrupted) {
                missing = None;
            }
            match exit {
                Exit::Interrupted => passage.nap(),
                Exit::Unreachable(at) => self.wait_for_memory(fd, at, passage, &mut missing),
                Exit::Next(Next::Go) => {}
                Exit::Next(Next::Wait { us }) => {
                    passage.sleep(Duration::from_micros(us.into()));
                }
                Exit::Next(Next::End(cause, detail)) => self.control.shut_down(cause, Some(detail)),
                Exit::Next(Next::Fail(reason)) => self.fail(&reason),
            }
        }
    }

    /// Completes what the last exit began, without running the guest. As long as memory that it needs
    /// cannot be reached the vCPU is not at rest, for its registers are not true: who waits for it waits
    /// in vain. When the gate opens it is completed by running on.
    fn complete(&self, fd: &mut VcpuFd, passage: &Passage<'_>) {
        let mut missing: Option<Missing> = None;
        loop {
            fd.set_kvm_immediate_exit(1);
            match self.enter(fd) {
                Exit::Interrupted => return,
                // A string instruction that is not through.
                Exit::Next(Next::Go | Next::Wait { .. }) => {}
                Exit::Next(Next::End(cause, detail)) => {
                    return self.control.shut_down(cause, Some(detail));
                }
                Exit::Next(Next::Fail(reason)) => return self.fail(&reason),
                Exit::Unreachable(at) => {
                    self.wait_for_memory(fd, at, passage, &mut missing);
                    if self.memory_retry.is_zero() || passage.is_to_end() || passage.is_open() {
                        return;
                    }
                    // The gate is closed, so that nothing was waited for.
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    fn enter(&self, fd: &mut VcpuFd) -> Exit {
        let next = match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.bus.write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.read(port, data);
                Next::Go
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xff);
                Next::Go
            }
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::Hlt | VcpuExit::IoapicEoi(_)) => Next::Go,
            Ok(VcpuExit::Unsupported(RING_FULL)) => self.make_room(),
            Ok(VcpuExit::Intr) => return Exit::Interrupted,
            Ok(VcpuExit::Shutdown) => Next::End(
                ShutdownCause::GuestPanic,
                "its CPU shut down (triple fault)".to_owned(),
            ),
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Next::End(
                    ShutdownCause::GuestShutdown,
                    "the guest switched off".to_owned(),
                ),
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => Next::End(
                    ShutdownCause::GuestReset,
                    "the guest asked for a reset".to_owned(),
                ),
                _ => Next::End(ShutdownCause::GuestPanic, "the guest crashed".to_owned()),
            },
            Ok(VcpuExit::MemoryFault { gpa, .. }) => return Exit::Unreachable(Some(gpa)),
            Ok(VcpuExit::FailEntry(reason, _)) => Next::Fail(format!(
                "the CPU refuses to enter the guest (reason {reason:#x})"
            )),
            Ok(VcpuExit::InternalError) => return Exit::Next(Next::Fail(internal_error(fd))),
            Ok(other) => Next::Fail(format!("KVM stopped with {other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => return Exit::Interrupted,
                libc::EFAULT | libc::EHWPOISON => return Exit::Unreachable(None),
                _ => Next::Fail(format!("KVM_RUN: {error}")),
            },
        };
        Exit::Next(next)
    }

    /// KVM does not go on with a full ring of written pages, whether or not anybody tracks.
    fn make_room(&self) -> Next {
        let made = self.rings.as_ref().map(|rings| rings.make_room());
        match made {
            Some(Ok(())) => Next::Go,
            Some(Err(error)) => {
                Next::Fail(format!("its ring of written pages stays full: {error}"))
            }
            None => Next::Fail("KVM has a ring of written pages that nobody reads".to_owned()),
        }
    }

    /// Waits a little, or stops the machine until somebody has seen to it.
    fn wait_for_memory(
        &self,
        fd: &VcpuFd,
        at: Option<u64>,
        passage: &Passage<'_>,
        missing: &mut Option<Missing>,
    ) {
        const FIRST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_millis(500);
        if self.memory_retry.is_zero() {
            return self.lost_memory(fd, at);
        }
        let missing = missing.get_or_insert_with(|| Missing {
            since: Instant::now(),
            step: FIRST,
        });
        if missing.since.elapsed() >= self.memory_retry {
            let what = unreachable(fd, at);
            return self.control.halt(format!("vCPU {}: {what}", self.index));
        }
        passage.sleep(missing.step);
        missing.step = (missing.step * 2).min(LONGEST);
    }

    fn lost_memory(&self, fd: &VcpuFd, at: Option<u64>) {
        self.fail(&unreachable(fd, at));
    }

    fn fail(&self, reason: &str) {
        self.control.fail(format!("vCPU {}: {reason}", self.index));
    }
}

fn unreachable(fd: &VcpuFd, at: Option<u64>) -> String {
    let at = match (at, fd.get_regs()) {
        (Some(gpa), _) => format!(", at {gpa:#x}"),
        (None, Ok(regs)) => format!(", at instruction {:#x}", regs.rip),
        (None, Err(_)) => String::new(),
    };
    format!("guest memory that it needs cannot be reached{at}")
}

fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so this is the field that was filled.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    format!("KVM's internal error {suberror}")
}
