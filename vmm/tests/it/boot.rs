//! How a machine begins.

use std::path::PathBuf;
use std::time::Duration;

use paguro_migration::machine::{Machine, Stay};
use paguro_vmm::{Accel, Config, Serial, ShutdownCause, Vm, VmError};

use crate::common::*;

/// A file that goes with its owner.
pub struct Kernel(PathBuf);

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.serial());
    }
}

impl Kernel {
    /// An ELF file with `code` at 1 MiB, and a PVH note that names it unless `note` is false.
    pub fn new(name: &str, code: &[u8], note: bool) -> Self {
        const AT: u64 = 0x10_0000;
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let header = |kind: u32, offset: u64, gpa: u64, bytes: u64| {
            let mut header = Vec::new();
            header.extend(kind.to_le_bytes());
            header.extend(5u32.to_le_bytes());
            for value in [offset, gpa, gpa, bytes, bytes, 4] {
                header.extend(value.to_le_bytes());
            }
            header
        };
        elf.extend(2u16.to_le_bytes());
        elf.extend(62u16.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        elf.extend(AT.to_le_bytes());
        elf.extend(64u64.to_le_bytes());
        elf.extend(0u64.to_le_bytes());
        elf.extend(0u32.to_le_bytes());
        for value in [64u16, 56, if note { 2 } else { 1 }, 0, 0, 0] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(header(1, 0x200, AT, code.len() as u64));
        elf.extend(header(4, 0x180, 0, 20));
        elf.resize(0x180, 0);
        for value in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), AT as u32] {
            elf.extend(value.to_le_bytes());
        }
        elf.resize(0x200, 0);
        elf.extend(code);
        let path = std::env::temp_dir().join(format!("paguro-vmm-{}-{name}", std::process::id()));
        std::fs::write(&path, elf).unwrap();
        Self(path)
    }

    pub fn serial(&self) -> PathBuf {
        self.0.with_extension("serial")
    }

    pub fn config(&self, cmdline: &str) -> Config {
        Config {
            kernel: Some(self.0.clone()),
            cmdline: cmdline.to_owned(),
            serial: Serial::File(self.serial()),
            ..config(Accel::Kvm, 1)
        }
    }
}

/// 32-bit code that writes its command line to the serial line and asks for a reset.
const ECHO: &[u8] = &[
    0x8b, 0x73, 0x18, // mov esi, [ebx + 24]: the command line
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x8a, 0x06, // next: mov al, [esi]
    0x46, // inc esi
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz end
    0xee, // out dx, al
    0xeb, 0xf6, // jmp next
    0xb0, 0xfe, // end: mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

#[test]
fn a_kernel_gets_its_command_line() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let kernel = Kernel::new("echo", ECHO, true);
    let vm = start(&kernel.config("console=ttyS0 answer=42"));
    let end = vm.wait_ended();
    assert_eq!(end.cause, ShutdownCause::GuestReset, "{end:?}");
    assert!(vm.flush_serial(IN_VAIN));
    assert_eq!(
        std::fs::read_to_string(kernel.serial()).unwrap(),
        "console=ttyS0 answer=42"
    );
}

#[test]
fn a_triple_fault_is_an_error() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    // No interrupt descriptor table, and an instruction that does not exist.
    let crash = [0x0f, 0x01, 0x1d, 0x00, 0x00, 0x20, 0x00, 0x0f, 0x0b];
    let kernel = Kernel::new("crash", &crash, true);
    let vm = start(&kernel.config(""));
    let end = vm.wait_ended();
    assert_eq!(end.cause, ShutdownCause::GuestPanic, "{end:?}");
    assert!(end.cause.is_error());
}

#[test]
fn a_guest_that_panics_is_an_error() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let panic = [0x66, 0xba, 0x04, 0x06, 0xb8, 7, 0, 0, 0, 0xef, 0xf4];
    let kernel = Kernel::new("panic", &panic, true);
    let end = start(&kernel.config("")).wait_ended();
    assert_eq!(end.cause, ShutdownCause::GuestPanic, "{end:?}");
    assert!(end.detail.unwrap().contains("code 7"));
}

#[test]
fn where_there_is_nothing_reads_give_ones() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let code = [
        0xb8, 0x00, 0x00, 0x00, 0xe0, // mov eax, 0xe0000000
        0xc7, 0x00, 0x12, 0x34, 0x56, 0x78, // mov dword [eax], 0x78563412
        0x8a, 0x08, // mov cl, [eax]
        0xe4, 0x70, // in al, 0x70
        0x20, 0xc8, // and al, cl
        0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
        0x0f, 0xb6, 0xc0, // movzx eax, al
        0xef, // out dx, eax
    ];
    let kernel = Kernel::new("holes", &code, true);
    let end = start(&kernel.config("")).wait_ended();
    assert!(
        end.detail
            .as_ref()
            .is_some_and(|detail| detail.contains("code 255")),
        "{end:?}"
    );
}

