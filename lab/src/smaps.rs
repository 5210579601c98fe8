//! What the kernel says about the memory of a child.

use std::io;
use std::ops::Range;

use crate::host::field_kib;

/// About the RAM blocks of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamMemory {
    /// Bytes that are present.
    pub resident_bytes: u64,
    /// Bytes of them in huge pages that the kernel joined, anonymous or shared.
    pub huge_bytes: u64,
    /// Whether any part is registered with a userfaultfd.
    pub is_registered: bool,
}

/// About a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Bytes resident now.
    pub resident_bytes: u64,
    /// Bytes resident at most so far.
    pub peak_bytes: u64,
    /// Bytes of page tables.
    pub page_table_bytes: u64,
}

/// Reads `/proc/PID/smaps`, as far as it concerns these host addresses.
pub fn ram(pid: u32, blocks: &[Range<u64>]) -> io::Result<RamMemory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(of_smaps(&text, blocks))
}

/// Reads `/proc/PID/status`.
pub fn process(pid: u32) -> io::Result<ProcessMemory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name| field_kib(&text, name).unwrap_or(0) << 10;
    Ok(ProcessMemory {
        resident_bytes: field("VmRSS:"),
        peak_bytes: field("VmHWM:"),
        page_table_bytes: field("VmPTE:"),
    })
}

fn of_smaps(text: &str, blocks: &[Range<u64>]) -> RamMemory {
    let mut found = RamMemory::default();
    let mut inside = false;
    for line in text.lines() {
        if let Some(range) = heading(line) {
            inside = blocks
                .iter()
                .any(|block| block.start < range.end && range.start < block.end);
        } else if inside && let Some((name, value)) = line.split_once(':') {
            let bytes = || field_kib(value, "").unwrap_or(0) << 10;
            match name {
                "Rss" | "Private_Hugetlb" | "Shared_Hugetlb" => found.resident_bytes += bytes(),
                "AnonHugePages" | "ShmemPmdMapped" => found.huge_bytes += bytes(),
                "VmFlags" => {
                    let registered = |flag| matches!(flag, "um" | "uw" | "ui");
                    found.is_registered |= value.split_whitespace().any(registered);
                }
                _ => {}
            }
        }
    }
    found
}

/// `7f00-7f80 rw-p ...`
fn heading(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let parse = |text| u64::from_str_radix(text, 16).ok();
    Some(parse(start)?..parse(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0
Rss:                   8 kB
AnonHugePages:         4 kB
VmFlags: rd wr mr mw me ac
3000-4000 rw-s 00000000 00:01 7 /memfd:paguro.ram (deleted)
Rss:                   4 kB
ShmemPmdMapped:        4 kB
VmFlags: rd wr sh uw
";

    #[test]
    fn only_the_mappings_of_the_blocks_count() {
        let all = std::iter::once(0x1000..0x4000).collect::<Vec<_>>();
        let found = of_smaps(SMAPS, &all);
        assert_eq!(
            (found.resident_bytes, found.huge_bytes),
            (12 << 10, 8 << 10)
        );
        assert!(found.is_registered);
        let first = std::iter::once(0x1000..0x3000).collect::<Vec<_>>();
        let found = of_smaps(SMAPS, &first);
        assert_eq!((found.resident_bytes, found.huge_bytes), (8 << 10, 4 << 10));
        assert!(!found.is_registered);
    }
}
