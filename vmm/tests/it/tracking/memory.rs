//! What the host says of its memory.

/// A line of the mapping at an address, of `/proc/self/smaps`: `AnonHugePages`, `VmFlags`.
pub fn smaps(address: usize, field: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in text.lines() {
        let head = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = head.split_once('-')
            && let (Ok(start), Ok(end)) = (
                usize::from_str_radix(start, 16),
                usize::from_str_radix(end, 16),
            )
        {
            inside = (start..end).contains(&address);
        }
        if inside && let Some(value) = line.strip_prefix(field) {
            return value.trim_start_matches(':').trim().to_owned();
        }
    }
    String::new()
}

/// Whether a part of the mapping at an address is in huge pages.
pub fn is_huge(address: usize) -> bool {
    ["AnonHugePages", "ShmemPmdMapped"]
        .iter()
        .any(|field| !smaps(address, field).starts_with("0 "))
}

/// Whether a userfaultfd protects the mapping at an address.
pub fn is_watched(address: usize) -> bool {
    let flags = smaps(address, "VmFlags");
    flags.split(' ').any(|flag| flag == "uw")
}
