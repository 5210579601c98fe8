//! Every part of the devices' state comes back.

use std::time::{Duration, Instant};

use paguro_vmm::{Accel, Clock, Config};
use paguro_wire::device::DeviceSection;
use paguro_wire::stream::description::FieldDescription;

use crate::common::*;

/// Where a field is in its section's body, by its path: offset and bytes.
fn find(section: &DeviceSection, path: &str) -> (usize, usize) {
    fn walk(fields: &[FieldDescription], path: &str, mut at: usize) -> Option<(usize, usize)> {
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        for field in fields {
            let bytes = (field.size * field.array_len.unwrap_or(1)) as usize;
            if field.name == name && rest.is_empty() {
                return Some((at, bytes));
            }
            if field.name == name {
                return walk(&field.structure.as_ref()?.fields, rest, at);
            }
            at += bytes;
        }
        None
    }
    let found = walk(&section.fields, path, 0);
    found.unwrap_or_else(|| panic!("no field {path} in {}", section.name))
}

fn section<'a>(sections: &'a mut [DeviceSection], name: &str) -> &'a mut DeviceSection {
    sections
        .iter_mut()
        .find(|section| section.name == name)
        .unwrap()
}

/// Where the value of an MSR is.
fn msr(section: &DeviceSection, msr: u64) -> usize {
    let (at, bytes) = find(section, "msr_indices");
    let indices = section.body[at..at + bytes].as_chunks::<8>().0;
    let index = indices
        .iter()
        .position(|index| u64::from_be_bytes(*index) == msr);
    find(section, "msr_values").0 + 8 * index.unwrap()
}

/// What the clock of a picture shows, in nanoseconds.
fn clock_ns(devices: &mut [DeviceSection]) -> u64 {
    let clock = section(devices, "paguro/clock");
    let (at, bytes) = find(clock, "clock_ns");
    u64::from_be_bytes(clock.body[at..at + bytes].try_into().unwrap())
}

#[test]
fn a_clock_goes_on_where_it_was_or_where_it_would_be() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let config = config(Accel::Kvm, 1);
    let vm = start(&config);
    wait_writes(&vm, 10);
    let mut picture = take(&vm);
    let saved = Instant::now();
    drop(vm);
    let before = clock_ns(&mut picture.devices);
    // That much it spends in the picture, and more on a busy host.
    std::thread::sleep(Duration::from_millis(500));
    for clock in [Clock::Continue, Clock::Advance] {
        let config = Config {
            clock,
            ..config.clone()
        };
        let (since_saved, loading) = (saved.elapsed(), Instant::now());
        let vm = picture.copy_ram(&config);
        vm.load_devices(&picture.devices).unwrap();
        let after = clock_ns(&mut take(&vm).devices);
        let (passed, since_loading) = (Duration::from_nanos(after - before), loading.elapsed());
        // The host's clocks may differ a little in what they call a second.
        const SLACK: Duration = Duration::from_millis(100);
        match clock {
            Clock::Continue => assert!(passed <= since_loading + SLACK, "{passed:?}"),
            Clock::Advance => assert!(passed + SLACK >= since_saved, "{passed:?}"),
        }
    }
}

