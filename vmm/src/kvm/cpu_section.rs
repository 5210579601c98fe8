//! A vCPU's state as a device section.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};

use super::cpu_state::{CpuState, XSAVE_BYTES};

pub(super) const SECTION: &str = "paguro/cpu";
const VERSION: u32 = 1;

const MAX_XSAVE_BYTES: usize = 1 << 20;
const LAPIC_BYTES: usize = 1024;
const MAX_MSRS: usize = 4096;

/// Writes and reads the named fields of a structure of KVM's.
macro_rules! fields {
    ($write:ident, $read:ident, $type:ty: $($kind:ident { $($field:ident),* })*) => {
        fn $write(writer: &mut SectionWriter, from: &$type) {
            $($(writer.$kind(stringify!($field), from.$field);)*)*
        }

        fn $read(reader: &mut SectionReader<'_>) -> Result<$type, DeviceError> {
            let mut to = <$type>::default();
            $($(to.$field = reader.$kind(stringify!($field))?;)*)*
            Ok(to)
        }
    };
}

fields!(write_regs, read_regs, kvm_regs: u64 {
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags
});
fields!(write_segment, read_segment, kvm_segment:
    u64 { base } u32 { limit } u16 { selector }
    u8 { type_, present, dpl, db, s, l, g, avl, unusable }
);
fields!(write_table, read_table, kvm_dtable: u64 { base } u16 { limit });
fields!(write_cpuid, read_cpuid, kvm_cpuid_entry2: u32 { function, index, flags, eax, ebx, ecx, edx });
fields!(write_xcr, read_xcr, kvm_xcr: u32 { xcr } u64 { value });

macro_rules! events {
    ($($part:ident { $($field:ident: $kind:ident),* })*) => {
        fn write_events(writer: &mut SectionWriter, from: &kvm_vcpu_events) {
            $(writer.structure(stringify!($part), |writer| {
                $(writer.$kind(stringify!($field), from.$part.$field);)*
            });)*
            writer
                .u32("sipi_vector", from.sipi_vector)
                .u32("flags", from.flags)
                .u8("exception_has_payload", from.exception_has_payload)
                .u64("exception_payload", from.exception_payload);
        }

        fn read_events(reader: &mut SectionReader<'_>) -> Result<kvm_vcpu_events, DeviceError> {
            let mut to = kvm_vcpu_events::default();
            $(reader.structure(stringify!($part), |reader| {
                $(to.$part.$field = reader.$kind(stringify!($field))?;)*
                Ok(())
            })?;)*
            to.sipi_vector = reader.u32("sipi_vector")?;
            to.flags = reader.u32("flags")?;
            to.exception_has_payload = reader.u8("exception_has_payload")?;
            to.exception_payload = reader.u64("exception_payload")?;
            Ok(to)
        }
    };
}

events! {
    exception { injected: u8, nr: u8, has_error_code: u8, pending: u8, error_code: u32 }
    interrupt { injected: u8, nr: u8, soft: u8, shadow: u8 }
    nmi { injected: u8, pending: u8, masked: u8 }
    smi { smm: u8, pending: u8, smm_inside_nmi: u8, latched_init: u8 }
    triple_fault { pending: u8 }
}

macro_rules! sregs {
    (segments { $($segment:ident),* } tables { $($table:ident),* } u64 { $($field:ident),* }) => {
        fn write_sregs(writer: &mut SectionWriter, from: &kvm_sregs) {
            $(writer.structure(stringify!($segment), |w| write_segment(w, &from.$segment));)*
            $(writer.structure(stringify!($table), |w| write_table(w, &from.$table));)*
            $(writer.u64(stringify!($field), from.$field);)*
            writer.array_u64("interrupt_bitmap", &from.interrupt_bitmap);
        }

        fn read_sregs(reader: &mut SectionReader<'_>) -> Result<kvm_sregs, DeviceError> {
            let mut to = kvm_sregs::default();
            $(to.$segment = reader.structure(stringify!($segment), read_segment)?;)*
            $(to.$table = reader.structure(stringify!($table), read_table)?;)*
            $(to.$field = reader.u64(stringify!($field))?;)*
            to.interrupt_bitmap = read_array(reader, "interrupt_bitmap")?;
            Ok(to)
        }
    };
}

sregs! {
    segments { cs, ds, es, fs, gs, ss, tr, ldt }
    tables { gdt, idt }
    u64 { cr0, cr2, cr3, cr4, cr8, efer, apic_base }
}

fn read_array<const N: usize>(
    reader: &mut SectionReader<'_>,
    name: &str,
) -> Result<[u64; N], DeviceError> {
    let values = reader.array_u64(name)?;
    let count = values.len();
    values
        .try_into()
        .map_err(|_| reader.bad_value(name, format!("{N} values"), count))
}