#[test]
fn what_cannot_be_booted_is_refused_by_name() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let plain = Kernel::new("plain", ECHO, false);
    let boot = |config: &Config| create(config).boot().unwrap_err();
    let error = boot(&plain.config(""));
    assert!(error.to_string().contains("PVH"), "{error}");
    let text = Kernel::new("text", ECHO, true);
    std::fs::write(&text.0, "#!/bin/sh\n").unwrap();
    assert!(matches!(boot(&text.config("")), VmError::Kernel { .. }));
    let gone = Config {
        kernel: Some("/nonexistent".into()),
        ..config(Accel::Kvm, 1)
    };
    assert!(matches!(boot(&gone), VmError::File { .. }));
    let long = Kernel::new("long", ECHO, true);
    assert!(matches!(
        boot(&long.config(&"x".repeat(1 << 20))),
        VmError::Kernel { .. }
    ));
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let kernel = || Some(PathBuf::from("vmlinux"));
    let threads = config(Accel::Threads, 1);
    for config in [
        Config {
            kernel: kernel(),
            ..threads.clone()
        },
        Config {
            kernel: kernel(),
            ..with_dma(config(Accel::Kvm, 1), false)
        },
        Config {
            cpus: 0,
            ..threads.clone()
        },
        Config {
            cpus: 65,
            ..threads.clone()
        },
    ] {
        let memory = memory(ram(&config));
        assert!(matches!(
            Vm::create(config, memory),
            Err(VmError::Config(_))
        ));
    }
    let other = Config {
        memory_bytes: 20 << 20,
        ..threads.clone()
    };
    assert!(matches!(
        Vm::create(other, memory(ram(&threads))),
        Err(VmError::Config(_))
    ));
}

#[test]
fn other_vcpus_of_a_kernel_wait_to_be_woken_and_can_be_paused() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    // Halts with interrupts off: runs for ever without an exit.
    let kernel = Kernel::new("halt", &[0xf4, 0xeb, 0xfd], true);
    let config = Config {
        cpus: 2,
        ..kernel.config("")
    };
    let vm = start(&config);
    for _ in 0..20 {
        vm.stop().unwrap();
        vm.cont().unwrap();
    }
    let picture = take(&vm);
    let again = picture.copy_ram(&config);
    again.load_devices(&picture.devices).unwrap();
    again.start().unwrap();
    again.stop().unwrap();
}

/// 32-bit code that sends itself bytes through the serial line, counts them at 2 MiB, and gives up
/// if one is lost or comes twice.
const LOOPBACK: &[u8] = &[
    0x66, 0xba, 0xfc, 0x03, // mov dx, 0x3fc: modem control
    0xb0, 0x10, // mov al, 0x10: loopback
    0xee, // out dx, al
    0x31, 0xc9, // xor ecx, ecx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x41, // next: inc ecx
    0x88, 0xc8, // mov al, cl
    0xee, // out dx, al
    0xec, // in al, dx
    0x89, 0x0d, 0x00, 0x00, 0x20, 0x00, // mov [0x200000], ecx
    0x38, 0xc8, // cmp al, cl
    0x74, 0xf1, // je next
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0xef, // out dx, eax
];

#[test]
fn an_access_that_a_picture_interrupts_is_made_once() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let kernel = Kernel::new("loopback", LOOPBACK, true);
    let config = kernel.config("");
    let mut vm = start(&config);
    for round in 0..20 {
        let counted = |vm: &Vm| {
            let mut bytes = [0; 4];
            vm.guest_ram().blocks()[0]
                .mapping()
                .copy_out(2 << 20, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let before = counted(&vm);
        wait_until("the guest counts", || {
            assert_eq!(vm.ended(), None, "round {round}");
            counted(&vm) > before + 20
        });
        let picture = take_and_stay(&vm);
        vm = picture.copy_ram(&config);
        vm.load_devices(&picture.devices).unwrap();
        vm.start().unwrap();
    }
}

fn take_and_stay(vm: &Vm) -> Picture {
    let mut paused = vm.pause().unwrap();
    let picture = take_paused(vm, &mut *paused);
    paused.stay(Stay::Stopped);
    drop(paused);
    picture
}

/// KVM gives up making a VM for any signal.
#[test]
fn machines_are_made_whatever_signals_come() {
    let _turn = turn();
    if !kvm() {
        return;
    }
    let pause = Duration::from_micros(500);
    let create = || drop(create(&config(Accel::Kvm, 1)));
    signalled(pause, move || (0..40).for_each(|_| create()));
}
