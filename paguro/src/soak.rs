//! `paguro soak`: the command line of `paguro-soak`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use paguro_migration::options::Sabotage;
use paguro_migration::source::SourceSabotage;
use paguro_soak::{Extent, FailureOptions, SoakOptions, Target};

use crate::cli::SoakArgs;
use crate::console::Terminal;
use crate::force::{Forced, sabotage_name, source_sabotage_name};

/// Runs the command.
pub fn soak(args: &SoakArgs, forced: &Forced) -> Result<ExitCode> {
    let terminal = Terminal::open()?;
    let target = Target {
        program: crate::program()?,
        sabotage: match (forced.broken.snapshot, forced.broken.migration) {
            (Sabotage::None, SourceSabotage::None) => "",
            (Sabotage::None, sabotage) => source_sabotage_name(sabotage),
            (sabotage, _) => sabotage_name(sabotage),
        },
        fallbacks: forced.fallbacks,
    };
    let right = if args.failures || !args.failure.is_empty() {
        let again = || {
            let own = std::iter::once(target.program.clone().into_os_string());
            let args = std::env::args_os().skip(1);
            own.chain(args).chain(["--x-apart".into()]).collect()
        };
        let options = FailureOptions {
            seed: args.seed,
            full: args.full,
            from: args.from,
            cases: args.failure.clone(),
            again: (!args.x_apart).then(again),
            target,
        };
        paguro_soak::failures(&options, &terminal)?
    } else {
        let options = SoakOptions {
            target,
            seed: args.seed,
            extent: match (args.pairwise, args.full) {
                (true, _) => Extent::Pairwise,
                (false, true) => Extent::Full,
                (false, false) => Extent::For(Duration::from_secs(60 * args.minutes)),
            },
            migrate: args.migrate,
            cases: args.case.clone(),
        };
        paguro_soak::soak(&options, &terminal)?
    };
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
