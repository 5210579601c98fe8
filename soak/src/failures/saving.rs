//! A guest is written to a file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use paguro_lab::{Machine, MachineOptions, check_file};
use serde_json::json;

use super::blow::Blow;
use super::case::{Kind, Party, Work};
use super::command::Client;
use super::disk::Disk;
use super::scene::{Scene, nothing_is_left, settled};

/// How long a limit lasts, at most, while a command waits.
pub const LASTS: Duration = Duration::from_secs(3);

/// A guest that writes faster than it is sent is stopped after a while.
pub const CONVERGES: [&str; 4] = ["--timeout", "1", "--at-timeout", "switchover"];

const NAME: &str = "a.snap";
const OLD: &[u8] = b"the old one";

/// Runs a case.
pub fn run(scene: &mut Scene<'_>) -> Result<()> {
    let memory_bytes = scene.memory_bytes();
    let mut blow = Blow::draw(&scene.case, &mut scene.rng, memory_bytes)?;
    let options = scene.machine(memory_bytes, &blow);
    let files = scene.dir.join("files");
    let disk = match scene.case.fault.kind() {
        Kind::Disk => Some(Disk::mount(&files, 4 * memory_bytes)?),
        _ => None,
    };
    std::fs::create_dir_all(&files)?;
    let file = files.join(NAME);
    let had_old = scene.rng.one_in(2);
    if had_old {
        std::fs::write(&file, OLD)?;
    }
    let (mut machine, before) = scene.source(&options)?;
    machine.hang_up();
    let (address, name) = (machine.qmp_address(), file.display().to_string());
    let uri = format!("file:{name}");
    let mut args = match scene.case.work {
        Work::File => [&["migrate", &uri][..], &CONVERGES].concat(),
        Work::Stopped => vec!["snapshot", "--stop", &name],
        _ => vec!["snapshot", &name],
    };
    args.extend(["--qmp", &address]);
    if blow.is_early && scene.case.to == Party::Machine {
        blow.strike(machine.pid(), disk.as_ref())?;
    }
    let mut client = Client::begin(scene.program.file, &args)?;
    if !blow.is_early || scene.case.to == Party::Client {
        std::thread::sleep(blow.moment);
        let pid = match scene.case.to {
            Party::Client => client.pid(),
            _ => machine.pid(),
        };
        blow.strike(pid, disk.as_ref())?;
    }
    let ended = client.wait(LASTS)?;
    blow.lift(disk.as_ref())?;
    let ended = match ended {
        Some(ended) => ended,
        None => client.must_end()?,
    };
    if client.said().contains("panicked") {
        bail!("the command panicked: {}", client.said());
    }
    let lives = blow.outlived(&mut machine, Party::Machine)?;
    let status = if lives {
        Some(settled(&mut machine, || Ok(false))?)
    } else {
        None
    };
    let leaves = scene.case.work != Work::Snapshot && status.as_deref() == Some("completed");
    let written = machine.progress().total_writes();
    let is_new = judge(scene, &file, had_old, &options)?;
    if leaves && machine.progress().total_writes() != written {
        bail!("the guest is in the file, and runs on");
    }
    match status.as_deref() {
        Some("completed") if !is_new => bail!("it says that it has written a file: there is none"),
        Some("completed") | None => {}
        Some(status) if is_new => bail!("it is {status:?}, and yet there is a file"),
        Some(status) if ended.success() => {
            bail!("it is {status:?}, and its command says all is well")
        }
        Some(_) => {}
    }
    only_that(&files)?;
    scene.outcome = match (&status, is_new) {
        (None, true) => "machine gone, file whole".to_owned(),
        (None, false) => "machine gone, no file".to_owned(),
        (Some(status), _) => format!(
            "machine lives, {}",
            if status.is_empty() {
                "not begun"
            } else {
                status
            }
        ),
    };
    if !lives {
        return Ok(());
    }
    nothing_is_left(&mut machine, &before)?;
    let wanted = if leaves { "postmigrate" } else { "running" };
    machine.wait_status(wanted)?;
    if leaves {
        machine.cont()?;
    }
    scene.goes_on(machine, "the machine")
}

/// Whether there is a new file, which must then be right; an older one is there until then.
fn judge(
    scene: &mut Scene<'_>,
    file: &Path,
    had_old: bool,
    options: &MachineOptions,
) -> Result<bool> {
    match std::fs::read(file) {
        Ok(bytes) if bytes == OLD => return Ok(false),
        Ok(_) => {}
        Err(_) if had_old => bail!("the older file is gone, and there is no new one"),
        Err(_) => return Ok(false),
    }
    if scene.case.work == Work::File {
        return bring_in(scene, file, options)
            .context("the file")
            .map(|()| true);
    }
    let report = check_file(file)?;
    scene.tally.add("the file", &report)?;
    let name = file.display().to_string();
    let mut verify = Client::begin(scene.program.file, &["inspect", "--verify", &name])?;
    if !verify.must_end()?.success() {
        bail!("the file does not verify: {}", verify.said());
    }
    Ok(true)
}

/// Lets a guest in out of a stream in a file, to look at it.
fn bring_in(scene: &mut Scene<'_>, file: &Path, options: &MachineOptions) -> Result<()> {
    let mut options = options.awaiting();
    options.paused = true;
    options.through = Vec::new();
    let mut machine = Machine::start(&options)?;
    let uri = format!("file:{}", file.display());
    machine.execute("migrate-incoming", json!({ "uri": uri }))?;
    machine.wait_status("paused")?;
    let report = machine.check_ram()?;
    scene.tally.add("the guest in the file", &report)?;
    machine.quit()
}

/// No half file of any name.
fn only_that(files: &Path) -> Result<()> {
    for entry in std::fs::read_dir(files)? {
        let name = entry?.file_name();
        if name != NAME {
            bail!("{} is left", name.display());
        }
    }
    Ok(())
}
