//! A case: one machine, its snapshots and its returns, as a text that brings it back.
//!
//! `pages=4k,backing=anon,accel=kvm,cpus=2,pattern=zipf,rate=unlimited,dma=off,restore=lazy,`
//! `force=none,chunk=64K,seed=7`. What is not named (moments, sizes, other parameters) follows
//! from the seed. Some keys only bend that: `snapshots=N` takes as many of the source, all in the
//! background, `returns=N` restores as often, `memory=SIZE` and `set=SIZE` fix sizes, and
//! `busy=on` has other threads take the CPUs while a snapshot begins.

use std::fmt;
use std::str::FromStr;

use paguro_lab::{Accel, Backing, Choice, DmaConfig, Pages, RestoreMode};
use paguro_workload::spec::Pattern;

use crate::keys::{self, keys};

/// What a case is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which pages RAM has.
    pub pages: Pages,
    /// What is behind it.
    pub backing: Backing,
    /// KVM or threads.
    pub accel: Accel,
    /// vCPUs.
    pub cpus: u32,
    /// Order in which the guest writes.
    pub pattern: Pattern,
    /// As fast as it goes, or 10 000 pages a second.
    pub unlimited: bool,
    /// The device that writes RAM.
    pub dma: Dma,
    /// How it comes back.
    pub restore: RestoreMode,
    /// A fallback to take.
    pub force: &'static str,
    /// Bytes copied and released at once.
    pub chunk_bytes: u64,
    /// All else.
    pub seed: u64,
    /// As many snapshots of the source; 0: by the seed.
    pub snapshots: u32,
    /// As many returns; 0: by the seed.
    pub returns: u32,
    /// RAM; 0: by the seed.
    pub memory_bytes: u64,
    /// What of it is written; 0: by the seed.
    pub set_bytes: u64,
    /// The host is busy while a snapshot begins.
    pub busy: bool,
}

/// `--x-dma`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// No such device.
    Off,
    /// It writes by `read(2)`.
    Read,
    /// And by direct I/O.
    Direct,
}

impl Dma {
    /// The device beside a guest that writes so many pages a second, 0: as fast as it goes.
    pub fn config(self, guest_pages_per_s: u64) -> Option<DmaConfig> {
        let rate_pages_per_s = guest_pages_per_s.div_ceil(5);
        let config = |direct| DmaConfig {
            rate_pages_per_s,
            direct,
        };
        match self {
            Self::Off => None,
            Self::Read => Some(config(false)),
            Self::Direct => Some(config(true)),
        }
    }
}

impl Choice for Dma {
    const ALL: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("read", Self::Read),
        ("direct", Self::Direct),
    ];
}

/// Pages a second of a guest that is not unlimited.
pub const RATE: u64 = 10_000;

/// Values of `force`.
pub const FORCES: [&str; 7] = [
    "none",
    "no-wp-unpopulated",
    "no-pagemap-scan",
    "no-populate-read",
    "no-marker-entries",
    "user-mode-only",
    "no-userfaultfd",
];

/// Orders of writing.
pub const PATTERNS: [Pattern; 4] = [
    Pattern::Sequential,
    Pattern::Random,
    Pattern::Zipf,
    Pattern::HotSet,
];

impl Default for Case {
    fn default() -> Self {
        Self {
            pages: Pages::Small,
            backing: Backing::Anon,
            accel: Accel::Kvm,
            cpus: 1,
            pattern: Pattern::Random,
            unlimited: false,
            dma: Dma::Off,
            restore: RestoreMode::Lazy,
            force: "none",
            chunk_bytes: 2 << 20,
            seed: 1,
            snapshots: 0,
            returns: 0,
            memory_bytes: 0,
            set_bytes: 0,
            busy: false,
        }
    }
}

impl Case {
    /// Whether there can be such a machine, on a host that has all.
    pub fn makes_sense(&self) -> bool {
        let mappable = self.backing == Backing::Anon && self.pages != Pages::Huge;
        let maps = self.restore == RestoreMode::Map;
        let fills = self.restore == RestoreMode::Lazy;
        match self.force {
            // Faults of KVM are taken in the kernel.
            "user-mode-only" if self.accel == Accel::Kvm => false,
            "no-userfaultfd" if fills => false,
            _ => mappable || !maps,
        }
    }

    /// Whether its guest can be saved while it runs.
    pub fn can_freeze(&self) -> bool {
        self.force != "no-userfaultfd"
    }

    /// The device.
    pub fn dma_config(&self) -> Option<DmaConfig> {
        self.dma.config(if self.unlimited { 0 } else { RATE })
    }
}

keys! { Case, "there is no such key":
    "pages" pages choice,
    "backing" backing choice,
    "accel" accel choice,
    "cpus" cpus number,
    "pattern" pattern pattern,
    "rate" unlimited unlimited,
    "dma" dma choice,
    "restore" restore choice,
    "force" force force,
    "chunk" chunk_bytes size,
    "seed" seed number,
    "snapshots" snapshots count,
    "returns" returns count,
    "memory" memory_bytes some_size,
    "set" set_bytes some_size,
    "busy" busy switch,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys::tell(self, f)
    }
}

impl FromStr for Case {
    type Err = String;

    /// Keys that are left out have their default: the simplest machine, seed 1.
    fn from_str(text: &str) -> Result<Self, String> {
        let case = keys::read(Self::default(), text)?;
        if !case.makes_sense() {
            return Err("there is no such machine: its options exclude each other".to_owned());
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{matrix::full, rng::Rng};

    #[test]
    fn every_case_of_the_matrix_has_a_text_of_its_own() {
        for case in full(&mut Rng::new(1), |_| true) {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        let text = "rate=unlimited,snapshots=20,returns=3,memory=64M,set=16M,busy=on";
        let case: Case = text.parse().unwrap();
        assert!(case.to_string().ends_with(&text["rate=unlimited,".len()..]));
        assert_eq!(case.to_string().parse(), Ok(case));
    }

    #[test]
    fn what_is_no_case_is_refused_by_name() {
        for (text, word) in [
            ("pages=8k", "pages=8k"),
            ("speed=1", "no such key"),
            ("cpus", "key=value"),
            ("restore=map,pages=2m", "no such machine"),
            ("force=break-no-rearm", "no-wp-unpopulated"),
        ] {
            let error = text.parse::<Case>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
