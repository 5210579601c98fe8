//! What the kernel says of the mappings of this process.
//!
//! See the kernel's `Documentation/filesystems/proc.rst`. Reading it walks the page tables of all that
//! lies below the range that is asked for, which takes milliseconds in a large process: for the
//! beginning of something, never for a page.

use std::io::{self, BufRead};
use std::ops::Range;

use crate::held;

/// A mapping, or what of it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) addresses: Range<usize>,
    /// Bytes in a page of it.
    pub(crate) page_bytes: usize,
    /// Whether pages may be merged with equal ones of others (KSM).
    pub(crate) is_mergeable: bool,
}

/// The mappings that overlap a range, ascending.
///
/// # Errors
///
/// `/proc` is not there.
pub(crate) fn areas(range: &Range<usize>) -> io::Result<Vec<Area>> {
    parse(held::reader(held::SMAPS)?, range)
}

/// Whether pages of a range of addresses may be merged. Merging replaces a page, and drops a
/// userfaultfd's write-protection of it without an event; see the kernel's
/// `Documentation/admin-guide/mm/ksm.rst`.
///
/// # Errors
///
/// As [`areas`].
pub(crate) fn may_merge(range: Range<usize>) -> io::Result<bool> {
    // Cheap, where the kernel tells (since Linux 6.14): nothing of this process may be.
    let process = held::text(held::KSM_STAT).unwrap_or_default();
    if process.lines().any(|line| line == "ksm_mergeable: no") {
        return Ok(false);
    }
    Ok(areas(&range)?.iter().any(|area| area.is_mergeable))
}

fn parse(smaps: impl BufRead, range: &Range<usize>) -> io::Result<Vec<Area>> {
    let mut found: Vec<Area> = Vec::new();
    let mut inside = false;
    for line in smaps.lines() {
        let line = line?;
        if let Some(mapped) = addresses(&line) {
            if mapped.start >= range.end {
                break;
            }
            inside = range.start < mapped.end;
            if inside {
                found.push(Area {
                    addresses: mapped,
                    page_bytes: 0,
                    is_mergeable: false,
                });
            }
        } else if let Some(area) = found.last_mut().filter(|_| inside) {
            if let Some(size) = line.strip_prefix("KernelPageSize:") {
                let kibibytes = size.split_whitespace().next();
                let kibibytes = kibibytes.and_then(|number| number.parse::<usize>().ok());
                area.page_bytes = kibibytes.unwrap_or(0) << 10;
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                area.is_mergeable = flags.split_whitespace().any(|flag| flag == "mg");
            }
        }
    }
    Ok(found)
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
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me dc de sd
7f0000200000-7f0000400000 rw-p 00000000 00:00 0
Size:               2048 kB
KernelPageSize:     2048 kB
VmFlags: rd wr mr mw me ac mg sd
";

    fn asked(range: Range<usize>) -> Vec<Area> {
        parse(SMAPS.as_bytes(), &range).unwrap()
    }

    #[test]
    fn only_mappings_of_the_range_count() {
        let merges = |range| asked(range).iter().any(|area| area.is_mergeable);
        assert!(!merges(0x7f00_0000_0000..0x7f00_0020_0000));
        assert!(merges(0x7f00_0000_0000..0x7f00_0020_1000));
        assert!(merges(0x7f00_003f_f000..0x7f00_0040_0000));
        assert!(!merges(0x7f00_0040_0000..0x7f00_0050_0000));
    }

    #[test]
    fn each_mapping_says_how_large_its_pages_are() {
        let sizes = |range| -> Vec<_> { asked(range).iter().map(|a| a.page_bytes).collect() };
        assert_eq!(sizes(0..usize::MAX), [4 << 10, 2 << 20]);
        assert_eq!(sizes(0x7f00_0030_0000..0x7f00_0031_0000), [2 << 20]);
        assert!(sizes(0..0x7f00_0000_0000).is_empty());
    }
}
