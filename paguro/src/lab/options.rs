//! How a machine of the lab is to be.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use paguro_vmm::DmaConfig;
use paguro_workload::Spec;

use crate::cli::{AccelArg, BackingArg, PagesArg, PrefetchArg, RestoreModeArg};

/// Options of `paguro run`, typed.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// RAM; left to the file when a machine is restored.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// KVM or threads.
    pub accel: AccelArg,
    /// What is behind RAM.
    pub backing: BackingArg,
    /// Which pages it has.
    pub pages: PagesArg,
    /// What the built-in guest does.
    pub workload: Spec,
    /// The device that writes RAM.
    pub dma: Option<DmaConfig>,
    /// Bytes of the first RAM block.
    pub ram_split: Option<u64>,
    /// Out of a file.
    pub restore: Option<RestoreFrom>,
    /// Waits for another machine, from where `migrate-incoming` will say.
    pub incoming: bool,
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
    pub mode: RestoreModeArg,
    /// What a lazy one fetches unasked.
    pub prefetch: PrefetchArg,
}

impl Default for MachineOptions {
    /// 512 MiB of small anonymous pages, one vCPU of KVM, the default workload.
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            cpus: 1,
            accel: AccelArg::Kvm,
            backing: BackingArg::Anon,
            pages: PagesArg::Small,
            workload: Spec::default(),
            dma: None,
            ram_split: None,
            restore: None,
            incoming: false,
            dirty_ring_entries: None,
            stage2: false,
            paused: false,
            gap_threshold_us: 500,
            force: String::new(),
            through: Vec::new(),
        }
    }
}

impl MachineOptions {
    /// The same machine, out of a file.
    pub fn restored(
        &self,
        file: impl Into<PathBuf>,
        mode: RestoreModeArg,
        prefetch: PrefetchArg,
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
            incoming: true,
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
            Some(entries) => format!("{},dirty-ring-size={entries}", name(self.accel)),
            None if self.stage2 => format!("{},dirty-log=stage2", name(self.accel)),
            None => name(self.accel),
        };
        add("--accel", accel.into());
        add("--backing", name(self.backing).into());
        add("--pages", name(self.pages).into());
        add("--serial", "none".into());
        let threshold_us = self.gap_threshold_us.to_string();
        add("--x-gap-threshold-us", threshold_us.into());
        if let Some(dma) = self.dma {
            add("--x-dma", dma_text(dma).into());
        }
        match &self.restore {
            None => {
                add("--memory", self.memory_bytes.to_string().into());
                match self.incoming {
                    true => add("--incoming", "defer".into()),
                    false => add("--workload", self.workload.to_string().into()),
                }
                if let Some(bytes) = self.ram_split {
                    add("--x-ram-split", bytes.to_string().into());
                }
            }
            Some(from) => {
                add("--restore", from.file.clone().into());
                add("--restore-mode", name(from.mode).into());
                add("--prefetch", prefetch_text(from.prefetch).into());
            }
        }
        if self.paused {
            args.push("--paused".into());
        }
        args
    }
}

/// The name of an option's value on the command line.
pub fn name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// `--x-dma`
pub fn dma_text(dma: DmaConfig) -> String {
    let rate = match dma.rate_pages_per_s {
        0 => "unlimited".to_owned(),
        rate => rate.to_string(),
    };
    let direct = if dma.direct { ",direct=on" } else { "" };
    format!("rate={rate}{direct}")
}

/// `--prefetch`
pub fn prefetch_text(prefetch: PrefetchArg) -> String {
    match prefetch {
        PrefetchArg::Off => "off".to_owned(),
        PrefetchArg::Unlimited => "unlimited".to_owned(),
        PrefetchArg::Limited(rate) => format!("{rate}/s"),
    }
}
