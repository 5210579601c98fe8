//! A small file system of one trial, in a mount namespace of this process's own.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A tmpfs; unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

/// Becomes a command that begins anew in a mount namespace of its own, if there is one to begin. Where
/// that cannot be had, this says why and changes nothing.
pub fn apart(again: Option<&[OsString]>) -> Result<(), String> {
    let Some(again) = again else {
        return Ok(());
    };
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "--"]);
        unshare
    };
    let mut probe = unshare();
    probe
        .arg("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match probe.status() {
        Ok(status) if status.success() => {}
        Ok(_) => return Err("this process may not have mounts of its own".to_owned()),
        Err(error) => return Err(format!("there is no `unshare`: {error}")),
    }
    let error = unshare().args(again).exec();
    Err(format!("cannot begin anew with mounts of its own: {error}"))
}

/// Whether one can be had.
pub fn try_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    Disk::mount(&dir.path().join("disk"), 1 << 20).map(drop)
}

impl Disk {
    /// An empty one of that size on `dir`, which it makes.
    pub fn mount(dir: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={bytes}"))
            .arg("paguro-failures")
            .arg(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// From now on nothing can be written; false if somebody does just now.
    pub fn protect(&self) -> bool {
        self.remount("ro").is_ok()
    }

    /// It can be written again.
    pub fn unprotect(&self) -> Result<()> {
        self.remount("rw")
    }

    /// Takes all the room that there is.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.filler())?;
        let block = vec![1; 1 << 20];
        let mut step = block.len();
        while step > 0 {
            match file.write(&block[..step]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => step /= 2,
                Err(error) => return Err(error).context("cannot fill a disk"),
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub fn empty(&self) {
        // Nobody may have taken it.
        fs::remove_file(self.filler()).ok();
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    fn remount(&self, option: &str) -> Result<()> {
        let option = format!("remount,{option}");
        run(Command::new("mount").args(["-o", &option]).arg(&self.dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.dir)) {
            tracing::error!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}", said.trim());
    }
    Ok(())
}
