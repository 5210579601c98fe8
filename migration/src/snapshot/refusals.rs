//! What is refused, before anything is touched.

use std::sync::Arc;

use paguro_faults::{Faults, FaultsError};
use paguro_ram::{Backing, PageKind, RamBlock};
use paguro_sys::{Host, Userfault, page_size};

use crate::machine::{Machine, WriterClass};
use crate::{SnapshotError, SnapshotOptions};

/// Refuses options that make no sense.
pub(super) fn check(options: &SnapshotOptions) -> Result<(), SnapshotError> {
    let chunk = options.chunk_bytes;
    if !chunk.is_power_of_two() || !(page_size()..=2 << 20).contains(&chunk) {
        return Err(SnapshotError::Option {
            option: "the chunk size",
            value: chunk as u64,
            rule: "a power of two from one page to 2 MiB",
        });
    }
    if !(1..=256).contains(&options.threads) {
        return Err(SnapshotError::Option {
            option: "the number of threads that save",
            value: options.threads as u64,
            rule: "1 to 256",
        });
    }
    Ok(())
}

/// Refuses what cannot be frozen, before anything is touched.
pub(super) fn watch(machine: &dyn Machine) -> Result<Arc<Faults>, SnapshotError> {
    let unseen = machine
        .writers()
        .into_iter()
        .find(|writer| writer.class == WriterClass::Unseen);
    if let Some(writer) = unseen {
        return Err(SnapshotError::UnseenWriter {
            writer: writer.name,
        });
    }
    let host = machine.memory().host();
    let faults = machine.memory().faults();
    let faults = faults.map_err(SnapshotError::CannotFreeze)?;
    check_host(machine, &host)?;
    Ok(faults)
}

/// Whether this host could freeze the machine's RAM now. Who writes it is not asked, as that may change
/// until a snapshot begins; and nothing stays open.
///
/// # Errors
///
/// Why not, as a snapshot would fail: [`CannotFreeze`](SnapshotError::CannotFreeze),
/// [`NoKernelFaults`](SnapshotError::NoKernelFaults), [`NoWriteProtect`](SnapshotError::NoWriteProtect).
pub fn check_can_freeze(machine: &dyn Machine) -> Result<(), SnapshotError> {
    let host = machine.memory().host();
    if host.userfault == Userfault::None {
        // Only the attempt says why.
        let opened = host.open_uffd().map_err(FaultsError::Open);
        opened.map_err(SnapshotError::CannotFreeze)?;
    }
    check_host(machine, &host)
}

fn check_host(machine: &dyn Machine, host: &Host) -> Result<(), SnapshotError> {
    if host.userfault != Userfault::Full && machine.faults_in_kernel() {
        return Err(SnapshotError::NoKernelFaults);
    }
    if !host.can_freeze() {
        return Err(SnapshotError::NoWriteProtect {
            memory: "anonymous memory",
        });
    }
    let shared = |block: &Arc<RamBlock>| {
        block.backing() == Backing::Memfd || block.page_kind() == PageKind::Huge
    };
    let ram = machine.memory().ram();
    if ram.blocks().iter().any(shared) && !host.can_freeze_shared() {
        return Err(SnapshotError::NoWriteProtect {
            memory: "shared memory",
        });
    }
    Ok(())
}
