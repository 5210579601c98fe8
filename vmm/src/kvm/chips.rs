//! Interrupt controllers, timer and clock as device sections.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_channel_state, kvm_pit_state2,
};
use kvm_ioctls::{Cap, VmFd};
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};

use super::refused;
use crate::{Clock, VmError};

pub(super) const IRQCHIP: &str = "paguro/irqchip";
pub(super) const CLOCK: &str = "paguro/clock";
const VERSION: u32 = 1;
const CLOCK_VERSION: u32 = 2;

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

/// The clock that a guest's kvmclock shows, in nanoseconds since it started, and what the host's clock
/// said when it did. Version 1 was without that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SavedClock {
    clock_ns: u64,
    /// Since 1970.
    realtime_ns: Option<u64>,
}

pub(super) fn save_clock(vm: &VmFd) -> Result<DeviceSection, VmError> {
    let clock = vm
        .get_clock()
        .map_err(refused("say what time it is for the guest"))?;
    // Of one moment, where KVM knows it.
    let realtime = match clock.flags & KVM_CLOCK_REALTIME {
        0 => realtime_ns(),
        _ => clock.realtime,
    };
    Ok(SectionWriter::new(CLOCK, 0, CLOCK_VERSION)
        .u64("clock_ns", clock.clock)
        .u64("realtime_ns", realtime)
        .finish()?)
}

pub(super) fn read_clock(section: &DeviceSection) -> Result<SavedClock, DeviceError> {
    let mut reader = SectionReader::open(section, CLOCK, 1..=CLOCK_VERSION)?;
    let clock_ns = reader.u64("clock_ns")?;
    let realtime_ns = match reader.version() {
        1 => None,
        _ => Some(reader.u64("realtime_ns")?),
    };
    reader.finish()?;
    Ok(SavedClock {
        clock_ns,
        realtime_ns,
    })
}

impl SavedClock {
    /// What it is to show now, if the host's clock says so much.
    fn at(self, clock: Clock, now_ns: u64) -> Result<u64, VmError> {
        match (clock, self.realtime_ns) {
            (Clock::Continue, _) => Ok(self.clock_ns),
            (Clock::Advance, None) => Err(VmError::NoSavedTime),
            // A host whose clock is behind that of the other turns none back.
            (Clock::Advance, Some(then)) => {
                Ok(self.clock_ns.saturating_add(now_ns.saturating_sub(then)))
            }
        }
    }

    /// Whether it can be done.
    pub(super) fn check(self, clock: Clock) -> Result<(), VmError> {
        self.at(clock, 0).map(drop)
    }
}

pub(super) fn load_clock(vm: &VmFd, saved: SavedClock, clock: Clock) -> Result<(), VmError> {
    let flags = vm.check_extension_int(Cap::AdjustClock);
    let by_kernel = u32::try_from(flags).is_ok_and(|flags| flags & KVM_CLOCK_REALTIME != 0);
    let data = match (clock, saved.realtime_ns) {
        // It adds what has passed up to the very moment at which it sets the clock.
        (Clock::Advance, Some(realtime)) if by_kernel => kvm_clock_data {
            clock: saved.clock_ns,
            realtime,
            flags: KVM_CLOCK_REALTIME,
            ..Default::default()
        },
        _ => kvm_clock_data {
            clock: saved.at(clock, realtime_ns())?,
            ..Default::default()
        },
    };
    vm.set_clock(&data)
        .map_err(refused("set the guest's clock"))
}

/// What the host's clock says, in nanoseconds since 1970.
fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_saved_without_the_hosts_can_only_go_on() {
        let old = SectionWriter::new(CLOCK, 0, 1).u64("clock_ns", 7).finish();
        let saved = read_clock(&old.unwrap()).unwrap();
        assert_eq!(saved.at(Clock::Continue, 99).unwrap(), 7);
        let refused = saved.check(Clock::Advance).unwrap_err();
        assert!(matches!(refused, VmError::NoSavedTime), "{refused}");
    }

    #[test]
    fn a_clock_advances_by_what_the_hosts_did_and_never_back() {
        let saved = SavedClock {
            clock_ns: 1000,
            realtime_ns: Some(50_000),
        };
        for (now, clock) in [(50_000, 1000), (53_000, 4000), (0, 1000)] {
            assert_eq!(saved.at(Clock::Advance, now).unwrap(), clock);
            assert_eq!(saved.at(Clock::Continue, now).unwrap(), 1000);
        }
    }
}
