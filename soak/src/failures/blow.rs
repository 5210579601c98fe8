//! What befalls a process: drawn before, dealt at its moment, and lifted where it passes.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_lab::Machine;
use paguro_sys::is_ignored;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::case::{FailureCase, Fault, Kind, Party};
use super::cgroup::{self, Cgroup};
use super::disk::Disk;
use crate::rng::Rng;

/// Between the first and the second of two signals, and how long a process is stopped, at most.
const AGAIN_US: u64 = 150_000;

/// When it happens, at most.
const MOMENT_US: u64 = 600_000;

/// One that is drawn.
pub struct Blow {
    case: FailureCase,
    /// Before the work begins, where that can be.
    pub is_early: bool,
    /// So long after it began.
    pub moment: Duration,
    again: Duration,
    drawn: u64,
    memory_bytes: u64,
    cgroup: Option<Cgroup>,
    limited: Option<(Pid, Resource)>,
}

impl Blow {
    /// The one of a case, whose guest has so much RAM.
    pub fn draw(case: &FailureCase, rng: &mut Rng, memory_bytes: u64) -> Result<Self> {
        let cgroup = match case.fault {
            Fault::CgroupMemory => Some(Cgroup::new(cgroup::Resource::Memory)?),
            Fault::CgroupPids => Some(Cgroup::new(cgroup::Resource::Pids)?),
            _ => None,
        };
        let lasts = !matches!(case.fault.kind(), Kind::Ending | Kind::Idle | Kind::Unseen);
        let blow = Self {
            case: *case,
            is_early: lasts && rng.one_in(3),
            moment: if rng.one_in(4) {
                // While it begins.
                rng.moment(MOMENT_US)
            } else {
                Duration::from_micros(rng.within(0..MOMENT_US))
            },
            again: rng.moment(AGAIN_US),
            drawn: rng.next() >> 1,
            memory_bytes,
            cgroup,
            limited: None,
        };
        if let (Fault::CgroupMemory, Some(cgroup)) = (case.fault, &blow.cgroup) {
            cgroup.limit(memory_bytes + (blow.within(16..96) << 20))?;
        }
        Ok(blow)
    }

    /// What it is drawn to be.
    fn within(&self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.drawn % (range.end - range.start)
    }

    /// The command that puts a machine where its memory is limited.
    pub fn through(&self, party: Party) -> Vec<OsString> {
        match &self.cgroup {
            Some(cgroup) if self.case.to == party && self.case.fault == Fault::CgroupMemory => {
                let join = r#"echo $$ > "$0" && exec "$@""#;
                vec![
                    "sh".into(),
                    "-c".into(),
                    join.into(),
                    cgroup.members().into(),
                ]
            }
            _ => Vec::new(),
        }
    }

