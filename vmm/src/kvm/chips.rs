//! Interrupt controllers, timer and clock as device sections.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_channel_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};

use super::refused;
use crate::VmError;

pub(super) const IRQCHIP: &str = "paguro/irqchip";
pub(super) const CLOCK: &str = "paguro/clock";
const VERSION: u32 = 1;

const CHIPS: [(&str, u32); 3] = [
    ("pic_master", KVM_IRQCHIP_PIC_MASTER),
    ("pic_slave", KVM_IRQCHIP_PIC_SLAVE),
    ("ioapic", KVM_IRQCHIP_IOAPIC),
];
const CHIP_BYTES: usize = 512;

/// The three chips, as KVM keeps them, and the timer.
pub(super) struct IrqChip {
    chips: [[u8; CHIP_BYTES]; 3],
    pit: kvm_pit_state2,
}

pub(super) fn save_irqchip(vm: &VmFd) -> Result<DeviceSection, VmError> {
    let mut writer = SectionWriter::new(IRQCHIP, 0, VERSION);
    for (name, chip_id) in CHIPS {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(refused("give the state of an interrupt controller"))?;
        // SAFETY: `dummy` covers the whole union, which was zeroed and then filled by KVM.
        let bytes = unsafe { chip.chip.dummy };
        writer.fixed_buffer(name, &bytes.map(|byte| byte as u8));
    }
    let pit = vm
        .get_pit2()
        .map_err(refused("give the state of the timer"))?;
    writer.array_struct("channels", &pit.channels, |writer, channel| {
        write_channel(writer, channel)
    });
    Ok(writer.u32("pit_flags", pit.flags).finish()?)
}

pub(super) fn read_irqchip(section: &DeviceSection) -> Result<IrqChip, DeviceError> {
    let mut reader = SectionReader::open(section, IRQCHIP, 1..=VERSION)?;
    let mut chips = [[0; CHIP_BYTES]; 3];
    for (chip, (name, _)) in chips.iter_mut().zip(CHIPS) {
        chip.copy_from_slice(reader.fixed_buffer(name, CHIP_BYTES)?);
    }
    let channels = reader.array_struct("channels", read_channel)?;
    let count = channels.len();
    let Ok(channels) = channels.try_into() else {
        return Err(reader.bad_value("channels", "3 channels", count));
    };
    let flags = reader.u32("pit_flags")?;
    reader.finish()?;
    Ok(IrqChip {
        chips,
        pit: kvm_pit_state2 {
            channels,
            flags,
            ..Default::default()
        },
    })
}

pub(super) fn load_irqchip(vm: &VmFd, state: &IrqChip) -> Result<(), VmError> {
    for (bytes, (_, chip_id)) in state.chips.iter().zip(CHIPS) {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        chip.chip.dummy = bytes.map(|byte| byte as _);
        vm.set_irqchip(&chip)
            .map_err(refused("take the state of an interrupt controller"))?;
    }
    vm.set_pit2(&state.pit)
        .map_err(refused("take the state of the timer"))
}

fn write_channel(writer: &mut SectionWriter, channel: &kvm_pit_channel_state) {
    writer
        .u32("count", channel.count)
        .u16("latched_count", channel.latched_count)
        .u8("count_latched", channel.count_latched)
        .u8("status_latched", channel.status_latched)
        .u8("status", channel.status)
        .u8("read_state", channel.read_state)
        .u8("write_state", channel.write_state)
        .u8("write_latch", channel.write_latch)
        .u8("rw_mode", channel.rw_mode)
        .u8("mode", channel.mode)
        .u8("bcd", channel.bcd)
        .u8("gate", channel.gate)
        .i64("count_load_time", channel.count_load_time);
}

fn read_channel(reader: &mut SectionReader<'_>) -> Result<kvm_pit_channel_state, DeviceError> {
    Ok(kvm_pit_channel_state {
        count: reader.u32("count")?,
        latched_count: reader.u16("latched_count")?,
        count_latched: reader.u8("count_latched")?,
        status_latched: reader.u8("status_latched")?,
        status: reader.u8("status")?,
        read_state: reader.u8("read_state")?,
        write_state: reader.u8("write_state")?,
        write_latch: reader.u8("write_latch")?,
        rw_mode: reader.u8("rw_mode")?,
        mode: reader.u8("mode")?,
        bcd: reader.u8("bcd")?,
        gate: reader.u8("gate")?,
        count_load_time: reader.i64("count_load_time")?,
    })
}

/// The clock that a guest's kvmclock shows, in nanoseconds since it started. It does not count
/// the time that the machine spent in a file.
pub(super) fn save_clock(vm: &VmFd) -> Result<DeviceSection, VmError> {
    let clock = vm
        .get_clock()
        .map_err(refused("say what time it is for the guest"))?;
    Ok(SectionWriter::new(CLOCK, 0, VERSION)
        .u64("clock_ns", clock.clock)
        .finish()?)
}

pub(super) fn read_clock(section: &DeviceSection) -> Result<u64, DeviceError> {
    let mut reader = SectionReader::open(section, CLOCK, 1..=VERSION)?;
    let clock = reader.u64("clock_ns")?;
    reader.finish()?;
    Ok(clock)
}

pub(super) fn load_clock(vm: &VmFd, clock: u64) -> Result<(), VmError> {
    let clock = kvm_clock_data {
        clock,
        ..Default::default()
    };
    vm.set_clock(&clock)
        .map_err(refused("set the guest's clock"))
}
