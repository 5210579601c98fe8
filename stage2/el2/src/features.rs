//! What this CPU can do.

use core::arch::asm;
use paguro_stage2::el2::El2;
use paguro_stage2::errata;

#[derive(Debug)]
pub struct Features {
    pub pa_bits: u8,
    pub pa_range: u8,
    pub vmid_16_bits: bool,
    pub hardware_dirty: bool,
    /// FEAT_BBM level.
    pub block_change: u8,
    pub ttl: bool,
    /// Its walker of stage 1 has to be kept still.
    pub speculative_at: bool,
}

pub fn read() -> Features {
    let (mmfr0, mmfr1, mmfr2, midr): (u64, u64, u64, u64);
    // SAFETY: reads identification registers.
    unsafe {
        asm!("mrs {}, id_aa64mmfr0_el1", "mrs {}, id_aa64mmfr1_el1", "mrs {}, id_aa64mmfr2_el1",
            "mrs {}, midr_el1", out(reg) mmfr0, out(reg) mmfr1, out(reg) mmfr2, out(reg) midr);
    }
    let pa_range = (mmfr0 & 0xf).min(5) as u8;
    Features {
        pa_bits: [32, 36, 40, 42, 44, 48][usize::from(pa_range)],
        pa_range,
        vmid_16_bits: mmfr1 >> 4 & 0xf == 2,
        hardware_dirty: mmfr1 & 0xf >= 2,
        block_change: (mmfr2 >> 52 & 0xf).min(2) as u8,
        ttl: mmfr2 >> 48 & 0xf != 0,
        speculative_at: errata::speculative_at(midr),
    }
}

impl Features {
    pub fn el2(&self) -> El2 {
        if self.speculative_at {
            El2::new(self.ttl).without_stage_1_walks()
        } else {
            El2::new(self.ttl)
        }
    }
}
