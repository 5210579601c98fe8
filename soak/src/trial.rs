//! What is tried: snapshots of a machine, or moves of one.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;

use super::walk::{self, Walked};
use super::{Case, MoveCase, Program, moves};

/// One case, as a text that brings it back: with `tracker=` a machine that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Snapshots and returns.
    Snapshots(Case),
    /// Moves to other processes.
    Moves(MoveCase),
}

impl Trial {
    /// Runs it; see [`walk::walk`].
    pub(super) fn walk(&self, program: Program<'_>, dir: &Path, walked: &mut Walked) -> Result<()> {
        match self {
            Self::Snapshots(case) => walk::walk(case, program, dir, walked),
            Self::Moves(case) => moves::walk(case, program, walked),
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshots(case) => case.fmt(f),
            Self::Moves(case) => case.fmt(f),
        }
    }
}

impl FromStr for Trial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let moves = text.split(',').any(|part| part.starts_with("tracker="));
        Ok(if moves {
            Self::Moves(text.parse()?)
        } else {
            Self::Snapshots(text.parse()?)
        })
    }
}
