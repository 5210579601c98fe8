//! What the host lets this process have. Asked when it matters: all of it can be changed while it
//! runs.
//!
//! Memory is bounded by more than one thing at a time, and whoever goes beyond some of them is not
//! refused but killed: the cgroup of the process *and each above it*, of version 1 or 2 or some of
//! both, with a hard limit (`memory.max`, `memory.limit_in_bytes`) and one beyond which everything
//! becomes slow (`memory.high`); limits of address space and of data; what the host has promised
//! where it does not promise more than it has; and what is free at all. A cgroup's usage counts the
//! files that its members have read and written. What is clean of them goes when memory is needed,
//! so it counts as free.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::held;

/// Mappings that a process may have where the host does not say: the kernel's default.
const DEFAULT_MAPPINGS: usize = 65_530;
/// From here on a number of a cgroup of version 1 means that there is no limit.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Where the host says what this process may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    root: PathBuf,
}

/// What bounds memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The memory that the host has.
    Host,
    /// What the host may promise (`vm.overcommit_memory` 2).
    Commit,
    /// A cgroup of this process or one above it.
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// What all in it may have together.
        limit_bytes: u64,
    },
    /// `RLIMIT_AS`.
    AddressSpace {
        /// Bytes.
        limit_bytes: u64,
    },
    /// `RLIMIT_DATA`.
    Data {
        /// Bytes.
        limit_bytes: u64,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| bytes >> 20;
        match self {
            Self::Host => f.write_str("the free memory of the host"),
            Self::Commit => f.write_str("the memory that the host may promise"),
            Self::Cgroup { path, limit_bytes } => {
                let (path, mib) = (path.display(), mib(limit_bytes));
                write!(f, "the {mib} MiB of cgroup {path}")
            }
            Self::AddressSpace { limit_bytes } => {
                write!(f, "{} MiB of address space (ulimit -v)", mib(limit_bytes))
            }
            Self::Data { limit_bytes } => write!(f, "{} MiB of data (ulimit -d)", mib(limit_bytes)),
        }
    }
}

/// Memory that may be taken before a bound is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// What is met then.
    pub bound: Bound,
}

