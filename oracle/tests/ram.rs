//! RAM as replay leaves it is right; RAM with anything changed is not.

mod common;

use common::{Machine, Ram};
use paguro_guest::layout::{
    AREA_START, MAILBOX_GPA, PAGE_BYTES, PARAMS_GPA, STACK_GUARD_BYTES, STACK_WINDOW_BYTES,
    STACKS_GPA,
};
use paguro_oracle::{CheckError, DeviceWriter, Memory, Report, check};
use paguro_workload::Stream;
use paguro_workload::area::{DMA, DMA_DIRECT};
use proptest::prelude::*;

const SPECS: [&str; 8] = [
    "pattern=sequential",
    "pattern=random,bytes=64",
    "pattern=zipf,bytes=page,hot=4K",
    "pattern=hotset,hot=16K",
    "pattern=zipf,bytes=64,hot=8K,seed=77",
    "pattern=random,bytes=page",
    "pattern=random,op=read,bytes=page",
    "pattern=hotset,bytes=64,set=120K",
];

fn report(ram: &Ram) -> Report {
    check(ram, &ram.devices).unwrap()
}

fn machines() -> impl Iterator<Item = Machine> {
    SPECS.iter().enumerate().map(|(i, spec)| Machine {
        threads: i % 3 == 1,
        dma: i % 2 == 0,
        dma_direct: i % 4 == 0,
        ..Machine::new(spec, 1 + i as u64 % 3)
    })
}

#[test]
fn replayed_ram_is_right() {
    for machine in machines() {
        for done in [0, 1, 7, 100, 391] {
            let ram = machine.after(&vec![done; machine.vcpus as usize], done / 3);
            let report = report(&ram);
            assert_eq!(report.wrong, [], "{:?}", machine.spec);
            assert_eq!(report.pages_checked as usize * 4096, ram.bytes.len());
            let zero = ram
                .bytes
                .chunks(4096)
                .filter(|page| page.iter().all(|byte| *byte == 0));
            assert_eq!(report.zero_pages, zero.count() as u64);
            assert_eq!(report.vcpus.len() as u64, machine.vcpus);
            assert!(report.is_right() && report.vcpus.iter().all(|vcpu| vcpu.done == done));
        }
    }
}

#[test]
fn counters_of_another_moment_are_wrong() {
    for machine in machines().filter(|machine| machine.spec.op.name() == "write") {
        let vcpus = machine.vcpus as usize;
        for (done, claimed) in [(50, 51), (50, 49), (50, 0), (0, 1)] {
            let mut ram = machine.after(&vec![done; vcpus], 0);
            ram.set_counters(0, claimed, claimed, 2 * claimed);
            assert!(report(&ram).wrong_count >= 1, "{:?}", machine.spec);
        }
    }
}

#[test]
fn one_write_of_a_vcpu_may_be_half_done() {
    for spec in [
        "pattern=random,bytes=64",
        "pattern=zipf,bytes=page,hot=4K",
        "bytes=8",
    ] {
        for done in [0, 3, 200] {
            let before = Machine::new(spec, 2).after(&[done, done], 0);
            let stream = Stream::vcpu(&before.params, 1);
            let (words, page) = (stream.words(), stream.page(done));
            for stored in (0..=words).step_by(words.div_ceil(8)) {
                let mut ram = Ram {
                    bytes: before.bytes.clone(),
                    parts: before.parts.clone(),
                    devices: vec![],
                    ..before
                };
                ram.set_counters(1, done + 1, done, 2 * done + 1);
                ram.write(&stream, done, stored);
                let half = report(&ram);
                assert_eq!(half.wrong, []);
                assert_eq!(
                    half.half_written_pages,
                    u64::from(stored > 0 && stored < words)
                );

                // Said to be complete, it is not.
                ram.set_counters(1, done + 1, done + 1, 2 * done + 2);
                assert_eq!(
                    report(&ram).wrong_count,
                    u64::from(stored < words),
                    "{spec} {done} {stored}"
                );

                // Said to be not begun, it is not either.
                ram.set_counters(1, done, done, 2 * done);
                assert_eq!(report(&ram).wrong_count, u64::from(stored > 0));

                // A new word behind an old one cannot be.
                if stored + 1 < words {
                    ram.set_counters(1, done + 1, done, 2 * done + 1);
                    let gpa = ram.params.area.gpa(page) + 8 * (words as u64 - 1);
                    ram.put(gpa, stream.content(page, done).word(words - 1));
                    let wrong = report(&ram).wrong;
                    assert_eq!((wrong.len(), wrong[0].page), (1, Some(page)));
                }
            }
            // Another page may not be half written, nor this one by another vCPU.
            if words > 1 {
                let mut ram = Ram {
                    bytes: before.bytes.clone(),
                    parts: before.parts.clone(),
                    devices: vec![],
                    ..before
                };
                ram.set_counters(1, done + 1, done, 2 * done + 1);
                ram.write(&Stream::vcpu(&ram.params, 0), done, 1);
                assert_eq!(report(&ram).wrong_count, 1);
            }
        }
    }
}

