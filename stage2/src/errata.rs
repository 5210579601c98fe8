//! Which CPUs need what the architecture does not ask for.

/// Whether the CPU with this MIDR_EL1 may fill a TLB by speculating on an address translation while the
/// registers of two VMs are mixed: Arm's errata 1319367 and 1319537 (Cortex-A72 and A57, all of them),
/// 1530923 (Cortex-A55 up to r2p0, and the Kryo 4xx Silver of that make), 1165522 (Cortex-A76 up to
/// r2p0).
pub const fn speculative_at(midr_el1: u64) -> bool {
    const ARM: u64 = 0x41;
    const QUALCOMM: u64 = 0x51;
    let implementer = midr_el1 >> 24 & 0xff;
    let part = midr_el1 >> 4 & 0xfff;
    // Variant and revision: r2p0 is 0x20.
    let version = (midr_el1 >> 20 & 0xf) << 4 | midr_el1 & 0xf;
    match (implementer, part) {
        (ARM, 0xd07 | 0xd08) => true,
        (ARM, 0xd05 | 0xd0b) => version <= 0x20,
        (QUALCOMM, 0x805) => version == 0xde,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::speculative_at;

    #[test]
    fn cores_are_told_by_part_and_version() {
        // Cortex-A57 r1p0 and A72 r0p3; A55 and A76 at r2p0 and behind it; Neoverse N1; Kryo.
        let rows = [
            (0x411f_d070, true),
            (0x410f_d083, true),
            (0x412f_d050, true),
            (0x412f_d051, false),
            (0x412f_d0b0, true),
            (0x413f_d0b0, false),
            (0x413f_d0c1, false),
            (0x51df_805e, true),
            (0x51df_805f, false),
        ];
        for (midr, expected) in rows {
            assert_eq!(speculative_at(midr), expected, "{midr:#x}");
        }
    }
}