    /// Deals it. A process that is gone already feels nothing.
    pub fn strike(&mut self, pid: u32, disk: Option<&Disk>) -> Result<()> {
        let number = pid;
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            bail!("{number} is no process");
        };
        // A machine ignores what this process was started with ignored.
        let ending = |signal| {
            if is_ignored(signal) {
                Signal::TERM
            } else {
                signal
            }
        };
        match self.case.fault {
            Fault::Hup => send(pid, ending(Signal::HUP)),
            Fault::Int => send(pid, ending(Signal::INT)),
            Fault::Quit => send(pid, ending(Signal::QUIT)),
            Fault::Term => send(pid, Signal::TERM),
            Fault::TermTwice => {
                send(pid, Signal::TERM)?;
                std::thread::sleep(self.again);
                send(pid, Signal::TERM)
            }
            Fault::Pipe => send(pid, Signal::PIPE),
            Fault::Usr1 => send(pid, Signal::USR1),
            Fault::Usr2 => send(pid, Signal::USR2),
            Fault::Alrm => send(pid, Signal::ALARM),
            Fault::Xfsz => send(pid, Signal::XFSZ),
            Fault::StopCont => {
                send(pid, Signal::STOP)?;
                std::thread::sleep(self.again);
                send(pid, Signal::CONT)
            }
            Fault::Kill => send(pid, Signal::KILL),
            Fault::FileSize => self.limit(pid, Resource::Fsize, self.within(0..self.memory_bytes)),
            Fault::Descriptors => match highest_descriptor(number) {
                Some(highest) => self.limit(pid, Resource::Nofile, highest + self.within(1..5)),
                None => Ok(()),
            },
            Fault::Threads => self.limit(pid, Resource::Nproc, 0),
            Fault::AddressSpace => match address_space_bytes(number) {
                Some(bytes) => {
                    let bytes = bytes + (self.within(0..64) << 20);
                    self.limit(pid, Resource::As, bytes)
                }
                None => Ok(()),
            },
            // It is in there from the start.
            Fault::CgroupMemory => Ok(()),
            Fault::CgroupPids => self.limit_threads(number),
            Fault::DiskFull => disk.context("there is no disk")?.fill(),
            Fault::DiskReadOnly => {
                disk.context("there is no disk")?.protect();
                Ok(())
            }
        }
    }

    /// Takes it away, where it has not passed yet.
    pub fn lift(&mut self, disk: Option<&Disk>) -> Result<()> {
        if let Some((pid, resource)) = self.limited.take() {
            set(pid, resource, getrlimit(resource).current)?;
        }
        if let (Fault::CgroupPids, Some(cgroup)) = (self.case.fault, &self.cgroup) {
            cgroup.lift()?;
        }
        if let Some(disk) = disk {
            disk.unprotect()?;
            disk.empty();
        }
        Ok(())
    }

    /// Whether a machine goes on. One that was not struck must, and so must one whose blow costs
    /// nobody's life; one that was told to end must end, in order.
    pub fn outlived(&self, machine: &mut Machine, party: Party) -> Result<bool> {
        let struck = self.case.to == party;
        let must_end =
            struck && (self.case.fault.kind() == Kind::Ending || self.case.fault == Fault::Kill);
        let was_killed = struck && self.killed();
        let ended = if must_end || was_killed {
            Some(machine.wait_exit().context("after it was told to end")?)
        } else {
            machine.ended()?
        };
        let said = machine.said();
        if said.contains("panicked") {
            bail!("it panicked: {said}");
        }
        let Some(status) = ended else {
            return Ok(true);
        };
        let by_order = must_end && self.case.fault != Fault::Kill;
        if by_order && !status.success() {
            bail!("it was told to end, and did with {status}: {said}");
        }
        if !must_end && !was_killed {
            bail!("a guest is lost: its machine ended with {status}: {said}");
        }
        Ok(false)
    }

    /// Whether somebody was killed for memory.
    pub fn killed(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::killed)
    }

    fn limit(&mut self, pid: Pid, resource: Resource, to: u64) -> Result<()> {
        self.limited = Some((pid, resource));
        set(pid, resource, Some(to))
    }

    fn limit_threads(&self, pid: u32) -> Result<()> {
        let cgroup = self.cgroup.as_ref().context("there is no cgroup")?;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            return Ok(());
        };
        let most = threads.count() as u64 + self.within(0..4);
        // It may have ended meanwhile.
        if let Err(error) = cgroup.take(pid) {
            tracing::debug!(%error, "too late");
        }
        Ok(cgroup.limit(most)?)
    }
}

fn send(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot send {signal:?}")),
    }
}

/// Sets a limit that can be taken back by anybody: the hard one stays.
fn set(pid: Pid, resource: Resource, current: Option<u64>) -> Result<()> {
    let maximum = getrlimit(resource).maximum;
    match prlimit(Some(pid), resource, Rlimit { current, maximum }) {
        Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot limit {resource:?}")),
    }
}

fn highest_descriptor(pid: u32) -> Option<u64> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let numbers = all
        .flatten()
        .filter_map(|one| one.file_name().to_str()?.parse().ok());
    numbers.max()
}

fn address_space_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').next()?.parse().ok()?;
    Some(pages * paguro_sys::page_size() as u64)
}
