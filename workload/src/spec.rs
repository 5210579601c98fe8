//! The text form of a workload: `pattern=zipf,rate=50000,hot=64M,seed=1`.
//!
//! | key | values | when left out |
//! |---|---|---|
//! | `pattern` | `sequential`, `random`, `zipf`, `hotset` | `random` |
//! | `rate` | pages a second of the whole machine, or `unlimited` | `10000` |
//! | `hot` | size of the hot subset (`hotset`), of the smallest subset (`zipf`) | an eighth of `set` |
//! | `seed` | any number | `1` |
//! | `bytes` | what one write stores: `8`, `64` or `page` | `8` |
//! | `op` | `write` or `read` | `write` |
//! | `set` | size of the area that is written | all RAM from 2 MiB up |
//! | `writes` | writes after which a vCPU stops; the machine resets with vCPU 0 | never |
//!
//! Sizes are bytes, or take `K`, `M`, `G`, `T` (powers of 1024).

use core::fmt;
use core::str::FromStr;

use crate::size::Size;

/// In which order pages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// Ascending, over and over.
    Sequential,
    /// Each pass over the pages in another random order.
    #[default]
    Random,
    /// Equal shares for nested subsets, each a quarter of the one around it, down to the hot
    /// size: the likelihood of a page falls with its rank.
    Zipf,
    /// 90 % of the writes to a scattered hot subset, the rest to all pages.
    HotSet,
}

/// How much of its page a write stores, from the page's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bytes {
    /// One word.
    #[default]
    Eight,
    /// One cache line.
    SixtyFour,
    /// All of it.
    Page,
}

impl Bytes {
    /// The 8-byte words that a write stores.
    pub const fn words(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::SixtyFour => 8,
            Self::Page => crate::layout::PAGE_WORDS,
        }
    }
}

/// What is done with a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Its words are stored.
    #[default]
    Write,
    /// Its first word is read. Nothing but the counters is written.
    Read,
}

/// A workload as asked for, before it meets a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Order of the pages.
    pub pattern: Pattern,
    /// Writes a second of the whole machine; 0 means as fast as it goes.
    pub rate_pages_per_s: u64,
    /// Size of the hot subset; `None` means an eighth of the set.
    pub hot_bytes: Option<u64>,
    /// Chooses orders and contents.
    pub seed: u64,
    /// What one write stores.
    pub bytes: Bytes,
    /// Whether pages are written or read.
    pub op: Op,
    /// Size of the workload area; `None` means all RAM from 2 MiB up.
    pub set_bytes: Option<u64>,
    /// Writes after which a vCPU stops; 0 means never.
    pub writes: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            pattern: Pattern::default(),
            rate_pages_per_s: 10_000,
            hot_bytes: None,
            seed: 1,
            bytes: Bytes::default(),
            op: Op::default(),
            set_bytes: None,
            writes: 0,
        }
    }
}

const KEYS: &str = "pattern, rate, hot, seed, bytes, op, set, writes";
const SIZE: &str = "a size in bytes above 0, or with K, M, G or T";
const NUMBER: &str = "a number";

/// Why a text is not a workload: always the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// A part without `=`. Says where in the text it starts.
    NotAPair {
        /// Byte offset of the part.
        offset: usize,
    },
    /// A key that there is not.
    UnknownKey {
        /// Byte offset of the key.
        offset: usize,
    },
    /// A key given a second time.
    Repeated {
        /// The key.
        key: &'static str,
    },
    /// A value that the key does not take.
    BadValue {
        /// The key.
        key: &'static str,
        /// What it takes.
        allowed: &'static str,
    },
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPair { offset } => {
                write!(
                    f,
                    "workload: no key=value at byte {offset}; keys are {KEYS}"
                )
            }
            Self::UnknownKey { offset } => {
                write!(f, "workload: unknown key at byte {offset}; keys are {KEYS}")
            }
            Self::Repeated { key } => write!(f, "workload: {key} is given twice"),
            Self::BadValue { key, allowed } => write!(f, "workload: {key} takes {allowed}"),
        }
    }
}

impl core::error::Error for SpecError {}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        if text.is_empty() {
            return Ok(spec);
        }
        let (mut seen, mut offset) = (0u32, 0);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or(SpecError::NotAPair { offset })?;
            let (index, key) = KEYS
                .split(", ")
                .enumerate()
                .find(|(_, known)| *known == key)
                .ok_or(SpecError::UnknownKey { offset })?;
            if seen & 1 << index != 0 {
                return Err(SpecError::Repeated { key });
            }
            seen |= 1 << index;
            spec.set(key, value)
                .map_err(|allowed| SpecError::BadValue { key, allowed })?;
            offset += part.len() + 1;
        }
        Ok(spec)
    }
}

impl Spec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "pattern" => {
                self.pattern = Pattern::parse(value).ok_or("sequential, random, zipf or hotset")?;
            }
            "rate" => {
                self.rate_pages_per_s = match value {
                    "unlimited" => 0,
                    _ => number(value)
                        .filter(|rate| (1..=MAX_RATE).contains(rate))
                        .ok_or("pages a second (1 to 1000000000) or unlimited")?,
                };
            }
            "hot" => self.hot_bytes = Some(size(value).ok_or(SIZE)?),
            "seed" => self.seed = number(value).ok_or(NUMBER)?,
            "bytes" => self.bytes = Bytes::parse(value).ok_or("8, 64 or page")?,
            "op" => self.op = Op::parse(value).ok_or("write or read")?,
            "set" => self.set_bytes = Some(size(value).ok_or(SIZE)?),
            _ => self.writes = number(value).ok_or(NUMBER)?,
        }
        Ok(())
    }
}

