//! Pictures that are not of this machine, or damaged.

use paguro_vmm::{Accel, Config, VmError};
use paguro_wire::device::{DeviceSection, SectionWriter};

use crate::common::*;

fn sections(config: &Config) -> Vec<DeviceSection> {
    let vm = create(config);
    vm.boot().unwrap();
    take(&vm).devices
}

fn load(config: &Config, sections: &[DeviceSection]) -> Result<(), VmError> {
    create(config).load_devices(sections)
}

#[test]
fn another_machine_is_refused_by_what_differs() {
    let _turn = turn();
    for accel in accels() {
        let here = config(accel, 2);
        let sections = sections(&here);
        load(&here, &sections).unwrap();
        let others = [
            (
                "vCPUs",
                Config {
                    cpus: 1,
                    ..here.clone()
                },
            ),
            (
                "memory size",
                Config {
                    memory_bytes: 20 << 20,
                    ..here.clone()
                },
            ),
            (
                "first RAM block",
                Config {
                    ram_split: Some(8 << 20),
                    ..here.clone()
                },
            ),
        ];
        for (what, other) in others {
            let error = load(&other, &sections).unwrap_err();
            assert!(matches!(error, VmError::OtherMachine { .. }), "{error:?}");
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = load(&with_dma(here.clone(), false), &sections).unwrap_err();
        assert!(error.to_string().contains("paguro/x-dma"), "{error}");
    }
}

#[test]
fn another_accelerator_is_refused() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let sections = sections(&config(Accel::Threads, 1));
    let error = load(&config(Accel::Kvm, 1), &sections).unwrap_err();
    assert!(error.to_string().contains("threads"), "{error}");
}

#[test]
fn missing_unknown_and_repeated_sections_are_refused_by_name() {
    let _turn = turn();
    for accel in accels() {
        let here = with_dma(config(accel, 1), true);
        let sections = sections(&here);
        for left_out in &sections {
            let rest: Vec<_> = sections
                .iter()
                .filter(|s| *s != left_out)
                .cloned()
                .collect();
            let error = load(&here, &rest).unwrap_err();
            assert!(matches!(error, VmError::MissingSection { .. }), "{error:?}");
            assert!(error.to_string().contains(&left_out.name), "{error}");
        }
        for name in ["paguro/gpu", "paguro/x-dma", "paguro/cpu"] {
            let mut more = sections.clone();
            let instance = if name == "paguro/cpu" { 1 } else { 0 };
            more.push(
                SectionWriter::new(name, instance, 1)
                    .u8("x", 0)
                    .finish()
                    .unwrap(),
            );
            let error = load(&here, &more).unwrap_err();
            assert!(matches!(error, VmError::UnknownSection { .. }), "{error:?}");
            assert!(error.to_string().contains(name), "{error}");
        }
        let mut engines = sections.clone();
        engines.push(
            SectionWriter::new("globalstate", 0, 1)
                .u8("x", 0)
                .finish()
                .unwrap(),
        );
        load(&here, &engines).unwrap();
    }
}

#[test]
fn damaged_sections_are_refused() {
    let _turn = turn();
    for accel in accels() {
        let here = with_dma(config(accel, 1), true);
        let sections = sections(&here);
        for index in 0..sections.len() {
            let mut damaged: Vec<fn(&mut DeviceSection)> = vec![
                |s| s.version = 9,
                |s| s.body.truncate(s.body.len() - 1),
                |s| s.body.push(0),
                |s| s.body.clear(),
                |s| s.fields[0].name.push('x'),
            ];
            for damage in &mut damaged {
                let mut sections = sections.clone();
                damage(&mut sections[index]);
                let error = load(&here, &sections).unwrap_err();
                let name = &sections[index].name;
                assert!(matches!(error, VmError::Section(_)), "{name}: {error:?}");
            }
            // Counts and lengths that cannot be: an error or another state, never a panic.
            for at in 0..sections[index].body.len().min(64) {
                let mut sections = sections.clone();
                sections[index].body[at] = 0xff;
                drop(load(&here, &sections));
            }
        }
    }
}
