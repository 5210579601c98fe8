//! A file system of one file, whose reads fail or hang when a test says so: the kernel's own errors, for
//! `read(2)` and for mappings alike, out of a server in this process (FUSE).

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::skipped;

/// The name of the file.
const NAME: &str = "file";
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// `EIO`: what a disk says that cannot read.
pub const EIO: i32 = 5;
/// No error: there is no answer.
const HANGS: i32 = -1;
/// For so long at most: the kernel lets nobody go who waits for an answer, and a test that fails is to
/// end.
const LONGEST: Duration = Duration::from_secs(120);

/// A mounted file system, gone when dropped.
#[derive(Debug)]
pub struct Flaky {
    dir: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// What reads answer now; 0 for what is in the file.
    errno: AtomicI32,
    /// Reads that fail; all of them.
    range: Mutex<std::ops::Range<u64>>,
    /// How many more are to fail.
    left: AtomicU64,
    failed: AtomicU64,
    served: AtomicU64,
    /// Reads that met no answer.
    hung: AtomicU64,
    /// With `range`: what reads answer is another thing now.
    changed: Condvar,
}

impl Flaky {
    /// Shows `file` in the empty directory `dir`, or `None` with a printed reason.
    pub fn mount(dir: &Path, file: &Path) -> Option<Self> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            skipped("there is no /dev/fuse to make a file system with");
            return None;
        };
        let shared = Arc::new(Shared {
            file: File::open(file).ok()?,
            errno: AtomicI32::new(0),
            range: Mutex::new(0..u64::MAX),
            left: AtomicU64::new(u64::MAX),
            failed: AtomicU64::new(0),
            served: AtomicU64::new(0),
            hung: AtomicU64::new(0),
            changed: Condvar::new(),
        });
        let mounted = Command::new("mount")
            .args(["-i", "-t", "fuse", "paguro-test"])
            .arg(dir)
            .args(["-o", "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other"])
            .stdin(Stdio::from(device.try_clone().ok()?))
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            skipped("cannot mount a file system here");
            return None;
        }
        let its = shared.clone();
        std::thread::spawn(move || its.serve(device));
        let dir = dir.to_owned();
        Some(Self { dir, shared })
    }

    /// The file as it is there.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// From now on every read fails that the kernel makes.
    pub fn fail(&self) {
        self.fail_some(0..u64::MAX, u64::MAX);
    }

    /// The next `count` reads fail that have something of a range.
    pub fn fail_some(&self, range: std::ops::Range<u64>, count: u64) {
        self.answer(range, count, EIO);
    }

    /// From now on a read that has something of a range is not answered, and nothing that is asked
    /// after it, as by a server that stands still.
    pub fn hang(&self, range: std::ops::Range<u64>) {
        self.answer(range, u64::MAX, HANGS);
    }

    /// From now on all are answered, those that hang as well.
    pub fn mend(&self) {
        self.answer(0..u64::MAX, u64::MAX, 0);
    }

    fn answer(&self, range: std::ops::Range<u64>, count: u64, errno: i32) {
        let mut its = self.shared.range.lock();
        *its = range;
        self.shared.left.store(count, Ordering::SeqCst);
        self.shared.errno.store(errno, Ordering::SeqCst);
        drop(its);
        self.shared.changed.notify_all();
    }

    /// Reads that hang, or did.
    pub fn hung(&self) -> u64 {
        self.shared.hung.load(Ordering::SeqCst)
    }

    /// Reads that failed.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// Reads that did not.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }
}

impl Drop for Flaky {
    fn drop(&mut self) {
        self.mend();
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// What is asked, in the kernel's numbers.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const RELEASE: u32 = 18;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const LSEEK: u32 = 46;
}

const ENOENT: i32 = 2;
const ENXIO: i32 = 6;
const ENOSYS: i32 = 38;
/// The other one is `SEEK_DATA`: nothing else is asked.
const SEEK_HOLE: u32 = 4;

impl Shared {
    /// Answers until the file system is unmounted.
    fn serve(&self, mut device: File) {
        let mut request = vec![0; 256 << 10];
        loop {
            let Ok(length) = device.read(&mut request) else {
                return;
            };
            let request = &request[..length];
            let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
            let answer = match opcode {
                opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => continue,
                _ => self.answer(opcode, u64_at(request, 16), &request[40..]),
            };
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend((16 + body.len() as u32).to_ne_bytes());
            reply.extend(error.to_ne_bytes());
            reply.extend(unique.to_ne_bytes());
            reply.extend(body);
            // Whoever asked may have been killed.
            let _ = device.write(&reply);
        }
    }

