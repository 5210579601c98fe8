//! The registers that a vCPU starts with.

use crate::layout::{
    GDT_GPA, PAGE_BYTES, PARAMS_GPA, PML4_GPA, PROGRAM_GPA, STACK_GUARD_BYTES, TSS_GPA, TSS_LIMIT,
    stack_of,
};

/// What a vCPU starts with, in the terms of KVM_SET_REGS and KVM_SET_SREGS. Registers that are
/// not named here are 0, segments not named are unusable; the IDT limit is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Entry of the program.
    pub rip: u64,
    /// As if the entry had been called: 8 below a multiple of 16.
    pub rsp: u64,
    /// Index of the vCPU.
    pub rdi: u64,
    /// Address of the workload parameters.
    pub rsi: u64,
    /// Interrupts off: nothing could handle one.
    pub rflags: u64,
    /// Protection, paging, write-protect, numeric errors.
    pub cr0: u64,
    /// Address of the PML4.
    pub cr3: u64,
    /// PAE, global pages, SSE.
    pub cr4: u64,
    /// Long mode, no-execute, syscall.
    pub efer: u64,
    /// Code: 64-bit, ring 3.
    pub cs: Segment,
    /// Data for ss, ds, es, fs and gs: ring 3.
    pub data: Segment,
    /// The TSS, busy.
    pub tr: Segment,
    /// The GDT.
    pub gdt: Table,
}

/// A segment register with its hidden part; the fields are those of `kvm_segment`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub type_: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Guest-physical address.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

const DATA_SELECTOR: u16 = 0x2b;
const CODE_SELECTOR: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;

impl EntryState {
    /// The start of vCPU `vcpu`, which is less than [`MAX_VCPUS`](crate::layout::MAX_VCPUS).
    pub fn of_vcpu(vcpu: u64) -> Self {
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: DATA_SELECTOR,
            type_: 3,
            present: 1,
            dpl: 3,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
        };
        Self {
            rip: crate::image::entry_point().unwrap_or(PROGRAM_GPA),
            rsp: stack_of(vcpu) + PAGE_BYTES - STACK_GUARD_BYTES - 8,
            rdi: vcpu,
            rsi: PARAMS_GPA,
            rflags: 2,
            cr0: 0x8005_0033,
            cr3: PML4_GPA,
            cr4: 0x6a0,
            efer: 0xd01,
            cs: Segment {
                selector: CODE_SELECTOR,
                type_: 11,
                db: 0,
                l: 1,
                ..data
            },
            data,
            tr: Segment {
                base: TSS_GPA,
                limit: TSS_LIMIT,
                selector: TSS_SELECTOR,
                type_: 11,
                present: 1,
                dpl: 0,
                db: 0,
                s: 0,
                l: 0,
                g: 0,
            },
            gdt: Table {
                base: GDT_GPA,
                limit: TSS_SELECTOR + 15,
            },
        }
    }

    /// The GDT entries that the segments stand for, as (byte offset, bytes).
    pub(crate) fn gdt_entries(&self) -> Vec<(usize, Vec<u8>)> {
        let mut tss = descriptor(&self.tr).to_vec();
        tss.extend_from_slice(&(self.tr.base >> 32).to_le_bytes());
        vec![
            (
                usize::from(self.data.selector & !7),
                descriptor(&self.data).to_vec(),
            ),
            (
                usize::from(self.cs.selector & !7),
                descriptor(&self.cs).to_vec(),
            ),
            (usize::from(self.tr.selector & !7), tss),
        ]
    }
}

/// The lower 8 bytes of a segment descriptor.
fn descriptor(segment: &Segment) -> [u8; 8] {
    let limit = match segment.g {
        0 => segment.limit,
        _ => segment.limit >> 12,
    };
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.l << 1 | segment.db << 2 | segment.g << 3;
    let [l0, l1, l2, _] = limit.to_le_bytes();
    let [b0, b1, b2, b3, ..] = segment.base.to_le_bytes();
    [l0, l1, b0, b1, b2, access, (l2 & 0xf) | flags << 4, b3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_a_flat_64_bit_system() {
        let entry = EntryState::of_vcpu(0);
        assert_eq!(
            u64::from_le_bytes(descriptor(&entry.cs)),
            0x00af_fb00_0000_ffff
        );
        assert_eq!(
            u64::from_le_bytes(descriptor(&entry.data)),
            0x00cf_f300_0000_ffff
        );
        assert_eq!(
            u64::from_le_bytes(descriptor(&entry.tr)),
            0x0000_8b00_3000_01ff
        );
    }

    #[test]
    fn stacks_are_apart_and_aligned_as_after_a_call() {
        let stacks = [0, 1, 63].map(|vcpu| EntryState::of_vcpu(vcpu).rsp);
        assert_eq!(stacks[1] - stacks[0], PAGE_BYTES);
        assert!(stacks.iter().all(|rsp| rsp % 16 == 8));
    }
}
