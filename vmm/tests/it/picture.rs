//! A picture says what its counters imply, and a machine made from it goes on.

use paguro_ram::{Backing, PageKind};
use paguro_vmm::{Config, RunState, describe};

use crate::common::*;

fn goes_on(config: &Config) {
    let vm = start(config);
    wait_writes(&vm, 20_000.min(vm.params().unwrap().area.pages()));
    for _ in 0..3 {
        wait_writes(&vm, 100);
        take(&vm).assert_right();
    }
    let picture = take(&vm);
    let before = picture.assert_right();
    drop(vm);
    let again = picture.copy_ram(config);
    again.load_devices(&picture.devices).unwrap();
    assert_eq!(again.run_state(), RunState::Paused);
    let untouched = take(&again);
    assert_eq!(untouched.assert_right(), before);
    assert!(untouched.ram == picture.ram, "loading changed RAM");
    again.start().unwrap();
    wait_writes(&again, 1);
    wait_writes(&again, 1000);
    let after = take(&again).assert_right();
    for (before, after) in before.vcpus.iter().zip(&after.vcpus) {
        assert!(after.done >= before.done + 1000, "{before:?} {after:?}");
    }
    for (before, after) in before.devices.iter().zip(&after.devices) {
        assert!(after.done >= before.done + 1000, "{before:?} {after:?}");
    }
}

#[test]
fn a_restored_machine_goes_on_where_it_was() {
    let _turn = turn();
    for accel in accels() {
        for cpus in [1, 2] {
            goes_on(&config(accel, cpus));
        }
    }
}

#[test]
fn so_does_one_with_a_device_that_writes_ram() {
    let _turn = turn();
    for accel in accels() {
        goes_on(&hurried(with_dma(config(accel, 2), false)));
        goes_on(&with_dma(config(accel, 1), true));
    }
}

#[test]
fn so_does_one_with_ram_in_two_blocks_of_shared_memory() {
    let _turn = turn();
    for accel in accels() {
        goes_on(&Config {
            ram_split: Some(6 << 20),
            backing: Backing::Memfd,
            pages: PageKind::Thp,
            workload: "pattern=zipf,bytes=page,rate=200000".parse().unwrap(),
            ..config(accel, 2)
        });
    }
}

#[test]
fn a_picture_of_a_picture_is_the_same() {
    let _turn = turn();
    for accel in accels() {
        let config = with_dma(config(accel, 2), true);
        let vm = start(&config);
        wait_writes(&vm, 1000);
        let picture = take(&vm);
        let again = picture.copy_ram(&config);
        again.load_devices(&picture.devices).unwrap();
        let second = take(&again);
        for (one, other) in picture.devices.iter().zip(&second.devices) {
            assert_eq!((&one.name, one.instance), (&other.name, other.instance));
            // These go on by themselves, or are the host's own.
            if !["paguro/clock", "paguro/cpu", "paguro/irqchip"].contains(&one.name.as_str()) {
                assert_eq!(one, other);
            }
        }
        assert_eq!(picture.devices.len(), second.devices.len());
    }
}

#[test]
fn a_picture_describes_its_machine() {
    let _turn = turn();
    for accel in accels() {
        let config = Config {
            ram_split: Some(6 << 20),
            ..with_dma(config(accel, 2), true)
        };
        let vm = start(&config);
        let described = describe(&take(&vm).devices).unwrap();
        assert_eq!(described.accel, accel);
        assert_eq!(described.cpus, 2);
        assert_eq!(described.memory_bytes, 16 << 20);
        assert_eq!(described.ram_split, Some(6 << 20));
        assert_eq!(described.dma, config.dma);
    }
}