impl Limits {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self::under("/")
    }

    /// Those that a directory tells of in which `proc` and the mounts of cgroups are: for tests.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Mappings that a process may have.
    pub fn most_mappings(&self) -> usize {
        self.read("proc/sys/vm/max_map_count")
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(DEFAULT_MAPPINGS)
    }

    /// Bytes that this process has of memory that no file stands behind, in RAM or in swap.
    pub fn anonymous_bytes(&self) -> u64 {
        let status = self.read("proc/self/status").unwrap_or_default();
        ["RssAnon", "RssShmem", "VmSwap"]
            .iter()
            .filter_map(|name| kibibytes(&status, name))
            .sum()
    }

    /// What of memory is free, for everything that bounds it. What the host does not tell bounds
    /// nothing.
    pub fn memory(&self) -> Vec<Free> {
        let mut all = self.cgroups();
        all.extend(self.resources());
        let meminfo = self.read("proc/meminfo").unwrap_or_default();
        let number = |name| kibibytes(&meminfo, name);
        // Before Linux 3.14 it was the reader's to guess.
        let available = number("MemAvailable")
            .or_else(|| Some(number("MemFree")? + number("Cached").unwrap_or(0)));
        all.extend(available.map(|bytes| Free {
            bytes,
            bound: Bound::Host,
        }));
        let overcommit = self.read("proc/sys/vm/overcommit_memory");
        if overcommit.is_some_and(|text| text.trim() == "2")
            && let (Some(limit), Some(promised)) = (number("CommitLimit"), number("Committed_AS"))
        {
            all.push(Free {
                bytes: limit.saturating_sub(promised),
                bound: Bound::Commit,
            });
        }
        all
    }

    fn resources(&self) -> Vec<Free> {
        let limits = self.read("proc/self/limits").unwrap_or_default();
        let status = self.read("proc/self/status").unwrap_or_default();
        let limit = |name: &str| -> Option<u64> {
            let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let mut all = Vec::new();
        if let Some(limit_bytes) = limit("Max address space") {
            let used = kibibytes(&status, "VmSize").unwrap_or(0);
            all.push(Free {
                bytes: limit_bytes.saturating_sub(used),
                bound: Bound::AddressSpace { limit_bytes },
            });
        }
        if let Some(limit_bytes) = limit("Max data size") {
            let used = kibibytes(&status, "VmData").unwrap_or(0);
            all.push(Free {
                bytes: limit_bytes.saturating_sub(used),
                bound: Bound::Data { limit_bytes },
            });
        }
        all
    }

    /// Of the cgroup that this process is in, and of all above it that can be seen from here.
    fn cgroups(&self) -> Vec<Free> {
        let (Some(own), Some(mounts)) = (
            self.read("proc/self/cgroup"),
            self.read("proc/self/mountinfo"),
        ) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for mount in mounts.lines().filter_map(Mount::parse) {
            let Some(path) = own.lines().find_map(|line| mount.version.own(line)) else {
                continue;
            };
            // Seen from a container, the mount begins below the root of all cgroups, and what is
            // above it cannot be seen.
            let inside = Path::new(path).strip_prefix(&mount.root);
            let inside = inside.unwrap_or(Path::new(""));
            let climbs = inside.components().any(|part| part == Component::ParentDir);
            let inside = if climbs { Path::new("") } else { inside };
            for inside in inside.ancestors() {
                // Joined to nothing it would end in a slash.
                let path = if inside.as_os_str().is_empty() {
                    mount.point.clone()
                } else {
                    mount.point.join(inside)
                };
                all.extend(self.cgroup(path, mount.version));
            }
        }
        all
    }

    fn cgroup(&self, path: PathBuf, version: Version) -> Option<Free> {
        let read = |name: &str| self.read(path.join(name));
        let number = |name: &str| -> Option<u64> { read(name)?.trim().parse().ok() };
        // All of them are looked at, whatever the first one says: they are held open from then on, and a
        // limit may come later.
        let used = number(match version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        });
        let stat = read("memory.stat").unwrap_or_default();
        let (limit_bytes, used, prefix) = match version {
            Version::One => (
                number("memory.limit_in_bytes").filter(|&limit| limit < UNLIMITED_BYTES)?,
                used?,
                "total_",
            ),
            Version::Two => (
                // Without a limit they say "max", which is no number.
                match (number("memory.max"), number("memory.high")) {
                    (Some(max), Some(high)) => max.min(high),
                    (max, high) => max.or(high)?,
                },
                used?,
                "",
            ),
        };
        let of_files = |name: &str| -> u64 {
            let value = stat
                .lines()
                .find_map(|line| line.strip_prefix(prefix)?.strip_prefix(name));
            value
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0)
        };
        let (dirty, written) = match version {
            Version::One => ("dirty ", "writeback "),
            Version::Two => ("file_dirty ", "file_writeback "),
        };
        let files = of_files("inactive_file ") + of_files("active_file ");
        let clean = files.saturating_sub(of_files(dirty) + of_files(written));
        Some(Free {
            bytes: limit_bytes.saturating_sub(used.saturating_sub(clean)),
            bound: Bound::Cgroup { path, limit_bytes },
        })
    }

    /// A file by its path from the root, which may be absolute.
    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref();
        let path = self.root.join(path.strip_prefix("/").unwrap_or(path));
        if self.root == Path::new("/") {
            held::text(path).ok()
        } else {
            std::fs::read_to_string(path).ok()
        }
    }
}

/// A hierarchy of cgroups that can limit memory.
struct Mount {
    version: Version,
    /// The cgroup that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        let mut place = place.split(' ').skip(3);
        Some(Self {
            version,
            root: unescaped(place.next()?),
            point: unescaped(place.next()?),
        })
    }
}

impl Version {
    /// The cgroup of a line of `/proc/self/cgroup`, if it is of this hierarchy.
    fn own(self, line: &str) -> Option<&str> {
        let mut parts = line.splitn(3, ':');
        let (number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match self {
            Self::One => names.split(',').any(|name| name == "memory"),
            Self::Two => number == "0" && names.is_empty(),
        };
        found.then_some(path)
    }
}

/// Blanks and the like are in octal there.
fn unescaped(text: &str) -> PathBuf {
    let mut whole = String::new();
    let mut parts = text.split('\\');
    whole.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                whole.push(char::from(code));
                whole.push_str(&part[3..]);
            }
            None => whole.push_str(part),
        }
    }
    whole.into()
}

/// The value of a line `NAME: NUMBER kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number: u64 = lines.next()?.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}
