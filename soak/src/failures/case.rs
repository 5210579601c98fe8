//! A case: what is under way, what befalls whom, as a text that brings it back.
//!
//! `work=move,fault=kill,to=destination,accel=kvm,seed=7`. What is not named (moments, sizes, how low a
//! limit is) follows from the seed.

use std::fmt;
use std::str::FromStr;

use paguro_lab::{Accel, Choice};

use crate::keys::{self, keys};

/// What a case is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureCase {
    /// What is under way.
    pub work: Work,
    /// What happens meanwhile.
    pub fault: Fault,
    /// To whom.
    pub to: Party,
    /// KVM or threads.
    pub accel: Accel,
    /// All else.
    pub seed: u64,
}

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `paguro snapshot`
    Snapshot,
    /// `paguro snapshot --stop`
    Stopped,
    /// `paguro migrate file:PATH`
    File,
    /// A restore, in any mode.
    Restore,
    /// `paguro migrate` to another process.
    Move,
}

impl Choice for Work {
    const ALL: &'static [(&'static str, Self)] = &[
        ("snapshot", Self::Snapshot),
        ("stopped", Self::Stopped),
        ("file", Self::File),
        ("restore", Self::Restore),
        ("move", Self::Move),
    ];
}

/// To whom it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The machine that has the guest at first.
    Machine,
    /// The one that it moves to.
    Destination,
    /// `paguro snapshot` or `paguro migrate`.
    Client,
}

impl Choice for Party {
    const ALL: &'static [(&'static str, Self)] = &[
        ("machine", Self::Machine),
        ("destination", Self::Destination),
        ("client", Self::Client),
    ];
}

/// What happens. Limits and full disks pass: they are lifted after a while, or when the work is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Fault {
    Hup,
    Int,
    Quit,
    Term,
    TermTwice,
    Pipe,
    Usr1,
    Usr2,
    Alrm,
    Xfsz,
    StopCont,
    Kill,
    FileSize,
    Descriptors,
    /// RLIMIT_NPROC, which does not bind root.
    Threads,
    AddressSpace,
    CgroupMemory,
    CgroupPids,
    DiskFull,
    DiskReadOnly,
}

impl Choice for Fault {
    const ALL: &'static [(&'static str, Self)] = &[
        ("hup", Self::Hup),
        ("int", Self::Int),
        ("quit", Self::Quit),
        ("term", Self::Term),
        ("term-twice", Self::TermTwice),
        ("pipe", Self::Pipe),
        ("usr1", Self::Usr1),
        ("usr2", Self::Usr2),
        ("alrm", Self::Alrm),
        ("xfsz", Self::Xfsz),
        ("stop-cont", Self::StopCont),
        ("kill", Self::Kill),
        ("file-size", Self::FileSize),
        ("descriptors", Self::Descriptors),
        ("threads", Self::Threads),
        ("address-space", Self::AddressSpace),
        ("cgroup-memory", Self::CgroupMemory),
        ("cgroup-pids", Self::CgroupPids),
        ("disk-full", Self::DiskFull),
        ("disk-read-only", Self::DiskReadOnly),
    ];
}

/// What a fault may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A signal that ends a process in order.
    Ending,
    /// One that changes nothing.
    Idle,
    /// One that no process sees.
    Unseen,
    /// A limit of a process.
    Limit,
    /// One of a cgroup.
    Cgroup,
    /// A file system that takes nothing.
    Disk,
}

impl Fault {
    /// Its kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::Hup | Self::Int | Self::Quit | Self::Term | Self::TermTwice => Kind::Ending,
            Self::Pipe | Self::Usr1 | Self::Usr2 | Self::Alrm | Self::Xfsz => Kind::Idle,
            Self::StopCont | Self::Kill => Kind::Unseen,
            Self::FileSize | Self::Descriptors | Self::Threads | Self::AddressSpace => Kind::Limit,
            Self::CgroupMemory | Self::CgroupPids => Kind::Cgroup,
            Self::DiskFull | Self::DiskReadOnly => Kind::Disk,
        }
    }

    /// Whether whoever it happens to may be gone afterwards.
    pub fn may_end(self) -> bool {
        self.kind() == Kind::Ending || matches!(self, Self::Kill | Self::CgroupMemory)
    }
}

impl FailureCase {
    /// Whether there is such a case.
    pub fn makes_sense(&self) -> bool {
        let party = match self.work {
            Work::Move => true,
            Work::Restore => self.to == Party::Machine,
            _ => self.to != Party::Destination,
        };
        let writes = self.to == Party::Machine && !matches!(self.work, Work::Move | Work::Restore);
        party
            && match self.fault {
                Fault::DiskFull | Fault::DiskReadOnly | Fault::FileSize => writes,
                Fault::CgroupMemory => self.to != Party::Client,
                _ => true,
            }
    }
}

keys! { FailureCase, "there is no such key of a failure":
    "work" work choice,
    "fault" fault choice,
    "to" to choice,
    "accel" accel choice,
    "seed" seed number,
}

impl fmt::Display for FailureCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys::tell(self, f)
    }
}

impl FromStr for FailureCase {
    type Err = String;

    /// Keys that are left out: a snapshot, `kill`, the machine, KVM, seed 1.
    fn from_str(text: &str) -> Result<Self, String> {
        let simplest = Self {
            work: Work::Snapshot,
            fault: Fault::Kill,
            to: Party::Machine,
            accel: Accel::Kvm,
            seed: 1,
        };
        let case = keys::read(simplest, text)?;
        if !case.makes_sense() {
            return Err("there is no such failure: its options exclude each other".to_owned());
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failures::matrix::full;
    use crate::rng::Rng;

    #[test]
    fn every_case_of_the_campaign_has_a_text_of_its_own() {
        for case in full(&mut Rng::new(1), |_| true) {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
    }

    #[test]
    fn what_is_no_case_is_refused_by_name() {
        for (text, word) in [
            ("fault=tea", "fault=tea"),
            ("work=move,pages=4k", "no such key"),
            ("work=restore,to=client", "no such failure"),
        ] {
            let error = text.parse::<FailureCase>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
