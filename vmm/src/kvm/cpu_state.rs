//! A vCPU's state, taken from KVM and given to it.
//!
//! The order of loading matters: features before what depends on them, the local APIC before the
//! MSRs (one of them is its timer), events near the end. The MSR that lets KVM write "page not
//! present" notes into guest RAM is loaded after everything else of every vCPU.

use kvm_bindings::{
    CpuId, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer, VcpuFd};
use paguro_wire::device::DeviceSection;

use super::{KvmCpus, cpu_section, refused};
use crate::VmError;

/// The part of an XSAVE area that every vCPU has.
pub(super) const XSAVE_BYTES: usize = 4096;

/// Lets KVM tell the guest of absent pages, by writing to its RAM.
const MSR_KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;

/// What `KVM_GET_MSR_INDEX_LIST` leaves out and a guest needs: MTRRs, XSS, TSX control.
fn unlisted_msrs() -> impl Iterator<Item = u32> {
    [0x250, 0x258, 0x259, 0x2ff, 0xda0, 0x122]
        .into_iter()
        .chain(0x200..=0x20f)
        .chain(0x268..=0x26f)
}

/// All MSRs that may be part of a state.
pub(super) fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, VmError> {
    let list = kvm.get_msr_index_list().map_err(refused("list its MSRs"))?;
    let mut indices: Vec<u32> = list
        .as_slice()
        .iter()
        .copied()
        .chain(unlisted_msrs())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// The features of vCPU `index`: those of the host, with an APIC id of its own.
pub(super) fn cpuid_of(supported: &CpuId, index: u32) -> Result<CpuId, VmError> {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// The state of a vCPU.
pub(super) struct CpuState {
    pub(super) cpuid: CpuId,
    pub(super) tsc_khz: u32,
    pub(super) mp_state: u32,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) xsave: Vec<u8>,
    pub(super) xcrs: kvm_xcrs,
    pub(super) debugregs: kvm_debugregs,
    pub(super) lapic: Vec<u8>,
    pub(super) msrs: Vec<(u32, u64)>,
    pub(super) events: kvm_vcpu_events,
    pub(super) nested: Vec<u8>,
}

impl KvmCpus {
    pub(super) fn save_vcpu(&self, index: usize) -> Result<DeviceSection, VmError> {
        let fd = self.lock(index);
        let get = |what| refused(what);
        let cpuid = self.vcpus[index].cpuid.lock().clone();
        // First, because it may still deliver what other parts then show.
        let mp_state = fd
            .get_mp_state()
            .map_err(get("give a vCPU's run state"))?
            .mp_state;
        let state = CpuState {
            cpuid,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            mp_state,
            regs: fd.get_regs().map_err(get("give a vCPU's registers"))?,
            sregs: fd
                .get_sregs()
                .map_err(get("give a vCPU's system registers"))?,
            xsave: self.get_xsave(&fd)?,
            xcrs: fd.get_xcrs().map_err(get("give a vCPU's XCRs"))?,
            debugregs: fd
                .get_debug_regs()
                .map_err(get("give a vCPU's debug registers"))?,
            lapic: fd
                .get_lapic()
                .map_err(get("give a vCPU's local APIC"))?
                .regs
                .map(|byte| byte as u8)
                .to_vec(),
            msrs: get_msrs(&fd, &self.msr_indices)?,
            events: fd
                .get_vcpu_events()
                .map_err(get("give a vCPU's pending events"))?,
            nested: self.get_nested(&fd)?,
        };
        Ok(cpu_section::write(&state, index as u32)?)
    }

    pub(super) fn load_vcpu(&self, index: usize, state: &CpuState) -> Result<(), VmError> {
        let fd = self.lock(index);
        fd.set_cpuid2(&state.cpuid)
            .map_err(refused("accept the features of the picture's CPU"))?;
        *self.vcpus[index].cpuid.lock() = state.cpuid.clone();
        if state.tsc_khz != 0 && fd.get_tsc_khz().is_ok_and(|khz| khz != state.tsc_khz) {
            // Without TSC scaling the guest's clock runs at this host's speed from now on.
            if let Err(error) = fd.set_tsc_khz(state.tsc_khz) {
                tracing::warn!(vcpu = index, khz = state.tsc_khz, %error, "TSC speed is not kept");
            }
        }
        let mp_state = kvm_mp_state {
            mp_state: state.mp_state,
        };
        fd.set_mp_state(mp_state)
            .map_err(refused("take a vCPU's run state"))?;
        fd.set_regs(&state.regs)
            .map_err(refused("take a vCPU's registers"))?;
        fd.set_sregs(&state.sregs)
            .map_err(refused("take a vCPU's system registers"))?;
        self.set_xsave(&fd, &state.xsave)?;
        fd.set_xcrs(&state.xcrs)
            .map_err(refused("take a vCPU's XCRs"))?;
        fd.set_debug_regs(&state.debugregs)
            .map_err(refused("take a vCPU's debug registers"))?;
        let mut lapic = kvm_lapic_state::default();
        for (to, from) in lapic.regs.iter_mut().zip(&state.lapic) {
            *to = *from as _;
        }
        fd.set_lapic(&lapic)
            .map_err(refused("take a vCPU's local APIC"))?;
        let early = state
            .msrs
            .iter()
            .filter(|(msr, _)| *msr != MSR_KVM_ASYNC_PF_EN);
        set_msrs(&fd, index, early.copied().collect())?;
        fd.set_vcpu_events(&state.events)
            .map_err(refused("take a vCPU's pending events"))?;
        self.set_nested(&fd, &state.nested)
    }

    fn get_xsave(&self, fd: &VcpuFd) -> Result<Vec<u8>, VmError> {
        if self.xsave_bytes <= XSAVE_BYTES {
            let xsave = fd
                .get_xsave()
                .map_err(refused("give a vCPU's XSAVE area"))?;
            return Ok(xsave
                .region
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect());
        }
        let mut xsave = new_xsave((self.xsave_bytes - XSAVE_BYTES).div_ceil(4))?;
        // SAFETY: the buffer has as many bytes as KVM said that it fills.
        unsafe { fd.get_xsave2(&mut xsave) }.map_err(refused("give a vCPU's XSAVE area"))?;
        let region = xsave.as_fam_struct_ref().xsave.region;
        let words = region.iter().chain(xsave.as_slice());
        Ok(words.flat_map(|word| word.to_le_bytes()).collect())
    }

    fn set_xsave(&self, fd: &VcpuFd, bytes: &[u8]) -> Result<(), VmError> {
        let words: Vec<u32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let (region, extra) = words.split_at(words.len().min(XSAVE_BYTES / 4));
        // KVM reads as many bytes as this VM's state has, whatever the picture brought; what the
        // picture has beyond that must be unused.
        let needed = self.xsave_bytes.saturating_sub(XSAVE_BYTES).div_ceil(4);
        if extra.iter().skip(needed).any(|&word| word != 0) {
            return Err(VmError::OtherMachine {
                what: "an XSAVE area of",
                picture: format!("{} bytes", bytes.len()),
                machine: format!("{} bytes", self.xsave_bytes.max(XSAVE_BYTES)),
            });
        }
        let mut xsave = new_xsave(needed)?;
        let mut fixed = kvm_xsave::default();
        for (to, from) in fixed.region.iter_mut().zip(region) {
            *to = *from;
        }
        for (to, from) in xsave.as_mut_slice().iter_mut().zip(extra) {
            *to = *from;
        }
        // SAFETY: only the length of the array is fixed by the wrapper, and it is not touched.
        unsafe { xsave.as_mut_fam_struct() }.xsave.region = fixed.region;
        // SAFETY: the buffer has as many bytes as KVM reads for this VM.
        unsafe { fd.set_xsave2(&xsave) }.map_err(refused("take a vCPU's XSAVE area"))
    }

    fn get_nested(&self, fd: &VcpuFd) -> Result<Vec<u8>, VmError> {
        if !self.has_nested {
            return Ok(Vec::new());
        }
        let mut buffer = KvmNestedStateBuffer::empty();
        let used = fd
            .nested_state(&mut buffer)
            .map_err(refused("give a vCPU's nested virtualisation state"))?;
        let used = used.map_or(0, |bytes| bytes.get().min(size_of_val(&buffer)));
        // SAFETY: plain data without padding that was zeroed, `used` bytes of it at most.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const buffer).cast::<u8>(), used) };
        Ok(bytes.to_vec())
    }

    fn set_nested(&self, fd: &VcpuFd, bytes: &[u8]) -> Result<(), VmError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut buffer = KvmNestedStateBuffer::empty();
        if !self.has_nested || bytes.len() > size_of_val(&buffer) {
            return Err(VmError::OtherMachine {
                what: "nested virtualisation state of",
                picture: format!("{} bytes", bytes.len()),
                machine: "none".to_owned(),
            });
        }
        // SAFETY: plain data for which every bit pattern is valid; the length was checked.
        unsafe {
            (&raw mut buffer)
                .cast::<u8>()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        buffer.size = bytes.len() as u32;
        fd.set_nested_state(&buffer)
            .map_err(refused("take a vCPU's nested virtualisation state"))
    }
}

/// Loads the MSRs that let KVM write to guest RAM by itself.
pub(super) fn load_late_msrs(fd: &VcpuFd, index: usize, state: &CpuState) -> Result<(), VmError> {
    let late = state
        .msrs
        .iter()
        .filter(|(msr, _)| *msr == MSR_KVM_ASYNC_PF_EN);
    set_msrs(fd, index, late.copied().collect())
}

fn new_xsave(extra_words: usize) -> Result<Xsave, VmError> {
    Xsave::new(extra_words).map_err(|error| {
        VmError::host("make an XSAVE area")(std::io::Error::other(format!("{error:?}")))
    })
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, VmError> {
    Msrs::from_entries(entries)
        .map_err(|error| VmError::host("list MSRs")(std::io::Error::other(format!("{error:?}"))))
}

/// Reads MSRs; KVM stops at each that it does not let read, which is left out.
fn get_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let part = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = part
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = msr_list(&entries)?;
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(refused("give a vCPU's MSRs"))?;
        found.extend(
            msrs.as_slice()[..read.min(part.len())]
                .iter()
                .map(|msr| (msr.index, msr.data)),
        );
        if read < part.len() {
            tracing::trace!(msr = part[read], "not readable, not saved");
        }
        left = &left[part.len().min(read + usize::from(read < part.len()))..];
    }
    Ok(found)
}

/// Writes MSRs; one that this host refuses is skipped.
fn set_msrs(fd: &VcpuFd, vcpu: usize, msrs: Vec<(u32, u64)>) -> Result<(), VmError> {
    let mut left = msrs.as_slice();
    while !left.is_empty() {
        let part = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = part
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let set = fd
            .set_msrs(&msr_list(&entries)?)
            .map_err(refused("take a vCPU's MSRs"))?;
        if set < part.len() {
            let (msr, value) = part[set];
            tracing::debug!(vcpu, "MSR {msr:#x} does not take {value:#x} here; skipped");
        }
        left = &left[part.len().min(set + usize::from(set < part.len()))..];
    }
    Ok(())
}
