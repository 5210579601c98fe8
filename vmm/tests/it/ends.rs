//! How a machine ends.

use std::path::Path;

use paguro_vmm::{Config, Event, Serial, ShutdownCause};

use crate::common::*;

fn temporary(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("paguro-vmm-{}-{name}", std::process::id()))
}

struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

#[test]
fn a_guest_that_is_through_resets_the_machine() {
    let _turn = turn();
    for accel in accels() {
        let vm = create(&Config {
            workload: "rate=unlimited,writes=5000".parse().unwrap(),
            ..config(accel, 1)
        });
        let events = vm.subscribe();
        vm.boot().unwrap();
        vm.start().unwrap();
        let end = vm.wait_ended();
        assert_eq!(end.cause, ShutdownCause::GuestReset);
        assert!(!end.cause.is_error());
        assert_eq!(writes(&vm), [5000]);
        let shutdown = Event::Shutdown {
            guest: true,
            reason: ShutdownCause::GuestReset,
        };
        assert_eq!(events.try_iter().last(), Some(shutdown));
        assert!(vm.cont().is_err());
    }
}

#[test]
fn a_guest_says_hello_on_the_serial_line() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let path = temporary("serial");
    let _removed = Removed(&path);
    let vm = start(&Config {
        serial: Serial::File(path.clone()),
        ..config(paguro_vmm::Accel::Kvm, 2)
    });
    wait_writes(&vm, 1);
    assert!(vm.flush_serial(IN_VAIN));
    let said = std::fs::read_to_string(&path).unwrap();
    assert!(
        said.starts_with("paguro guest: vcpu 0 of 2, pattern random"),
        "{said:?}"
    );
}

#[test]
fn progress_can_be_seen_from_outside() {
    let _turn = turn();
    for accel in accels() {
        let path = temporary("progress");
        let _removed = Removed(&path);
        let vm = start(&Config {
            progress: Some(path.clone()),
            ..config(accel, 2)
        });
        wait_writes(&vm, 100);
        vm.stop().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 2 * paguro_workload::progress::PROGRESS_BYTES);
        for (vcpu, writes) in writes(&vm).into_iter().enumerate() {
            let at = vcpu * paguro_workload::progress::PROGRESS_BYTES;
            assert_eq!(bytes[at..at + 8], writes.to_ne_bytes());
        }
    }
}

#[test]
fn a_machine_that_is_dropped_is_gone() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&with_dma(config(accel, 2), true));
        let ram = vm.guest_ram().clone();
        wait_writes(&vm, 10);
        drop(vm);
        let block = &ram.blocks()[0];
        let (mut one, mut other) = (vec![0; block.used_bytes()], vec![0; block.used_bytes()]);
        block.mapping().copy_out(0, &mut one);
        std::thread::yield_now();
        block.mapping().copy_out(0, &mut other);
        assert!(one == other);
        // Whoever held a part of the machine has let it go: the threads are gone.
        wait_until("threads let go of RAM", || {
            std::sync::Arc::strong_count(block) == 1
        });
    }
}