#[test]
fn what_a_picture_says_is_what_the_machine_has() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let config = config(Accel::Kvm, 1);
    let vm = start(&config);
    wait_writes(&vm, 10);
    let picture = take(&vm);
    drop(vm);
    let mut changed = picture.devices.clone();

    // Values that nothing else would leave there.
    let cpu = section(&mut changed, "paguro/cpu");
    let mut marks = Vec::new();
    let mut mark = |section: &mut DeviceSection, at: usize, value: &[u8]| {
        section.body[at..at + value.len()].copy_from_slice(value);
        marks.push((section.name.clone(), at, value.to_vec()));
    };
    let at = |cpu: &DeviceSection, path: &str, offset: usize| find(cpu, path).0 + offset;
    for path in ["regs/rbx", "regs/r15", "sregs/cr2"] {
        mark(
            cpu,
            at(cpu, path, 0),
            &0x1234_5678_9abc_def0u64.to_be_bytes(),
        );
    }
    mark(
        cpu,
        at(cpu, "sregs/gs/base", 0),
        &0x7000_0000u64.to_be_bytes(),
    );
    mark(
        cpu,
        at(cpu, "debugregs/db", 8),
        &0x1_2345_6000u64.to_be_bytes(),
    );
    // XMM1, and the bit that says that there is something in the XMM registers.
    mark(cpu, at(cpu, "xsave", 160 + 16), b"sixteen letters.");
    mark(cpu, at(cpu, "xsave", 512), &[3]);
    // The local APIC's task priority, the syscall target, the TSC's auxiliary number.
    mark(cpu, at(cpu, "lapic", 0x80), &[0x20]);
    let star = msr(cpu, 0xc000_0081);
    mark(cpu, star, &0x0023_0010_0000_0000u64.to_be_bytes());
    mark(cpu, at(cpu, "events/nmi/masked", 0), &[1]);
    let chip = section(&mut changed, "paguro/irqchip");
    // The interrupt mask of the first controller, the destination of a line of the second kind.
    mark(chip, at(chip, "pic_master", 3), &[0x5a]);
    mark(chip, at(chip, "ioapic", 24 + 8 * 5), &[0x31]);
    let uart = section(&mut changed, "paguro/serial");
    mark(uart, find(uart, "scratch").0, &[0x77]);
    let clock = section(&mut changed, "paguro/clock");
    let in_a_day = 86_400_000_000_000u64;
    let at = find(clock, "clock_ns").0;
    clock.body[at..at + 8].copy_from_slice(&in_a_day.to_be_bytes());

    let again = picture.copy_ram(&config);
    again.load_devices(&changed).unwrap();
    let mut found = take(&again).devices;
    for (name, at, value) in marks {
        let bytes = &section(&mut found, &name).body[at..at + value.len()];
        assert_eq!(bytes, value, "{name} at {at}");
    }
    let clock = clock_ns(&mut found);
    assert!(
        (in_a_day..in_a_day + 60_000_000_000).contains(&clock),
        "{clock}"
    );
}

#[test]
fn an_msr_that_this_host_has_not_is_skipped_and_the_others_are_set() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let config = config(Accel::Kvm, 1);
    let vm = start(&config);
    wait_writes(&vm, 10);
    let picture = take(&vm);
    let mut devices = picture.devices.clone();
    let cpu = section(&mut devices, "paguro/cpu");
    let star = msr(cpu, 0xc000_0081);
    cpu.body[star..star + 8].copy_from_slice(&0x0023_0010_0000_0000u64.to_be_bytes());
    // The first in the list becomes one that no CPU has.
    let (first, _) = find(cpu, "msr_indices");
    cpu.body[first..first + 8].copy_from_slice(&0x7777_7777u64.to_be_bytes());
    let again = picture.copy_ram(&config);
    again.load_devices(&devices).unwrap();
    let mut found = take(&again).devices;
    let cpu = section(&mut found, "paguro/cpu");
    let star = msr(cpu, 0xc000_0081);
    assert_eq!(
        cpu.body[star..star + 8],
        0x0023_0010_0000_0000u64.to_be_bytes()
    );
}

#[test]
fn a_damaged_picture_leaves_a_machine_that_does_not_run() {
    let _turn = turn();
    for accel in accels() {
        let config: Config = with_dma(config(accel, 1), false);
        let vm = create(&config);
        vm.boot().unwrap();
        let mut devices = take(&vm).devices;
        section(&mut devices, "paguro/x-dma").body.push(0);
        let other = create(&config);
        other.load_devices(&devices).unwrap_err();
        other.cont().unwrap_err();
    }
}
