//! The serial line, and those who do not read it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use paguro_vmm::ShutdownCause;

use crate::boot::Kernel;
use crate::common::*;

/// 32-bit code that says so many bytes and asks for a reset.
fn loud(bytes: u32) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.push(0xb9); // mov ecx, bytes
    code.extend(bytes.to_le_bytes());
    code.extend([0xb0, 0x78]); // mov al, 'x'
    code.push(0xee); // next: out dx, al
    code.extend([0xe2, 0xfd]); // loop next
    code.extend([0xb0, 0xfe]); // mov al, 0xfe
    code.extend([0xe6, 0x64]); // out 0x64, al
    code.push(0xf4); // hlt
    code
}

/// 32-bit code that says A, waits until the byte at 2 MiB is set, says B and asks for a reset.
const TWICE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x41, // mov al, 'A'
    0xee, // out dx, al
    0xbe, 0x00, 0x00, 0x20, 0x00, // mov esi, 0x200000
    0x80, 0x3e, 0x00, // again: cmp byte [esi], 0
    0x74, 0xfb, // je again
    0xb0, 0x42, // mov al, 'B'
    0xee, // out dx, al
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// Opened both ways, which waits for nobody.
fn open_pipe(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_guest_whose_console_nobody_reads_runs_on() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    const BYTES: u32 = 80_000;
    let kernel = Kernel::new("loud", &loud(BYTES), true);
    make_pipe(&kernel.serial());
    let mut reader = open_pipe(&kernel.serial());
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let vm = start(&kernel.config(""));
    wait_until("the guest is through", || vm.ended().is_some());
    assert_eq!(vm.wait_ended().cause, ShutdownCause::GuestReset);
    let now = vm.serial_counts();
    assert!(now.lost_bytes > 0, "{now:?}");
    // What fits was kept, and who begins to read gets it.
    let kept = u64::from(BYTES) - now.lost_bytes;
    assert!(kept >= 64 << 10, "{now:?}");
    let mut said = vec![0; kept as usize];
    reader.read_exact(&mut said).unwrap();
    assert!(said.iter().all(|byte| *byte == b'x'));
    assert!(vm.flush_serial(IN_VAIN));
    let now = vm.serial_counts();
    assert_eq!(now.written_bytes, kept);
    assert_eq!(now.written_bytes + now.lost_bytes, u64::from(BYTES));
}

#[test]
fn a_pipe_may_get_its_reader_later() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    const BYTES: u32 = 100;
    let kernel = Kernel::new("later", &loud(BYTES), true);
    make_pipe(&kernel.serial());
    let vm = start(&kernel.config(""));
    wait_until("the guest is through", || vm.ended().is_some());
    let mut said = [0; BYTES as usize];
    open_pipe(&kernel.serial()).read_exact(&mut said).unwrap();
    assert_eq!(said, [b'x'; BYTES as usize]);
}

#[test]
fn a_disk_that_is_full_costs_the_guest_its_output_only() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    const BYTES: u32 = 5000;
    let kernel = Kernel::new("full", &loud(BYTES), true);
    std::os::unix::fs::symlink("/dev/full", kernel.serial()).unwrap();
    let vm = start(&kernel.config(""));
    wait_until("the guest is through", || vm.ended().is_some());
    assert!(vm.flush_serial(IN_VAIN));
    let now = vm.serial_counts();
    assert_eq!((now.written_bytes, now.lost_bytes), (0, u64::from(BYTES)));
}

#[test]
fn a_serial_file_keeps_what_it_has_and_gets_no_hole() {
    if !kvm() {
        return;
    }
    let _turn = turn();
    let kernel = Kernel::new("twice", TWICE, true);
    std::fs::write(kernel.serial(), "before ").unwrap();
    let vm = start(&kernel.config(""));
    let said = || std::fs::read_to_string(kernel.serial()).unwrap();
    wait_until("the guest has spoken", || said() == "before A");
    // As a rotation of logs does it that copies and truncates.
    File::options()
        .write(true)
        .truncate(true)
        .open(kernel.serial())
        .unwrap();
    vm.guest_ram().blocks()[0].mapping().copy_in(2 << 20, &[1]);
    wait_until("the guest is through", || vm.ended().is_some());
    assert!(vm.flush_serial(IN_VAIN));
    assert_eq!(said(), "B");
}
