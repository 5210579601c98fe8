//! Whether the kernel may merge memory of this process with equal pages of others (KSM).
//!
//! Merging replaces a page, and drops a userfaultfd's write-protection of it without an event. See the
//! kernel's `Documentation/admin-guide/mm/ksm.rst`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

/// Whether pages of a range of addresses may be merged.
pub(crate) fn may_merge(range: Range<usize>) -> io::Result<bool> {
    // Cheap, where the kernel tells (since Linux 6.14): nothing of this process may be.
    let process = std::fs::read_to_string("/proc/self/ksm_stat").unwrap_or_default();
    if process.lines().any(|line| line == "ksm_mergeable: no") {
        return Ok(false);
    }
    in_smaps(BufReader::new(File::open("/proc/self/smaps")?), &range)
}

/// Looks for the flag "mg" of mappings that overlap the range.
fn in_smaps(smaps: impl BufRead, range: &Range<usize>) -> io::Result<bool> {
    let mut inside = false;
    for line in smaps.lines() {
        let line = line?;
        if let Some(mapped) = addresses(&line) {
            inside = mapped.start < range.end && range.start < mapped.end;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && inside
            && flags.split_whitespace().any(|flag| flag == "mg")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The addresses in the first line of a mapping.
fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
VmFlags: rd wr mr mw me dc de sd
7f0000200000-7f0000400000 rw-p 00000000 00:00 0
Size:               2048 kB
VmFlags: rd wr mr mw me ac mg sd
";

    #[test]
    fn only_mappings_of_the_range_count() {
        let asked = |range| in_smaps(SMAPS.as_bytes(), &range).unwrap();
        assert!(!asked(0x7f00_0000_0000..0x7f00_0020_0000));
        assert!(asked(0x7f00_0000_0000..0x7f00_0020_1000));
        assert!(asked(0x7f00_003f_f000..0x7f00_0040_0000));
        assert!(!asked(0x7f00_0040_0000..0x7f00_0050_0000));
    }
}
