//! paguro: moves the memory of running virtual machines.
//!
//! A command is parsed, done, and its end is told by the exit status: 0 if all is right, 1 with a
//! message and, where there is one, a hint what to do; 2 for a command line that makes no sense.
//!
//! | module | for |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`run`] | `run` and `restore`: a machine, from its start to its end |
//! | [`handed`] | RAM that another process hands over |
//! | [`ending`] | what a signal ends |
//! | [`launch`] | how a machine is made out of options or a file |
//! | [`guest`] | a machine together with the engine's side of its memory |
//! | [`qmp`] | its control socket: the commands |
//! | [`snapshot`] | `snapshot`: asks a running machine to save itself |
//! | [`migrate`] | `migrate`: asks a running machine to move to another process |
//! | [`inspect`] | `inspect`: looks into a file |
//! | [`demo`], [`mod@bench`], [`soak`] | try and measure all of it |
//! | [`console`] | the terminal, as these see it |
//! | [`hints`] | what an operator can do about an error |
//! | [`log`] | what is said on standard error, which nobody may be reading |
//! | [`reserve`] | memory that is kept back for when there is none |

#![forbid(unsafe_code)]
// Both panic when nobody takes what they print, and a machine may depend on whoever does.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod bench;
mod cli;
mod console;
mod demo;
mod done;
mod ending;
mod force;
mod guest;
mod handed;
mod hints;
mod inspect;
mod interrupt;
mod launch;
mod log;
mod migrate;
mod progress;
mod qmp;
mod reserve;
mod run;
mod snapshot;
mod soak;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use cli::{BenchCommand, Cli, Command};
use force::Forced;
use run::Origin;

/// When the program began, by CLOCK_MONOTONIC: what it takes to bring a machine back counts from
/// here.
static MAIN_AT_NS: OnceLock<u64> = OnceLock::new();

fn main() -> ExitCode {
    MAIN_AT_NS.get_or_init(paguro_lab::now_ns);
    reserve::start();
    let cli = Cli::parse();
    log::start();
    trace();
    // Whether a command of `exec:` ended well is its status, whatever started this program.
    if let Err(error) = paguro_sys::keep_status_of_children() {
        tracing::warn!(%error, "the ends of commands are not told");
    }
    let code = match forced().and_then(|forced| execute(&cli.command, &forced)) {
        Ok(code) => code,
        Err(error) => {
            log::say(format_args!("paguro: {error:#}"));
            if let Some(hint) = hints::hint(&error) {
                log::say(format_args!("hint: {hint}"));
            }
            ExitCode::FAILURE
        }
    };
    log::flush();
    code
}

fn execute(command: &Command, forced: &Forced) -> Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let wrong = |text| {
                Cli::command()
                    .error(ErrorKind::ArgumentConflict, text)
                    .exit()
            };
            let origin = args.origin().unwrap_or_else(wrong);
            run::run(&args.machine, origin, forced)
        }
        Command::Restore(args) => run::run(&args.machine, Origin::File(&args.file), forced),
        Command::Migrate(args) => migrate::migrate(args),
        Command::Snapshot(args) => snapshot::snapshot(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => match &args.command {
            BenchCommand::Snapshot(args) => bench::snapshot(args, forced),
            BenchCommand::Migrate(args) => bench::migrate(args, forced),
        },
        Command::Soak(args) => soak::soak(args, forced),
        Command::Demo(args) => demo::demo(args, forced),
    }
}

/// What `PAGURO_FORCE` asks for. Nobody else reads it.
fn forced() -> Result<Forced> {
    match std::env::var_os(force::VARIABLE) {
        Some(text) => {
            let text = text
                .to_str()
                .with_context(|| format!("{} is no text", force::VARIABLE))?;
            Forced::parse(text)
        }
        None => Ok(Forced::default()),
    }
}

/// The file of this program, for processes that run it too.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the file of this program")
}

/// Traces go to standard error; without `PAGURO_LOG`, warnings do.
fn trace() {
    use tracing_subscriber::filter::{EnvFilter, LevelFilter};
    let filter = EnvFilter::builder()
        .with_env_var("PAGURO_LOG")
        .with_default_directive(LevelFilter::WARN.into())
        .from_env_lossy();
    let colours = std::io::stderr().is_terminal();
    let to = tracing_subscriber::fmt()
        .with_writer(|| log::Traces)
        .with_ansi(colours);
    to.with_env_filter(filter).init();
}
