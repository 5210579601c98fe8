//! What the host lets this process have. Asked when it matters: all of it can be changed while it
//! runs.

/// Mappings that a process may have where the host does not say: the kernel's default.
const DEFAULT_MAPPINGS: usize = 65_530;

/// Mappings that a process may have.
pub(crate) fn most_mappings() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT_MAPPINGS)
}
