//! What became of signals before this program began.

use rustix::process::Signal;

use crate::held;

/// Whether this process ignores a signal: because it was started so, unless it has begun to itself.
pub fn is_ignored(signal: Signal) -> bool {
    let status = held::text("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    ignored.is_some_and(|set| set >> (signal.as_raw() - 1) & 1 == 1)
}
