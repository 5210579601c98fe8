//! The instructions: TLB invalidation, barriers, and reading a fault, for a hypervisor at EL2.

use crate::cpu::Cpu;
use crate::fault::Syndrome;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// HCR_EL2.
const TGE: u64 = 1 << 27;
const E2H: u64 = 1 << 34;
/// TCR_EL1: no walks by TTBR0_EL1, TTBR1_EL1.
const EPD: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1: stage 1 is on.
const M: u64 = 1;
/// TTL of a leaf level with the 4 KiB granule, bits 47:44 of the operand.
const TTL_SHIFT: u32 = 44;
const TTL_4_KIB: u64 = 0b01 << 2;

/// All CPUs of the inner shareable domain, for one VM.
///
/// Works with and without FEAT_VHE. Make it, make the tables with it, then [`bind`](Self::bind) it to
/// the VTTBR_EL2 under which the VM runs; before that there is nothing that a TLB could hold.
///
/// Some CPUs walk for an address translation that they only speculate on, with registers that are half
/// one VM's and half another's while these are exchanged here, and keep what they find:
/// [`errata::speculative_at`](crate::errata::speculative_at) tells which. Ask it on every CPU, and make
/// this [`without_stage_1_walks`](Self::without_stage_1_walks) if any is one of them.
pub struct El2 {
    vttbr: AtomicU64,
    has_ttl: bool,
    stops_walks: bool,
}

impl El2 {
    /// `has_ttl`: all CPUs have FEAT_TTL (ID_AA64MMFR2_EL1.TTL), so a level may be named.
    pub const fn new(has_ttl: bool) -> Self {
        Self {
            vttbr: AtomicU64::new(0),
            has_ttl,
            stops_walks: false,
        }
    }

    /// Keeps the walker of stage 1 still while the registers of another VM are in place.
    pub const fn without_stage_1_walks(mut self) -> Self {
        self.stops_walks = true;
        self
    }

    /// Says under which VTTBR_EL2 ([`Stage2::vttbr`](crate::Stage2::vttbr)) the VM runs.
    pub fn bind(&self, vttbr: u64) {
        self.vttbr.store(vttbr, Ordering::Release);
    }

    fn operand(&self, ipa: u64, level: Option<u8>) -> u64 {
        let ttl = match level {
            Some(level) if self.has_ttl => (TTL_4_KIB | u64::from(level)) << TTL_SHIFT,
            _ => 0,
        };
        ipa >> 12 | ttl
    }

    /// Runs `invalidate` with the VM's VMID in place and interrupts masked: the operations act on the
    /// VMID in VTTBR_EL2, and under VHE only while HCR_EL2.TGE is clear.
    fn with_vmid(&self, invalidate: impl FnOnce()) {
        let vttbr = self.vttbr.load(Ordering::Acquire);
        if vttbr == 0 {
            return;
        }
        let (daif, old_vttbr, hcr): (u64, u64, u64);
        // SAFETY: reads registers that EL2 may read, and masks exceptions, which is undone below.
        unsafe {
            asm!("mrs {daif}, daif", "msr daifset, #0xf", "mrs {vttbr}, vttbr_el2", "mrs {hcr}, hcr_el2",
                daif = out(reg) daif, vttbr = out(reg) old_vttbr, hcr = out(reg) hcr, options(nostack));
        }
        let is_other = old_vttbr != vttbr || hcr & TGE != 0;
        if !is_other {
            invalidate();
        } else {
            // A walk that began before must not end with the registers of another VM.
            // SAFETY: a barrier.
            unsafe { asm!("dsb nsh", options(nostack)) };
            let stage_1 = self.stops_walks.then(|| stop_walks(hcr & E2H != 0));
            // SAFETY: no guest runs on this CPU until the old values are back; EL2 itself does not
            // translate through stage 2. Stage 2 is in place before its regime is.
            unsafe {
                asm!("msr vttbr_el2, {vttbr}", "isb", "msr hcr_el2, {hcr}", "isb",
                    hcr = in(reg) hcr & !TGE, vttbr = in(reg) vttbr, options(nostack));
            }
            invalidate();
            // SAFETY: puts back what was read above.
            unsafe {
                asm!("msr hcr_el2, {hcr}", "isb", "msr vttbr_el2, {vttbr}", "isb",
                    hcr = in(reg) hcr, vttbr = in(reg) old_vttbr, options(nostack));
            }
            if let Some(stage_1) = stage_1 {
                let_walk(hcr & E2H != 0, stage_1);
            }
        }
        // SAFETY: puts back the mask read above.
        unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack)) };
    }
}

/// TCR_EL1 and SCTLR_EL1 of a guest.
type Stage1 = (u64, u64);