/// Highest rate that can be asked for, in pages a second.
pub const MAX_RATE: u64 = 1_000_000_000;

impl fmt::Display for Spec {
    /// Every key with its value; what was left out of `hot`, `set` and `writes` stays out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pattern={}", self.pattern.name())?;
        match self.rate_pages_per_s {
            0 => f.write_str(",rate=unlimited")?,
            rate => write!(f, ",rate={rate}")?,
        }
        if let Some(hot) = self.hot_bytes {
            write!(f, ",hot={}", Size(hot))?;
        }
        let (bytes, op) = (self.bytes.name(), self.op.name());
        write!(f, ",seed={},bytes={bytes},op={op}", self.seed)?;
        if let Some(set) = self.set_bytes {
            write!(f, ",set={}", Size(set))?;
        }
        match self.writes {
            0 => Ok(()),
            writes => write!(f, ",writes={writes}"),
        }
    }
}

macro_rules! named {
    ($type:ident: $($variant:ident = $number:literal $name:literal),+) => {
        impl $type {
            /// Its name in the text form.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            pub(crate) const fn number(self) -> u64 {
                match self { $(Self::$variant => $number),+ }
            }

            pub(crate) const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

named!(Pattern: Sequential = 0 "sequential", Random = 1 "random", Zipf = 2 "zipf", HotSet = 3 "hotset");
named!(Bytes: Eight = 1 "8", SixtyFour = 8 "64", Page = 512 "page");
named!(Op: Write = 0 "write", Read = 1 "read");

fn number(text: &str) -> Option<u64> {
    // `parse` would take a plus sign.
    text.bytes().next()?.is_ascii_digit().then_some(())?;
    text.parse().ok()
}

fn size(text: &str) -> Option<u64> {
    let Size(bytes) = text.parse().ok()?;
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn an_empty_text_is_the_default() {
        assert_eq!("".parse(), Ok(Spec::default()));
        assert_eq!(
            Spec::default().to_string(),
            "pattern=random,rate=10000,seed=1,bytes=8,op=write"
        );
    }

    #[test]
    fn all_keys_are_read() {
        let text = "pattern=zipf,rate=50000,hot=64M,seed=7,bytes=page,op=read,set=1G,writes=9";
        let spec: Spec = text.parse().unwrap();
        assert_eq!(spec.hot_bytes, Some(64 << 20));
        assert_eq!(spec.set_bytes, Some(1 << 30));
        assert_eq!(
            (spec.pattern, spec.seed, spec.writes),
            (Pattern::Zipf, 7, 9)
        );
        assert_eq!(spec.to_string(), text);
        let spec: Spec = "rate=unlimited".parse().unwrap();
        assert_eq!(spec.rate_pages_per_s, 0);
    }

    #[test]
    fn errors_name_the_key_and_what_it_takes() {
        for (text, message) in [
            (
                "pattern=zip",
                "workload: pattern takes sequential, random, zipf or hotset",
            ),
            (
                "rate=0",
                "workload: rate takes pages a second (1 to 1000000000) or unlimited",
            ),
            (
                "rate=+5",
                "workload: rate takes pages a second (1 to 1000000000) or unlimited",
            ),
            (
                "hot=0",
                "workload: hot takes a size in bytes above 0, or with K, M, G or T",
            ),
            (
                "set=99999999T",
                "workload: set takes a size in bytes above 0, or with K, M, G or T",
            ),
            (
                "hot=é",
                "workload: hot takes a size in bytes above 0, or with K, M, G or T",
            ),
            ("bytes=16", "workload: bytes takes 8, 64 or page"),
            ("op=", "workload: op takes write or read"),
            ("seed=1,seed=1", "workload: seed is given twice"),
        ] {
            assert_eq!(
                text.parse::<Spec>().unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
        assert_eq!(
            "seed=1,speed=2".parse::<Spec>(),
            Err(SpecError::UnknownKey { offset: 7 })
        );
        assert_eq!(
            "seed=1,".parse::<Spec>(),
            Err(SpecError::NotAPair { offset: 7 })
        );
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(
            pattern in 0u64..4, rate in 0..=MAX_RATE, hot in proptest::option::of(1u64..1 << 50),
            seed: u64, bytes in prop::sample::select(std::vec![1u64, 8, 512]), op in 0u64..2,
            set in proptest::option::of(1u64..1 << 50), writes: u64,
        ) {
            let spec = Spec {
                pattern: Pattern::from_number(pattern).unwrap(),
                rate_pages_per_s: rate,
                hot_bytes: hot,
                seed,
                bytes: Bytes::from_number(bytes).unwrap(),
                op: Op::from_number(op).unwrap(),
                set_bytes: set,
                writes,
            };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn no_text_panics(text in "[a-z=,0-9KMé+ ]{0,40}") {
            let _ = text.parse::<Spec>();
        }
    }
}
