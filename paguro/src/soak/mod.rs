//! `paguro soak`: tries a host with random machines.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::SoakArgs;
use crate::force::Forced;

/// Runs the command.
pub fn soak(_args: &SoakArgs, _forced: &Forced) -> Result<ExitCode> {
    bail!("soak is not part of this build")
}