/// Nothing is walked for by the guest's stage 1 any more, nor taken for an address of stage 2 because
/// stage 1 is off. Returns what was there.
fn stop_walks(e2h: bool) -> Stage1 {
    let (tcr, sctlr): (u64, u64);
    // SAFETY: registers of the guest's, which does not run on this CPU until they are put back. With E2H
    // their plain names are EL2's own, and these encodings are TCR_EL12 and SCTLR_EL12.
    unsafe {
        if e2h {
            asm!("mrs {tcr}, s3_5_c2_c0_2", "mrs {sctlr}, s3_5_c1_c0_0",
                "orr {scratch}, {tcr}, {epd}", "msr s3_5_c2_c0_2, {scratch}", "isb",
                "orr {scratch}, {sctlr}, {m}", "msr s3_5_c1_c0_0, {scratch}", "isb",
                tcr = out(reg) tcr, sctlr = out(reg) sctlr, scratch = out(reg) _,
                epd = in(reg) EPD, m = in(reg) M, options(nostack));
        } else {
            asm!("mrs {tcr}, tcr_el1", "mrs {sctlr}, sctlr_el1",
                "orr {scratch}, {tcr}, {epd}", "msr tcr_el1, {scratch}", "isb",
                "orr {scratch}, {sctlr}, {m}", "msr sctlr_el1, {scratch}", "isb",
                tcr = out(reg) tcr, sctlr = out(reg) sctlr, scratch = out(reg) _,
                epd = in(reg) EPD, m = in(reg) M, options(nostack));
        }
    }
    (tcr, sctlr)
}

/// Puts back what [`stop_walks`] returned, in the opposite order.
fn let_walk(e2h: bool, (tcr, sctlr): Stage1) {
    // SAFETY: as above; these are the guest's own values.
    unsafe {
        if e2h {
            asm!("msr s3_5_c1_c0_0, {sctlr}", "isb", "msr s3_5_c2_c0_2, {tcr}", "isb",
                tcr = in(reg) tcr, sctlr = in(reg) sctlr, options(nostack));
        } else {
            asm!("msr sctlr_el1, {sctlr}", "isb", "msr tcr_el1, {tcr}", "isb",
                tcr = in(reg) tcr, sctlr = in(reg) sctlr, options(nostack));
        }
    }
}

// SAFETY: each operation follows the sequence that the trait asks for: a barrier for the stores, the
// invalidation, a barrier that waits for its completion in the domain concerned, and an `isb`.
unsafe impl Cpu for El2 {
    fn invalidate_vm(&self) {
        // SAFETY: dropping TLB entries changes no translation.
        self.with_vmid(|| unsafe {
            asm!(
                "dsb ishst",
                "tlbi vmalls12e1is",
                "dsb ish",
                "isb",
                options(nostack)
            );
        });
    }

    fn invalidate_ipa(&self, ipa: u64, level: Option<u8>) {
        let operand = self.operand(ipa, level);
        // SAFETY: as above. The second operation is for entries that combine both stages; it must not
        // overtake the first, or a walk in between could combine anew what the first has yet to drop.
        self.with_vmid(|| unsafe {
            asm!("dsb ishst", "tlbi ipas2e1is, {}", "dsb ish", "tlbi vmalle1is", "dsb ish", "isb",
                in(reg) operand, options(nostack));
        });
    }

    fn invalidate_ipa_here(&self, ipa: u64, level: Option<u8>) {
        let operand = self.operand(ipa, level);
        // SAFETY: as above, for this CPU only. The store barrier is the inner shareable one: another
        // CPU's walker may meet the new entry as soon as that vCPU faults on the old one.
        self.with_vmid(|| unsafe {
            asm!("dsb ishst", "tlbi ipas2e1, {}", "dsb nsh", "tlbi vmalle1", "dsb nsh", "isb",
                in(reg) operand, options(nostack));
        });
    }

    fn publish(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb ishst", options(nostack)) };
    }
}

/// What stopped the guest on this CPU. To be called after it left, before its registers are replaced:
/// the guest's EL1 state, HCR_EL2 and VTTBR_EL2 must still be in place.
pub fn read_syndrome() -> Syndrome {
    let (esr, hpfar, far): (u64, u64, u64);
    // SAFETY: reads registers that EL2 may read.
    unsafe {
        asm!("mrs {}, esr_el2", "mrs {}, hpfar_el2", "mrs {}, far_el2",
            out(reg) esr, out(reg) hpfar, out(reg) far, options(nomem, nostack));
    }
    Syndrome::decode(esr, hpfar, far, translate_stage_1)
}

/// The guest physical address of a virtual one, by the guest's own tables.
fn translate_stage_1(address: u64) -> Option<u64> {
    let par: u64;
    // SAFETY: the result register is the guest's, and is put back; the walk only reads, or sets access
    // flags that the guest let the hardware manage.
    unsafe {
        asm!("mrs {saved}, par_el1", "at s1e1r, {address}", "isb", "mrs {par}, par_el1", "msr par_el1, {saved}",
            saved = out(reg) _, par = out(reg) par, address = in(reg) address, options(nostack));
    }
    // Bit 0 says that the walk failed; the address is in bits 51:12.
    (par & 1 == 0).then_some(par & 0x000f_ffff_ffff_f000 | address & 0xfff)
}
