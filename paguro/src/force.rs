//! What `PAGURO_FORCE` asks for: fallbacks of older kernels, and things broken on purpose.
//!
//! Names are separated by commas. A name that is not known is an error: a test that believes it
//! has forced something, and has not, would prove nothing.

use anyhow::{Result, bail};
use paguro_migration::options::Sabotage;
use paguro_migration::source::SourceSabotage;
use paguro_sys::Fallbacks;

/// The environment variable.
pub const VARIABLE: &str = "PAGURO_FORCE";

/// What is forced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forced {
    /// What the kernel could do better.
    pub fallbacks: Fallbacks,
    /// What the engine does wrong on purpose.
    pub broken: Broken,
}

/// What the engine does wrong on purpose: one thing, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// In snapshots.
    pub snapshot: Sabotage,
    /// In migrations.
    pub migration: SourceSabotage,
}

impl Default for Broken {
    fn default() -> Self {
        Self {
            snapshot: Sabotage::None,
            migration: SourceSabotage::None,
        }
    }
}

impl Forced {
    /// As a value of the variable, for a process that shall do the same.
    pub fn text(&self) -> String {
        let fallbacks = Fallbacks::NAMES.iter().filter(|(_, set)| {
            let mut with = self.fallbacks;
            set(&mut with);
            with == self.fallbacks
        });
        let mut names: Vec<_> = fallbacks.map(|(name, _)| *name).collect();
        if self.broken.snapshot != Sabotage::None {
            names.push(sabotage_name(self.broken.snapshot));
        }
        if self.broken.migration != SourceSabotage::None {
            names.push(source_sabotage_name(self.broken.migration));
        }
        names.join(",")
    }

    /// Reads the value of the variable.
    pub fn parse(text: &str) -> Result<Self> {
        let mut forced = Self::default();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            if let Some(broken) = broken(name) {
                if forced.broken != Broken::default() {
                    bail!(
                        "{VARIABLE}: only one thing can be broken at a time, and {name} is the second"
                    );
                }
                forced.broken = broken;
            } else if !forced.fallbacks.force(name) {
                bail!("{VARIABLE}: there is no {name:?}; known are {}", names());
            }
        }
        Ok(forced)
    }
}

/// What is broken by that name.
fn broken(name: &str) -> Option<Broken> {
    let of_snapshots = Sabotage::NAMES.iter().find(|(known, _)| *known == name);
    let of_migrations = SourceSabotage::NAMES
        .iter()
        .find(|(known, _)| *known == name);
    let none = Broken::default();
    match (of_snapshots, of_migrations) {
        (Some((_, snapshot)), _) => Some(Broken {
            snapshot: *snapshot,
            ..none
        }),
        (None, Some((_, migration))) => Some(Broken {
            migration: *migration,
            ..none
        }),
        (None, None) => None,
    }
}

/// The name of a sabotage of migrations.
pub fn source_sabotage_name(sabotage: SourceSabotage) -> &'static str {
    let found = SourceSabotage::NAMES
        .iter()
        .find(|(_, known)| *known == sabotage);
    found.map_or("none", |(name, _)| *name)
}

/// The name of a sabotage of snapshots.
pub fn sabotage_name(sabotage: Sabotage) -> &'static str {
    let found = Sabotage::NAMES.iter().find(|(_, known)| *known == sabotage);
    found.map_or("none", |(name, _)| *name)
}

fn names() -> String {
    let fallbacks = Fallbacks::NAMES.iter().map(|(name, _)| *name);
    let sabotages = Sabotage::NAMES.iter().map(|(name, _)| *name);
    let of_migrations = SourceSabotage::NAMES.iter().map(|(name, _)| *name);
    let all = fallbacks.chain(sabotages).chain(of_migrations);
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_kinds_are_known() {
        let forced = Forced::parse("no-pagemap-scan, break-skip-page,").unwrap();
        assert!(forced.fallbacks.no_pagemap_scan && !forced.fallbacks.no_userfaultfd);
        assert_eq!(forced.broken.snapshot, Sabotage::SkipPage);
        assert_eq!(Forced::parse("").unwrap(), Forced::default());
    }

    #[test]
    fn what_is_forced_can_be_handed_on() {
        for text in [
            "",
            "break-no-rearm",
            "no-pagemap-scan,user-mode-only,break-skip-page",
            "break-skip-dirty-page",
        ] {
            assert_eq!(Forced::parse(text).unwrap().text(), text);
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_all() {
        let error = Forced::parse("no-such-thing").unwrap_err().to_string();
        for name in [
            "\"no-such-thing\"",
            "no-wp-unpopulated",
            "break-no-rearm",
            "break-skip-dirty-page",
        ] {
            assert!(error.contains(name), "{error}");
        }
    }
}
