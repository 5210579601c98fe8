//! `paguro run` and `paguro restore`: a machine, from its start to its end.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::Context;
use anyhow::{Result, bail};
use paguro_migration::SnapshotOptions;
use paguro_sys::Host;
use paguro_vmm::{Event, ShutdownCause};
use rustix::event::{PollFd, PollFlags, poll};

use crate::cli::{IncomingArg, MachineArgs};
use crate::force::Forced;
use crate::guest::Guest;
use crate::interrupt::Interrupts;
use crate::launch;
use crate::qmp::capabilities::Capabilities;
use crate::qmp::incoming::Manner;
use crate::qmp::settings::Settings;
use crate::qmp::{Monitor, Socket};

/// What a cancelled snapshot may take to clean up when the machine ends.
const WIND_UP: Duration = Duration::from_secs(10);

/// What a client may take to read the last events.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where a machine comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// It is booted.
    Boot,
    /// A snapshot file.
    File(&'a Path),
    /// Another process.
    Incoming(&'a IncomingArg),
}

/// Runs a machine until it ends.
pub fn run(args: &MachineArgs, origin: Origin<'_>, forced: &Forced) -> Result<ExitCode> {
    let interrupts = Interrupts::catch()?;
    let socket = args
        .qmp
        .as_ref()
        .map(|qmp| Socket::bind(&qmp.0))
        .transpose()?;
    let host = Host::probe(&forced.fallbacks);
    let (guest, runs) = match origin {
        Origin::Boot => (launch::fresh(args, host)?, true),
        Origin::File(path) => launch::restored(args, path, host)?,
        Origin::Incoming(_) => (launch::empty(args, host)?, false),
    };
    let guest = Arc::new(guest);
    let events = guest.vm().subscribe();
    let options = SnapshotOptions {
        check_freeze: args.check_freeze,
        sabotage: forced.broken.snapshot,
        ..SnapshotOptions::new(host)
    };
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
    end_on_interrupt(guest.clone(), interrupts)?;
    fail_on_bus_errors(guest.clone())?;
    if args.x_end_with_stdin {
        end_with_stdin(guest.clone())?;
    }
    if runs && !args.paused {
        guest.vm().start()?;
    }
    if let Origin::Incoming(from) = origin {
        wait_for(&monitor, from, args.paused)?;
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
    monitor.events.flush(FAREWELL);
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
            .map(|detail| format!(": {detail}"))
            .unwrap_or_default();
        bail!("the machine ended with {}{detail}", ended.cause.name());
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the door, or leaves that to `migrate-incoming`.
fn wait_for(monitor: &Monitor, from: &IncomingArg, paused: bool) -> Result<()> {
    let address = match from {
        IncomingArg::Defer => {
            monitor.arrivals.defer(paused);
            return Ok(());
        }
        IncomingArg::From(address) => address,
    };
    let manner = Manner {
        paused,
        exit_on_error: true,
    };
    let entry = monitor.arrivals.open(monitor, address, manner)?;
    eprintln!("paguro: waiting for a machine at {}", entry.local);
    Ok(())
}

type Thread = std::thread::JoinHandle<()>;

/// Tells the operator and the QMP client what happens to the machine. One that failed stays, to
/// be looked at over QMP; without QMP nobody could, and it ends.
fn watch(monitor: &Arc<Monitor>, events: Receiver<Event>, has_qmp: bool) -> Result<Thread> {
    let monitor = monitor.clone();
    let watch = move || {
        for event in events {
            if let Event::Failed { reason } = &event {
                eprintln!("paguro: the machine failed and stays stopped: {reason}");
                if !has_qmp {
                    monitor.guest.vm().quit(ShutdownCause::HostError);
                }
            }
            monitor.forward(&event);
            if matches!(event, Event::Shutdown { .. }) {
                return;
            }
        }
    };
    Ok(std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(watch)?)
}

fn end_on_interrupt(guest: Arc<Guest>, interrupts: Interrupts) -> Result<()> {
    let wait = move || {
        interrupts.wait_for_one();
        guest.vm().quit(ShutdownCause::HostSignal);
    };
    std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(wait)?;
    Ok(())
}

/// Stops the machine when a page of the file that its RAM maps cannot be read.
fn fail_on_bus_errors(guest: Arc<Guest>) -> Result<()> {
    if guest.bus_errors().is_empty() {
        return Ok(());
    }
    let listen = move || {
        let bells: Vec<BorrowedFd<'_>> = guest
            .bus_errors()
            .iter()
            .map(|watch| watch.bell())
            .collect();
        let mut bells: Vec<_> = bells
            .iter()
            .map(|bell| PollFd::new(bell, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut bells, None) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return tracing::error!(%error, "bus errors go unheard"),
            }
        }
        guest.fail_for_lost_pages();
    };
    std::thread::Builder::new()
        .name("bus-errors".to_owned())
        .spawn(listen)?;
    Ok(())
}

/// Ends the machine, and then the process, when standard input ends: whoever holds the other end
/// is gone.
fn end_with_stdin(guest: Arc<Guest>) -> Result<()> {
    let wait = move || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        guest.vm().quit(ShutdownCause::HostSignal);
        // A machine that is stuck goes all the same.
        std::thread::sleep(WIND_UP);
        std::process::exit(1);
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(wait)?;
    Ok(())
}
