//! What belongs to all of the host: swap, merging of pages. Tests that change it run alone, only
//! where they were told to, and put it back.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Turn, skipped, turn};

/// The variable that allows it.
const ALLOWED: &str = "PAGURO_TEST_HOST_WIDE";

/// The right to change what belongs to all of the host, alone; or `None` with a printed reason.
pub fn host_wide() -> Option<Turn> {
    if std::env::var_os(ALLOWED).is_none_or(|value| value != "1") {
        skipped(format_args!(
            "it changes what belongs to all of this host, which {ALLOWED}=1 would allow"
        ));
        return None;
    }
    Some(turn())
}

/// Something that the host swaps to, until dropped: compressed memory (zram) where it can be had, else a
/// file. What goes to zram is gone from memory at once; what goes to a file may stay in the kernel's
/// cache for a while, where even a kernel that is asked the wrong question finds it.
#[derive(Debug)]
pub struct Swap {
    path: PathBuf,
    zram: Option<u32>,
}

impl Swap {
    const ZRAM: &str = "/sys/class/zram-control";

    /// So many MiB, in a directory on a disk if need be; or `None` with a printed reason.
    pub fn on(dir: &Path, mib: usize) -> Option<Self> {
        let swap = match Self::zram(mib) {
            Some(swap) => swap,
            None => Self::file(dir, mib)?,
        };
        for program in ["mkswap", "swapon"] {
            let done = Command::new(program).arg(&swap.path).output();
            if !done.as_ref().is_ok_and(|done| done.status.success()) {
                skipped(format_args!("{program}: {done:?}"));
                return None;
            }
        }
        Some(swap)
    }

    fn zram(mib: usize) -> Option<Self> {
        let number = std::fs::read_to_string(format!("{}/hot_add", Self::ZRAM)).ok()?;
        let number: u32 = number.trim().parse().ok()?;
        let swap = Self {
            path: format!("/dev/zram{number}").into(),
            zram: Some(number),
        };
        let size = format!("/sys/block/zram{number}/disksize");
        std::fs::write(size, (mib << 20).to_string()).ok()?;
        swap.path.exists().then_some(swap)
    }

    fn file(dir: &Path, mib: usize) -> Option<Self> {
        let swap = Self {
            path: dir.join("paguro-test.swap"),
            zram: None,
        };
        let made = File::create(&swap.path).and_then(|mut file| {
            let zeros = vec![0; 1 << 20];
            (0..mib).try_for_each(|_| file.write_all(&zeros))?;
            file.sync_all()
        });
        match made {
            Ok(()) => Some(swap),
            Err(error) => {
                skipped(format_args!("no file to swap to: {error}"));
                None
            }
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // Says so itself if it was never switched on.
        let _ = Command::new("swapoff").arg(&self.path).output();
        match self.zram {
            Some(number) => {
                let _ = std::fs::write(format!("{}/hot_remove", Self::ZRAM), number.to_string());
            }
            None => {
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }
}

/// The kernel merges equal pages as fast as it can (KSM), until dropped.
#[derive(Debug)]
pub struct Merging(Vec<(&'static str, String)>);

impl Merging {
    const DIR: &str = "/sys/kernel/mm/ksm";
    const SETTINGS: [(&str, &str); 3] = [
        ("pages_to_scan", "100000"),
        ("sleep_millisecs", "0"),
        ("run", "1"),
    ];

    /// Switched on, or `None` with a printed reason.
    pub fn on() -> Option<Self> {
        let mut before = Self(Vec::new());
        for (name, value) in Self::SETTINGS {
            let path = format!("{}/{name}", Self::DIR);
            let now = std::fs::read_to_string(&path);
            match now.and_then(|now| std::fs::write(&path, value).map(|()| now)) {
                Ok(now) => before.0.push((name, now.trim().to_owned())),
                Err(error) => {
                    skipped(format_args!("{path}: {error}"));
                    return None;
                }
            }
        }
        Some(before)
    }

    /// Waits until the kernel has looked at all memory that may be merged so often again.
    ///
    /// # Panics
    ///
    /// If that takes a minute.
    pub fn wait_scans(&self, scans: u64) {
        let done = || -> u64 {
            let path = format!("{}/full_scans", Self::DIR);
            let text = std::fs::read_to_string(path).unwrap();
            text.trim().parse().unwrap()
        };
        let end = done() + scans;
        crate::wait_until("scans of KSM", || done() >= end);
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        for (name, value) in self.0.drain(..).rev() {
            // 2 undoes what was merged; it is ours alone.
            let path = format!("{}/{name}", Self::DIR);
            if name == "run" && value == "0" {
                let _ = std::fs::write(&path, "2");
            }
            let _ = std::fs::write(&path, value);
        }
    }
}