pub(super) fn write(state: &CpuState, instance: u32) -> Result<DeviceSection, DeviceError> {
    let (indices, values): (Vec<_>, Vec<_>) = state
        .msrs
        .iter()
        .map(|&(index, value)| (u64::from(index), value))
        .unzip();
    let xcrs = &state.xcrs.xcrs[..(state.xcrs.nr_xcrs as usize).min(state.xcrs.xcrs.len())];
    SectionWriter::new(SECTION, instance, VERSION)
        .array_struct("cpuid", state.cpuid.as_slice(), write_cpuid)
        .u32("tsc_khz", state.tsc_khz)
        .u32("mp_state", state.mp_state)
        .structure("regs", |writer| write_regs(writer, &state.regs))
        .structure("sregs", |writer| write_sregs(writer, &state.sregs))
        .buffer("xsave", &state.xsave)
        .u32("xcr_flags", state.xcrs.flags)
        .array_struct("xcrs", xcrs, write_xcr)
        .structure("debugregs", |writer| {
            let from = &state.debugregs;
            writer
                .array_u64("db", &from.db)
                .u64("dr6", from.dr6)
                .u64("dr7", from.dr7)
                .u64("flags", from.flags);
        })
        .fixed_buffer("lapic", &state.lapic)
        .array_u64("msr_indices", &indices)
        .array_u64("msr_values", &values)
        .structure("events", |writer| write_events(writer, &state.events))
        .buffer("nested", &state.nested)
        .finish()
}

pub(super) fn read(section: &DeviceSection) -> Result<CpuState, DeviceError> {
    let mut reader = SectionReader::open(section, SECTION, 1..=VERSION)?;
    let r = &mut reader;
    let entries = r.array_struct("cpuid", read_cpuid)?;
    if entries.len() > KVM_MAX_CPUID_ENTRIES {
        return Err(r.bad_value(
            "cpuid",
            format!("at most {KVM_MAX_CPUID_ENTRIES}"),
            entries.len(),
        ));
    }
    let cpuid = CpuId::from_entries(&entries)
        .map_err(|_| r.bad_value("cpuid", "fewer entries", entries.len()))?;
    let tsc_khz = r.u32("tsc_khz")?;
    let mp_state = r.u32("mp_state")?;
    let regs = r.structure("regs", read_regs)?;
    let sregs = r.structure("sregs", read_sregs)?;
    let xsave = r.buffer("xsave")?.to_vec();
    if !(XSAVE_BYTES..=MAX_XSAVE_BYTES).contains(&xsave.len()) || xsave.len() % 4 != 0 {
        let allowed = format!("{XSAVE_BYTES} to {MAX_XSAVE_BYTES} bytes, in words");
        return Err(r.bad_value("xsave", allowed, xsave.len()));
    }
    let mut xcrs = kvm_xcrs {
        flags: r.u32("xcr_flags")?,
        ..Default::default()
    };
    let entries = r.array_struct("xcrs", read_xcr)?;
    if entries.len() > xcrs.xcrs.len() {
        return Err(r.bad_value(
            "xcrs",
            format!("at most {}", xcrs.xcrs.len()),
            entries.len(),
        ));
    }
    xcrs.nr_xcrs = entries.len() as u32;
    xcrs.xcrs[..entries.len()].copy_from_slice(&entries);
    let debugregs = r.structure("debugregs", |r| {
        Ok(kvm_debugregs {
            db: read_array(r, "db")?,
            dr6: r.u64("dr6")?,
            dr7: r.u64("dr7")?,
            flags: r.u64("flags")?,
            ..Default::default()
        })
    })?;
    let lapic = r.fixed_buffer("lapic", LAPIC_BYTES)?.to_vec();
    let msrs = read_msrs(r)?;
    let events = r.structure("events", read_events)?;
    let nested = r.buffer("nested")?.to_vec();
    reader.finish()?;
    Ok(CpuState {
        cpuid,
        tsc_khz,
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        msrs,
        events,
        nested,
    })
}

fn read_msrs(reader: &mut SectionReader<'_>) -> Result<Vec<(u32, u64)>, DeviceError> {
    let indices = reader.array_u64("msr_indices")?;
    let values = reader.array_u64("msr_values")?;
    if indices.len() != values.len() || indices.len() > MAX_MSRS {
        let expected = format!("{} values, at most {MAX_MSRS}", indices.len());
        return Err(reader.bad_value("msr_values", expected, values.len()));
    }
    let mut msrs = Vec::with_capacity(indices.len());
    for (index, value) in indices.into_iter().zip(values) {
        let Ok(index) = u32::try_from(index) else {
            return Err(reader.bad_value("msr_indices", "32-bit numbers", index));
        };
        msrs.push((index, value));
    }
    Ok(msrs)
}
