//! A case of moves as a text that brings it back.
//!
//! `tracker=ring,pages=4k,backing=anon,cpus=2,pattern=zipf,rate=unlimited,dma=off,channel=tcp,way=plain,seed=7`.
//! What is not named (moments, sizes, parameters, how often) follows from the seed; `moves=N` and
//! `memory=SIZE` bend that.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use paguro_lab::machine::Parameters;
use paguro_lab::{Accel, Backing, Channel, Choice, DmaConfig, Pages, certificates};
use paguro_workload::spec::Pattern;
use serde_json::json;
use tempfile::TempDir;

use crate::case::Dma;
use crate::keys::{self, keys};

/// Who says which pages were written. Without KVM there is one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerArg {
    /// KVM's log with manual protection, initially all set.
    Log,
    /// The same, not initially all set.
    LogNotAllSet,
    /// KVM's log without manual protection.
    PlainLog,
    /// KVM's ring.
    Ring,
    /// Silent protection by userfaultfd, of a machine of threads.
    WpAsync,
    /// The log of Arm stage-2 tables, of a machine of threads that walk them.
    Stage2,
}

impl Choice for TrackerArg {
    const ALL: &'static [(&'static str, Self)] = &[
        ("log", Self::Log),
        ("log-not-all-set", Self::LogNotAllSet),
        ("plain-log", Self::PlainLog),
        ("ring", Self::Ring),
        ("wp-async", Self::WpAsync),
        ("stage2", Self::Stage2),
    ];
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelArg {
    /// Over the loopback.
    Tcp,
    /// By a socket in the file system.
    Unix,
    /// Over the loopback, encrypted, each side with a certificate.
    Tls,
}

impl Choice for ChannelArg {
    const ALL: &'static [(&'static str, Self)] =
        &[("tcp", Self::Tcp), ("unix", Self::Unix), ("tls", Self::Tls)];
}

/// How pages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayArg {
    /// In the stream.
    Plain,
    /// Over four connections of their own.
    Multifd,
    /// The same, compressed.
    Zstd,
    /// As what changed in them.
    Xbzrle,
}

impl Choice for WayArg {
    const ALL: &'static [(&'static str, Self)] = &[
        ("plain", Self::Plain),
        ("multifd", Self::Multifd),
        ("zstd", Self::Zstd),
        ("xbzrle", Self::Xbzrle),
    ];
}

/// How fast the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateArg {
    /// One page in 10 ms.
    Idle,
    /// 10 000 pages a second.
    Low,
    /// 100 000 pages a second.
    High,
    /// As fast as it goes.
    Unlimited,
}

impl Choice for RateArg {
    const ALL: &'static [(&'static str, Self)] = &[
        ("idle", Self::Idle),
        ("10k", Self::Low),
        ("100k", Self::High),
        ("unlimited", Self::Unlimited),
    ];
}

impl RateArg {
    /// Pages a second; 0: as fast as it goes.
    pub fn pages_per_s(self) -> u64 {
        match self {
            Self::Idle => 100,
            Self::Low => 10_000,
            Self::High => 100_000,
            Self::Unlimited => 0,
        }
    }
}

/// What a case is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveCase {
    /// The tracker, and with it the accelerator.
    pub tracker: TrackerArg,
    /// Which pages RAM has.
    pub pages: Pages,
    /// What is behind it.
    pub backing: Backing,
    /// vCPUs.
    pub cpus: u32,
    /// Order in which the guest writes.
    pub pattern: Pattern,
    /// How fast.
    pub rate: RateArg,
    /// The device that writes RAM.
    pub dma: Dma,
    /// How it goes.
    pub channel: ChannelArg,
    /// And its pages.
    pub way: WayArg,
    /// All else.
    pub seed: u64,
    /// As many moves; 0: by the seed.
    pub moves: u32,
    /// RAM; 0: by the seed.
    pub memory_bytes: u64,
}

impl Default for MoveCase {
    fn default() -> Self {
        Self {
            tracker: TrackerArg::Log,
            pages: Pages::Small,
            backing: Backing::Anon,
            cpus: 1,
            pattern: Pattern::Random,
            rate: RateArg::Low,
            dma: Dma::Off,
            channel: ChannelArg::Unix,
            way: WayArg::Plain,
            seed: 1,
            moves: 0,
            memory_bytes: 0,
        }
    }
}

impl MoveCase {
    /// KVM or threads.
    pub fn accel(&self) -> Accel {
        match self.tracker {
            TrackerArg::WpAsync | TrackerArg::Stage2 => Accel::Threads,
            _ => Accel::Kvm,
        }
    }

    /// What makes KVM track in that way.
    pub fn force(&self) -> &'static str {
        match self.tracker {
            TrackerArg::LogNotAllSet => "no-initially-all-set",
            TrackerArg::PlainLog => "no-manual-protect",
            _ => "",
        }
    }

    /// Where the destination listens.
    pub fn listens(&self) -> Channel {
        match self.channel {
            ChannelArg::Tcp | ChannelArg::Tls => Channel::Tcp,
            ChannelArg::Unix => Channel::Unix,
        }
    }

    /// Certificates, if it needs some.
    pub fn certificates(&self) -> Result<Option<TempDir>> {
        let encrypted = self.channel == ChannelArg::Tls;
        encrypted.then(certificates::make).transpose()
    }

    /// What both sides are told before: a capability, and parameters; with certificates in that
    /// directory.
    pub fn agreed(&self, certificates: Option<&Path>) -> (Option<&'static str>, Parameters) {
        let mut all = Parameters::new();
        if let Some(directory) = certificates {
            all.insert(
                "tls-creds".to_owned(),
                json!(directory.display().to_string()),
            );
        }
        let compression = match self.way {
            WayArg::Plain => return (None, all),
            WayArg::Xbzrle => return (Some("xbzrle"), all),
            WayArg::Multifd => "none",
            WayArg::Zstd => "zstd",
        };
        all.insert("multifd-channels".to_owned(), json!(4));
        all.insert("multifd-compression".to_owned(), json!(compression));
        (Some("multifd"), all)
    }

    /// The device.
    pub fn dma_config(&self) -> Option<DmaConfig> {
        self.dma.config(self.rate.pages_per_s())
    }
}

keys! { MoveCase, "there is no such key of a machine that moves":
    "tracker" tracker choice,
    "pages" pages choice,
    "backing" backing choice,
    "cpus" cpus number,
    "pattern" pattern pattern,
    "rate" rate choice,
    "dma" dma choice,
    "channel" channel choice,
    "way" way choice,
    "seed" seed number,
    "moves" moves count,
    "memory" memory_bytes some_size,
}

impl fmt::Display for MoveCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys::tell(self, f)
    }
}

impl FromStr for MoveCase {
    type Err = String;

    /// Keys that are left out have their default: the simplest machine, seed 1.
    fn from_str(text: &str) -> Result<Self, String> {
        keys::read(Self::default(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{moves::matrix::full, rng::Rng};

    #[test]
    fn every_case_of_the_matrix_has_a_text_of_its_own() {
        for case in full(&mut Rng::new(1), |_| true) {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        let text = "tracker=ring,moves=3,memory=64M";
        let case: MoveCase = text.parse().unwrap();
        assert_eq!(case.to_string().parse(), Ok(case));
    }

    #[test]
    fn what_is_no_case_is_refused_by_name() {
        for (text, word) in [
            ("tracker=tea", "tracker=tea"),
            ("tracker=ring,restore=lazy", "no such key"),
            ("rate=9", "rate=9"),
        ] {
            let error = text.parse::<MoveCase>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