#[test]
fn the_words_of_a_half_done_write_belong_to_its_page_only() {
    let mut ram = Machine::new("bytes=page", 1).after(&[200], 0);
    let stream = Stream::vcpu(&ram.params, 0);
    ram.set_counters(0, 201, 200, 401);
    ram.write(&stream, 200, 512);
    assert!(report(&ram).is_right());
    let [from, to] = [200, 201].map(|n| ram.index(ram.params.area.gpa(stream.page(n))));
    ram.bytes.copy_within(from..from + 4096, to);
    assert_eq!(report(&ram).wrong_count, 1);
}

/// RAM in more parts than it has, none of them of whole 2 MiB.
struct Parts(Ram, Vec<(u64, u64)>);

impl Memory for Parts {
    fn ram(&self) -> &[(u64, u64)] {
        &self.1
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read(gpa, buffer)
    }
}

#[test]
fn every_page_of_every_part_is_looked_at() {
    let machine = Machine {
        low_pages: 5000,
        ..Machine::new("", 1)
    };
    let ram = machine.after(&[2000], 0);
    let (whole, low) = (report(&ram), ram.parts[0].1);
    let cuts = [0, 0x3000, 0x34_5000, 0x100_1000, low];
    let mut parts: Vec<_> = cuts
        .windows(2)
        .map(|cut| (cut[0], cut[1] - cut[0]))
        .collect();
    parts.push(ram.parts[1]);
    assert_eq!(check(&Parts(ram, parts), &[]).unwrap(), whole);
}

#[test]
fn the_explanation_tells_old_from_late() {
    let machine = Machine::new("bytes=page,pattern=random", 1);
    let (then, now) = (machine.after(&[400], 0), machine.after(&[600], 0));
    let swap = |mut ram: Ram, from: &Ram| {
        let at = ram.index(AREA_START);
        ram.bytes[at..at + 4096].copy_from_slice(&from.bytes[at..at + 4096]);
        report(&ram).wrong.remove(0).why
    };
    assert!(swap(machine.after(&[600], 0), &then).contains("found the older write"));
    assert!(swap(machine.after(&[400], 0), &now).contains("which came later"));
    assert!(swap(machine.after(&[400], 0), &machine.after(&[0], 0)).contains("found zero"));
}

#[test]
fn a_lost_page_is_found_wherever_it_is() {
    let ram = Machine {
        dma: true,
        ..Machine::new("bytes=64", 2)
    }
    .after(&[300, 310], 50);
    for gpa in (0..AREA_START + 65 * 4096).step_by(4096) {
        let gpa = if gpa < ram.parts[0].1 {
            gpa
        } else {
            gpa - ram.parts[0].1 + (4 << 30)
        };
        let at = ram.index(gpa);
        let was_zero = ram.bytes[at..at + 4096].iter().all(|byte| *byte == 0);
        let mut lost = Ram {
            bytes: ram.bytes.clone(),
            parts: ram.parts.clone(),
            devices: ram.devices.clone(),
            ..ram
        };
        lost.bytes[at..at + 4096].fill(0);
        let found = report(&lost).wrong_count > 0;
        assert_eq!(found, !was_zero, "page {gpa:#x}");
    }
}

