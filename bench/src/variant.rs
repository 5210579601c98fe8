//! Ways to take a snapshot that are compared with each other.

use paguro_lab::machine::Parameters;
use serde::Serialize;
use serde_json::json;

/// A way to take snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// As it is meant.
    Default,
    /// All memory is armed inside the pause.
    ArmInPause,
    /// A fault copies and releases one page.
    PageChunks,
    /// 20 ms are slept in the pause.
    Sleep,
}

/// What [`Variant::Sleep`] sleeps.
pub const SLEEP_US: u64 = 20_000;

impl Variant {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ArmInPause => "arm in pause",
            Self::PageChunks => "4k chunks",
            Self::Sleep => "20 ms sleep",
        }
    }

    /// The parameters that make it.
    pub fn parameters(self) -> Parameters {
        let (name, value) = match self {
            Self::Default => ("x-paguro-pause-sleep-us", json!(0)),
            Self::ArmInPause => ("x-paguro-arm-in-pause", json!(true)),
            Self::PageChunks => ("x-paguro-chunk-size", json!(4096)),
            Self::Sleep => ("x-paguro-pause-sleep-us", json!(SLEEP_US)),
        };
        // A huge page that is kept whole is a chunk of 2 MiB whatever is asked for.
        let huge = if self == Self::PageChunks {
            "split"
        } else {
            "keep"
        };
        let all = [
            (name, value),
            ("x-paguro-huge-pages", json!(huge)),
            ("x-paguro-sync", json!(false)),
        ];
        Parameters::from_iter(all.map(|(name, value)| (name.to_owned(), value)))
    }
}
