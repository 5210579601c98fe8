//! `paguro run` and `paguro restore`: a machine, from its start to its end.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::Context;
use anyhow::{Result, bail};
use paguro_migration::SnapshotOptions;
use paguro_migration::channel::Address;
use paguro_qmp::Socket;
use paguro_sys::Host;
use paguro_vmm::{Event, ShutdownCause, StateError};

use crate::cli::MachineArgs;
use crate::ending::Ending;
use crate::force::Forced;
use crate::guest::Guest;
use crate::handed::{Doors, Handed};
use crate::hints;
use crate::interrupt::{Again, Interrupts};
use crate::launch;
use crate::log;
use crate::qmp::Monitor;
use crate::qmp::capabilities::Capabilities;
use crate::qmp::incoming::Manner;
use crate::qmp::settings::Settings;

/// What a cancelled snapshot may take to clean up when the machine ends.
const WIND_UP: Duration = Duration::from_secs(10);

/// What the end may take that a signal asks for: more than all that is waited for then, so that only
/// what is stuck is left.
const END: Duration = Duration::from_secs(30);

/// What a client may take to read the last events. One that reads is not waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// What whoever reads the serial line may take to come to its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where a machine comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// It is booted.
    Boot,
    /// A snapshot file.
    File(&'a Path),
    /// Another process; where from, if `migrate-incoming` is not to say it.
    Incoming(Option<&'a Address>),
    /// Another process on this host, with its RAM.
    HandOver {
        /// Where it comes in.
        main: &'a Address,
        /// Where its RAM is handed over.
        cpr: &'a Address,
    },
}

/// Runs a machine until it ends.
pub fn run(args: &MachineArgs, origin: Origin<'_>, forced: &Forced) -> Result<ExitCode> {
    let interrupts = Interrupts::catch(Again::ChangesNothing)?;
    let ending = Ending::default();
    end_on_interrupt(ending.clone(), interrupts)?;
    if args.x_end_with_stdin {
        end_with_stdin(ending.clone())?;
    }
    let doors = match origin {
        Origin::HandOver { main, cpr } => {
            let tls = args.tls_creds.is_some();
            Some(Doors::open(main, cpr, tls, &ending)?)
        }
        _ => None,
    };
    let socket = args
        .qmp
        .as_ref()
        .map(|qmp| Socket::bind(&qmp.0))
        .transpose()?;
    if let Some(socket) = &socket {
        ending.has_socket(socket.file().clone());
    }
    let host = Host::probe(&forced.fallbacks);
    let handed = match doors.map(|doors| doors.wait(&ending)).transpose()? {
        Some(None) => return Ok(ExitCode::SUCCESS),
        handed => handed.flatten(),
    };
    let (guest, runs) = match (origin, &handed) {
        (Origin::File(path), _) => launch::restored(args, path, host)?,
        (_, Some(handed)) => (launch::handed(args, handed.taken.ram(), host)?, false),
        (Origin::Incoming(_), _) => (launch::empty(args, host)?, false),
        _ => (launch::fresh(args, host)?, true),
    };
    let guest = Arc::new(guest);
    let events = guest.vm().subscribe();
    let mut options = SnapshotOptions::new();
    options.for_tests.check_freeze = args.check_freeze;
    options.for_tests.sabotage = forced.broken.snapshot;
    let mut settings = Settings::new(options, forced.broken.migration);
    if let Some(directory) = &args.tls_creds {
        let directory = std::path::absolute(directory)?;
        let text = directory.to_str();
        settings.tls_creds = text.context("--tls-creds is no text")?.to_owned();
    }
    let capabilities = Capabilities {
        multifd: settings.set_multifd(&args.multifd),
        ..Capabilities::default()
    };
    let monitor = Arc::new(Monitor::new(guest.clone(), settings, capabilities));
    let watcher = watch(&monitor, events, socket.is_some())?;
    ending.has(&guest);
    if runs && !args.paused {
        match guest.vm().start() {
            // Somebody was faster.
            Err(StateError::Ended(_)) => {}
            started => started?,
        }
    }
    if let Origin::Incoming(from) = origin {
        wait_for(&monitor, from, args.paused)?;
    }
    if let Some(handed) = handed {
        complete(&monitor, handed, args.paused, &ending)?;
    }
    if let Some(socket) = &socket {
        socket.serve(monitor.clone())?;
    }
    let ended = guest.vm().wait_ended();
    monitor.arrivals.wind_up();
    monitor.migrations.wind_up(WIND_UP);
    if watcher.join().is_err() {
        tracing::error!("the thread that forwards events panicked");
    }
    monitor.events.all().flush(FAREWELL);
    say_all(&guest);
    drop(socket);
    if let Some(error) = monitor.arrivals.take_failure() {
        return Err(error.context("the machine did not come in"));
    }
    if let Some(reason) = guest.failure() {
        bail!("the machine failed: {reason}");
    }
    if ended.cause.is_error() {
        let detail = ended
            .detail
            .or_else(|| guest.vm().halted())
            .map(|detail| format!(": {detail}"))
            .unwrap_or_default();
        bail!("the machine ended with {}{detail}", ended.cause.name());
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives whoever reads the serial line its end; those who do not read are not waited for.
fn say_all(guest: &Guest) {
    guest.vm().flush_serial(LAST_WORDS);
    let said = guest.vm().serial_counts();
    if said.lost_bytes > 0 {
        tracing::warn!(
            lost_bytes = said.lost_bytes,
            written_bytes = said.written_bytes,
            "of the serial line's output something was lost"
        );
    }
}

/// Opens the door, or leaves that to `migrate-incoming`.
fn wait_for(monitor: &Monitor, from: Option<&Address>, paused: bool) -> Result<()> {
    let Some(address) = from else {
        monitor.arrivals.defer(paused);
        return Ok(());
    };
    let manner = Manner {
        paused,
        exit_on_error: true,
    };
    let entry = monitor.arrivals.open(monitor, address, manner)?;
    log::say(format_args!(
        "paguro: waiting for a machine at {}",
        entry.local
    ));
    Ok(())
}

/// Lets the rest of a machine in. Nothing of it runs here before the source permits that.
fn complete(monitor: &Monitor, handed: Handed, paused: bool, ending: &Ending) -> Result<()> {
    let whose = handed.taken.id();
    let way = match handed.taken.confirm() {
        // Its channel was ended with the waiting, and the machine ends, too.
        Err(_) if ending.asked() => return Ok(()),
        confirmed => confirmed.context("the source is gone that handed its RAM over")?,
    };
    let manner = Manner {
        paused,
        exit_on_error: true,
    };
    let entry = monitor
        .arrivals
        .complete(monitor, whose, handed.main, manner)?;
    let watched = entry.clone();
    paguro_sys::NewThread::named("handed".to_owned()).spawn(move || watched.arrival.watch(way))?;
    log::say(format_args!(
        "paguro: RAM is here; waiting for the rest at {}",
        entry.local
    ));
    Ok(())
}

type Thread = std::thread::JoinHandle<()>;

/// Tells the operator and the QMP client what happens to the machine. One that failed or is halted
/// stays, to be looked at, or to go on, over QMP; without QMP nobody could, and it ends.
fn watch(monitor: &Arc<Monitor>, events: Receiver<Event>, has_qmp: bool) -> Result<Thread> {
    let monitor = monitor.clone();
    let watch = move || {
        for event in events {
            match &event {
                Event::Failed { reason } => log::say(format_args!(
                    "paguro: the machine failed and stays stopped: {reason}"
                )),
                Event::Halted { reason } => {
                    log::say(format_args!(
                        "paguro: the machine is stopped (io-error): {reason}"
                    ));
                    log::say(format_args!("hint: {}", hints::HALTED));
                }
                Event::Resumed => monitor.guest.resumed(),
                _ => {}
            }
            let stays = matches!(event, Event::Failed { .. } | Event::Halted { .. });
            if stays && !has_qmp {
                monitor.guest.vm().quit(ShutdownCause::HostError);
            }
            monitor.forward(&event);
            if matches!(event, Event::Shutdown { .. }) {
                return;
            }
        }
    };
    Ok(paguro_sys::NewThread::named("events".to_owned()).spawn(watch)?)
}

fn end_on_interrupt(ending: Ending, interrupts: Interrupts) -> Result<()> {
    let wait = move || {
        interrupts.wait_for_one();
        ending.ask();
        std::thread::sleep(END);
        log::say(format_args!("paguro: the machine does not end: leaving it"));
        log::exit(1);
    };
    paguro_sys::NewThread::named("interrupt".to_owned()).spawn(wait)?;
    Ok(())
}

/// Ends the machine, and then the process, when standard input ends: whoever holds the other end
/// is gone.
fn end_with_stdin(ending: Ending) -> Result<()> {
    let wait = move || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ending.ask();
        // A machine that is stuck goes all the same.
        std::thread::sleep(WIND_UP);
        log::exit(1);
    };
    paguro_sys::NewThread::named("stdin".to_owned()).spawn(wait)?;
    Ok(())
}