#[test]
fn the_used_part_of_a_stack_may_be_anything_and_no_more() {
    let mut ram = Machine::new("", 2).after(&[5, 5], 0);
    let top = STACKS_GPA + 2 * PAGE_BYTES - STACK_GUARD_BYTES;
    for gpa in (top - STACK_WINDOW_BYTES..top).step_by(8) {
        ram.put(gpa, 0xdead);
    }
    assert!(report(&ram).is_right());
    for gpa in [
        top,
        top - STACK_WINDOW_BYTES - 8,
        STACKS_GPA + 2 * PAGE_BYTES,
    ] {
        let mut ram = Machine::new("", 2).after(&[5, 5], 0);
        ram.put(gpa, 0xdead);
        assert_eq!(report(&ram).wrong_count, 1, "{gpa:#x}");
    }
}

#[test]
fn devices_must_be_those_of_the_workload() {
    let ram = Machine {
        dma: true,
        ..Machine::new("", 1)
    }
    .after(&[5], 9);
    assert!(matches!(
        check(&ram, &[]),
        Err(CheckError::MissingDevice { writer: DMA })
    ));
    let direct = DeviceWriter {
        writer: DMA_DIRECT,
        done: 1,
    };
    assert!(matches!(
        check(&ram, &[ram.devices[0], direct]),
        Err(CheckError::UnknownDevice { writer: DMA_DIRECT })
    ));
    for done in [8, 10] {
        let report = check(&ram, &[DeviceWriter { writer: DMA, done }]).unwrap();
        assert_eq!(report.wrong_count, 1);
    }
}

#[test]
fn ram_that_lacks_the_area_is_an_error_and_empty_ram_is_wrong() {
    let mut ram = Machine::new("", 1).after(&[5], 0);
    ram.parts.pop();
    assert!(matches!(
        check(&ram, &[]),
        Err(CheckError::NoRam { gpa: 0x1_0000_0000 })
    ));
    ram.bytes.fill(0);
    assert_eq!(report(&ram).wrong_count, 1);
}

#[test]
fn counters_out_of_all_range_are_reported_not_fatal() {
    for (begun, done) in [
        (u64::MAX, u64::MAX),
        (0, u64::MAX),
        (u64::MAX, u64::MAX - 1),
        (7, 0),
    ] {
        for spec in SPECS {
            let mut ram = Machine::new(spec, 1).after(&[0], 0);
            ram.set_counters(0, begun, done, done.wrapping_mul(2).wrapping_add(1));
            assert!(
                report(&ram).wrong_count >= 1 || spec.contains("read"),
                "{begun} {done} {spec}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_flipped_byte_is_found(
        spec in 0..SPECS.len(), done in 1u64..300, flip in 1u8..,
        place in prop_oneof![
            0u64..AREA_START + 65 * PAGE_BYTES,
            PARAMS_GPA..PARAMS_GPA + 256,
            MAILBOX_GPA..MAILBOX_GPA + 3 * PAGE_BYTES,
            MAILBOX_GPA..MAILBOX_GPA + 160,
            STACKS_GPA..STACKS_GPA + 4 * PAGE_BYTES,
            AREA_START..AREA_START + 65 * PAGE_BYTES,
        ],
    ) {
        let machine = machines().nth(spec).unwrap();
        let dones: Vec<u64> = (0..machine.vcpus).map(|vcpu| done + vcpu).collect();
        let mut ram = machine.after(&dones, done);
        let stacks = STACKS_GPA..STACKS_GPA + machine.vcpus * PAGE_BYTES;
        let top = PAGE_BYTES - STACK_GUARD_BYTES;
        let used = top - STACK_WINDOW_BYTES..top;
        prop_assume!(
            machine.threads || !stacks.contains(&place) || !used.contains(&(place % PAGE_BYTES))
        );
        ram.bytes[place as usize] ^= flip;
        prop_assert!(report(&ram).wrong_count >= 1, "{:?} at {place:#x}", machine.spec);
    }
}
