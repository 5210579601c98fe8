//! The instructions: TLB invalidation, barriers, and reading a fault, for a hypervisor at EL2.

use crate::cpu::Cpu;
use crate::fault::Syndrome;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

const TGE: u64 = 1 << 27;
/// TTL of a leaf level with the 4 KiB granule, bits 47:44 of the operand.
const TTL_SHIFT: u32 = 44;
const TTL_4_KIB: u64 = 0b01 << 2;

/// All CPUs of the inner shareable domain, for one VM.
///
/// Works with and without FEAT_VHE. Make it, make the tables with it, then [`bind`](Self::bind) it to
/// the VTTBR_EL2 under which the VM runs; before that there is nothing that a TLB could hold.
pub struct El2 {
    vttbr: AtomicU64,
    has_ttl: bool,
}

impl El2 {
    /// `has_ttl`: all CPUs have FEAT_TTL (ID_AA64MMFR2_EL1.TTL), so a level may be named.
    pub const fn new(has_ttl: bool) -> Self {
        Self {
            vttbr: AtomicU64::new(0),
            has_ttl,
        }
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
        let switched = old_vttbr != vttbr || hcr & TGE != 0;
        if switched {
            // SAFETY: no guest runs on this CPU until the old values are back; EL2 itself does not
            // translate through stage 2.
            unsafe {
                asm!("msr hcr_el2, {hcr}", "msr vttbr_el2, {vttbr}", "isb",
                    hcr = in(reg) hcr & !TGE, vttbr = in(reg) vttbr, options(nostack));
            }
        }
        invalidate();
        if switched {
            // SAFETY: puts back what was read above.
            unsafe {
                asm!("msr vttbr_el2, {vttbr}", "msr hcr_el2, {hcr}", "isb",
                    hcr = in(reg) hcr, vttbr = in(reg) old_vttbr, options(nostack));
            }
        }
        // SAFETY: puts back the mask read above.
        unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack)) };
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
