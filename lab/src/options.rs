//! How a machine of the lab is to be.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use paguro_workload::Spec;

/// Options of `paguro run`, typed.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// The file of the program.
    pub program: PathBuf,
    /// RAM; left to the file when a machine is restored.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// KVM or threads.
    pub accel: Accel,
    /// What is behind RAM.
    pub backing: Backing,
    /// Which pages it has.
    pub pages: Pages,
    /// What the built-in guest does.
    pub workload: Spec,
    /// The device that writes RAM.
    pub dma: Option<DmaConfig>,
    /// Bytes of the first RAM block.
    pub ram_split: Option<u64>,
    /// Out of a file.
    pub restore: Option<RestoreFrom>,
    /// Where it waits for another machine to come in: at none of them if it does not, and where
    /// `migrate-incoming` will say if it is `defer`.
    pub incoming: Vec<OsString>,
    /// Entries of KVM's dirty ring, instead of its log.
    pub dirty_ring_entries: Option<u32>,
    /// Threads write through Arm stage-2 tables, whose log tells.
    pub stage2: bool,
    /// Does not start by itself.
    pub paused: bool,
    /// Gaps in the guest's progress from this length on are listed one by one.
    pub gap_threshold_us: u64,
    /// `PAGURO_FORCE` of the child; this process's own is not handed on.
    pub force: String,
    /// A command that becomes the program, given its file and arguments: to be in a cgroup from the
    /// start, for instance.
    pub through: Vec<OsString>,
}

/// How a machine comes back.
#[derive(Clone, Debug)]
pub struct RestoreFrom {
    /// The snapshot file.
    pub file: PathBuf,
    /// In which way.
    pub mode: RestoreMode,
    /// What a lazy one fetches unasked.
    pub prefetch: Prefetch,
}

impl MachineOptions {
    /// Of the program in that file: 512 MiB of small anonymous pages, one vCPU of KVM, the default
    /// workload.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            memory_bytes: 512 << 20,
            cpus: 1,
            accel: Accel::Kvm,
            backing: Backing::Anon,
            pages: Pages::Small,
            workload: Spec::default(),
            dma: None,
            ram_split: None,
            restore: None,
            incoming: Vec::new(),
            dirty_ring_entries: None,
            stage2: false,
            paused: false,
            gap_threshold_us: 500,
            force: String::new(),
            through: Vec::new(),
        }
    }

    /// The same machine, out of a file.
    pub fn restored(
        &self,
        file: impl Into<PathBuf>,
        mode: RestoreMode,
        prefetch: Prefetch,
    ) -> Self {
        let file = file.into();
        Self {
            restore: Some(RestoreFrom {
                file,
                mode,
                prefetch,
            }),
            ..self.clone()
        }
    }

    /// The same machine, for another one to come into.
    pub fn awaiting(&self) -> Self {
        Self {
            incoming: vec!["defer".into()],
            ..self.clone()
        }
    }

    /// As arguments of the program, without those that only the lab knows (socket, progress).
    pub fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["run".into()];
        let mut add = |name: &str, value: OsString| {
            args.push(name.into());
            args.push(value);
        };
        add("--cpus", self.cpus.to_string().into());
        let accel = match self.dirty_ring_entries {
            Some(entries) => format!("{},dirty-ring-size={entries}", self.accel.name()),
            None if self.stage2 => format!("{},dirty-log=stage2", self.accel.name()),
            None => self.accel.name().to_owned(),
        };
        add("--accel", accel.into());
        add("--backing", self.backing.name().into());
        add("--pages", self.pages.name().into());
        add("--serial", "none".into());
        let threshold_us = self.gap_threshold_us.to_string();
        add("--x-gap-threshold-us", threshold_us.into());
        if let Some(dma) = self.dma {
            add("--x-dma", dma.to_string().into());
        }
        match &self.restore {
            None => {
                add("--memory", self.memory_bytes.to_string().into());
                if self.incoming.is_empty() {
                    add("--workload", self.workload.to_string().into());
                }
                for place in &self.incoming {
                    add("--incoming", place.clone());
                }
                if let Some(bytes) = self.ram_split {
                    add("--x-ram-split", bytes.to_string().into());
                }
            }
            Some(from) => {
                add("--restore", from.file.clone().into());
                add("--restore-mode", from.mode.name().into());
                add("--prefetch", from.prefetch.to_string().into());
            }
        }
        if self.paused {
            args.push("--paused".into());
        }
        args
    }
}

/// A value out of a few, each of which has a name, on the command line and in reports.
pub trait Choice: Copy + PartialEq + 'static {
    /// All of them with their names.
    const ALL: &'static [(&'static str, Self)];

    /// Its name.
    fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(_, value)| *value == self)
            .map_or("", |(name, _)| *name)
    }

    /// The one of that name.
    fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }
}

/// What runs vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// /dev/kvm
    Kvm,
    /// Threads of the machine's process.
    Threads,
}

impl Choice for Accel {
    const ALL: &'static [(&'static str, Self)] = &[("kvm", Self::Kvm), ("threads", Self::Threads)];
}

/// What is behind RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anon,
    /// A memfd.
    Memfd,
}

impl Choice for Backing {
    const ALL: &'static [(&'static str, Self)] = &[("anon", Self::Anon), ("memfd", Self::Memfd)];
}

/// Which pages RAM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB.
    Small,
    /// 4 KiB, joined to huge pages by the kernel.
    Thp,
    /// 2 MiB of hugetlbfs, which the host must have set aside.
    Huge,
}

impl Choice for Pages {
    const ALL: &'static [(&'static str, Self)] =
        &[("4k", Self::Small), ("thp", Self::Thp), ("2m", Self::Huge)];
}

/// How RAM comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreMode {
    /// The file is mapped privately.
    Map,
    /// Pages are fetched when they are touched, and before.
    Lazy,
    /// All is read before the machine starts.
    Eager,
}

impl Choice for RestoreMode {
    const ALL: &'static [(&'static str, Self)] = &[
        ("map", Self::Map),
        ("lazy", Self::Lazy),
        ("eager", Self::Eager),
    ];
}

/// What a lazy restore fetches unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing.
    Off,
    /// All, as fast as it goes.
    Unlimited,
    /// All, so many bytes a second.
    Limited(u64),
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Unlimited => f.write_str("unlimited"),
            Self::Limited(rate) => write!(f, "{rate}/s"),
        }
    }
}

/// A device that writes RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaConfig {
    /// How fast; 0: as fast as it goes.
    pub rate_pages_per_s: u64,
    /// By direct I/O.
    pub direct: bool,
}

impl fmt::Display for DmaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate_pages_per_s {
            0 => f.write_str("rate=unlimited")?,
            rate => write!(f, "rate={rate}")?,
        }
        f.write_str(if self.direct { ",direct=on" } else { "" })
    }
}