    fn answer(&self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut out = Vec::new();
        match opcode {
            opcode::INIT => {
                let (major, minor, ahead, flags) = (7u32, 31u32, 64u32 << 10, 0u32);
                for word in [major, minor, ahead, flags, 0x000c_0010, 4096, 1, 0] {
                    out.extend(word.to_ne_bytes());
                }
                out.resize(64, 0);
            }
            opcode::LOOKUP if node == ROOT && body.strip_suffix(b"\0") == Some(NAME.as_bytes()) => {
                out.extend(FILE.to_ne_bytes());
                // No generation, and nothing is remembered by the kernel.
                out.resize(40, 0);
                out.extend(self.attributes(FILE)?);
            }
            opcode::LOOKUP => return Err(ENOENT),
            opcode::GETATTR => {
                out.resize(16, 0);
                out.extend(self.attributes(node)?);
            }
            opcode::OPEN => out.resize(16, 0),
            opcode::READ => return self.read(u64_at(body, 8), u32_at(body, 16)),
            opcode::LSEEK => {
                let found = self.seek(u64_at(body, 8), u32_at(body, 16) == SEEK_HOLE)?;
                out.extend(found.to_ne_bytes());
            }
            opcode::RELEASE | opcode::FLUSH => {}
            _ => return Err(ENOSYS),
        }
        Ok(out)
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Vec<u8>, i32> {
        let mut range = self.range.lock();
        let hit = |range: &std::ops::Range<u64>| {
            range.start < offset + u64::from(bytes) && offset < range.end
        };
        let hangs = |errno: &AtomicI32| errno.load(Ordering::SeqCst) == HANGS;
        if hangs(&self.errno) && hit(&range) {
            self.hung.fetch_add(1, Ordering::SeqCst);
            let hangs = |_: &mut std::ops::Range<u64>| hangs(&self.errno);
            self.changed.wait_while_for(&mut range, hangs, LONGEST);
        }
        let (errno, hit) = (self.errno.load(Ordering::SeqCst), hit(&range));
        drop(range);
        let counts = |left: u64| left.checked_sub(1);
        if errno > 0 && hit {
            let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
            if self.left.fetch_update(set, fetch, counts).is_ok() {
                self.failed.fetch_add(1, Ordering::SeqCst);
                return Err(errno);
            }
        }
        let mut content = vec![0; bytes as usize];
        let mut done = 0;
        while done < content.len() {
            match self
                .file
                .read_at(&mut content[done..], offset + done as u64)
            {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(error.raw_os_error().unwrap_or(EIO)),
            }
        }
        content.truncate(done);
        self.served.fetch_add(1, Ordering::SeqCst);
        Ok(content)
    }

    /// Where the next page of zeros, or of something else, is: zeros are holes here, whatever they are
    /// below, so that whoever looks for data need not read it all.
    fn seek(&self, offset: u64, hole: bool) -> Result<u64, i32> {
        const BLOCK: u64 = 4096;
        let end = self.file.metadata().map_err(|_| EIO)?.len();
        let mut at = offset;
        while at < end {
            let mut block = [0; BLOCK as usize];
            let whole = (BLOCK - at % BLOCK).min(end - at) as usize;
            let block = &mut block[..whole];
            self.file.read_exact_at(block, at).map_err(|_| EIO)?;
            if block.iter().all(|&byte| byte == 0) == hole {
                return Ok(at);
            }
            at += whole as u64;
        }
        if hole && offset < end {
            Ok(end)
        } else {
            Err(ENXIO)
        }
    }

    fn attributes(&self, node: u64) -> Result<Vec<u8>, i32> {
        let file = self.file.metadata().map_err(|_| EIO)?;
        let (mode, size) = match node {
            ROOT => (0o040_755u32, 0),
            _ => (0o100_644, file.len()),
        };
        let mut out = Vec::with_capacity(88);
        let times = [file.atime(), file.mtime(), file.ctime()];
        let ns = [file.atime_nsec(), file.mtime_nsec(), file.ctime_nsec()];
        for long in [node, size, size.div_ceil(512)] {
            out.extend(long.to_ne_bytes());
        }
        out.extend(times.iter().flat_map(|time| time.to_ne_bytes()));
        out.extend(ns.iter().flat_map(|&time| (time as u32).to_ne_bytes()));
        let (links, user, group, device, block, flags) = (1u32, 0u32, 0u32, 0u32, 4096u32, 0u32);
        for word in [mode, links, user, group, device, block, flags] {
            out.extend(word.to_ne_bytes());
        }
        Ok(out)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fail_as_long_as_they_are_to() {
        let _ends = crate::must_end();
        let dir = std::env::temp_dir().join(format!("paguro-flaky-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("there")).unwrap();
        let below = dir.join("below");
        std::fs::write(&below, vec![7; 300 << 10]).unwrap();
        if let Some(flaky) = Flaky::mount(&dir.join("there"), &below) {
            flaky.fail();
            let open = File::open(flaky.path()).unwrap();
            let mut bytes = [0; 4096];
            let error = open.read_exact_at(&mut bytes, 8192).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EIO));
            // Reading ahead meets it first, and nobody is told of that.
            flaky.fail_some(100 << 10..104 << 10, 2);
            assert!(open.read_exact_at(&mut bytes, 100 << 10).is_err());
            open.read_exact_at(&mut bytes, 100 << 10).unwrap();
            assert_eq!(bytes, [7; 4096]);
            assert_eq!(open.metadata().unwrap().len(), 300 << 10);
            assert!(flaky.failed() >= 2 && flaky.served() > 0);
            flaky.hang(200 << 10..204 << 10);
            std::thread::scope(|scope| {
                let read = scope.spawn(|| open.read_exact_at(&mut bytes, 200 << 10));
                crate::wait_until("a read that hangs", || flaky.hung() > 0);
                assert!(!read.is_finished());
                flaky.mend();
                read.join().unwrap().unwrap();
            });
            assert_eq!(bytes, [7; 4096]);
            drop(open);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
