//! Walks all of RAM and compares.

use std::io;

use paguro_guest::ImageError;
use paguro_workload::area::{DMA, DMA_DIRECT};
use paguro_workload::layout::{PAGE_BYTES, PARAMS_GPA};
use paguro_workload::mailbox::{BEGUN, Counters, DONE, MARK};
use paguro_workload::params::PARAMS_BYTES;
use paguro_workload::{Params, ParamsError};

use crate::expectation::{Expectation, Finding, word};
use crate::{DeviceWriter, Memory, Report, VcpuCounters, Wrong};

const PAGE: usize = PAGE_BYTES as usize;

/// RAM is read in steps of this size.
const STEP_BYTES: u64 = 2 << 20;

/// Why RAM could not be checked. Content that is wrong is no error but in the [`Report`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The file or the process could not be read.
    #[error("cannot read guest RAM at {gpa:#x}")]
    Read {
        /// Guest-physical address of the read.
        gpa: u64,
        /// What it gave.
        #[source]
        source: io::Error,
    },
    /// RAM is not made of whole 4 KiB pages.
    #[error("guest RAM of {len:#x} bytes at {gpa:#x} is not made of whole pages")]
    Unaligned {
        /// Guest-physical address of the part.
        gpa: u64,
        /// Its bytes.
        len: u64,
    },
    /// The workload runs on RAM that this picture does not have.
    #[error("the workload writes {gpa:#x}, where this picture has no RAM")]
    NoRam {
        /// The first missing address.
        gpa: u64,
    },
    /// The caller did not pass the counter of a device that writes RAM.
    #[error("device writer {writer} writes this RAM, and its counter was not given")]
    MissingDevice {
        /// The device's writer number.
        writer: u64,
    },
    /// The caller passed the counter of a device that this workload does not have.
    #[error("device writer {writer} is none of this workload's")]
    UnknownDevice {
        /// The device's writer number.
        writer: u64,
    },
    /// What the guest program is cannot be said on this architecture.
    #[error("no expectation for the guest program")]
    Image(#[from] ImageError),
}

/// Compares every page of `memory` with what the counters in it, and those of `devices`, say.
///
/// # Errors
///
/// See [`CheckError`]: RAM that cannot be read, or a question that does not fit it.
pub fn check(memory: &dyn Memory, devices: &[DeviceWriter]) -> Result<Report, CheckError> {
    let mut report = Report::default();
    let params = match read_params(memory)? {
        Ok(params) => params,
        Err(error) => {
            report.pages_checked = 1;
            report.add(wrong_params(error));
            return Ok(report);
        }
    };
    check_fit(memory, &params, devices)?;
    let mut counters = Vec::new();
    for vcpu in 0..params.vcpus {
        let found = read_counters(memory, params.mailbox_of(vcpu))?;
        if !found.are_possible() {
            report.add(wrong_counters(&params, vcpu, &found));
        }
        report.vcpus.push(VcpuCounters {
            begun: found.begun,
            done: found.done,
        });
        counters.push(found);
    }
    report.devices = devices.to_vec();
    let expectation = Expectation::new(params, &counters, devices)?;
    for_each_page(memory, |gpa, page| {
        let zero = is_zero(page);
        report.pages_checked += 1;
        report.zero_pages += u64::from(zero);
        match expectation.check(gpa, page, zero) {
            Finding::Right => {}
            Finding::HalfWritten => report.half_written_pages += 1,
            Finding::Wrong(wrong) => report.add(wrong),
        }
    })?;
    Ok(report)
}

fn read_params(memory: &dyn Memory) -> Result<Result<Params, ParamsError>, CheckError> {
    let page = read_page(memory, PARAMS_GPA)?;
    Ok(match page.first_chunk::<PARAMS_BYTES>() {
        Some(bytes) => Params::from_bytes(bytes),
        None => Err(ParamsError::Missing),
    })
}

fn read_counters(memory: &dyn Memory, gpa: u64) -> Result<Counters, CheckError> {
    let page = read_page(memory, gpa)?;
    Ok(Counters {
        begun: word(&page, BEGUN / 8),
        done: word(&page, DONE / 8),
        mark: word(&page, MARK / 8),
    })
}

fn wrong_params(error: ParamsError) -> Wrong {
    Wrong {
        gpa: PARAMS_GPA,
        page: None,
        offset: 0,
        expected: 0,
        found: 0,
        why: format!("nothing else can be checked: {error}"),
    }
}

fn wrong_counters(params: &Params, vcpu: u64, found: &Counters) -> Wrong {
    Wrong {
        gpa: params.mailbox_of(vcpu),
        page: None,
        offset: DONE as u64,
        expected: found.begun,
        found: found.done,
        why: format!("mailbox of vCPU {vcpu}: no pause leaves {found:?}"),
    }
}

/// Whether RAM has all that the workload uses, and the devices are those of the workload.
fn check_fit(
    memory: &dyn Memory,
    params: &Params,
    devices: &[DeviceWriter],
) -> Result<(), CheckError> {
    let ram = memory.ram();
    for &(gpa, len) in ram {
        if (gpa | len) % PAGE_BYTES != 0 {
            return Err(CheckError::Unaligned { gpa, len });
        }
    }
    for segment in params.area.segments {
        let (mut gpa, end) = (segment.gpa, segment.gpa + segment.pages * PAGE_BYTES);
        while gpa < end {
            let mut parts = ram.iter();
            let part = parts.find(|part| gpa >= part.0 && gpa - part.0 < part.1);
            let &(start, len) = part.ok_or(CheckError::NoRam { gpa })?;
            gpa = start + len;
        }
    }
    for (writer, there) in [(DMA, params.dma), (DMA_DIRECT, params.dma_direct)] {
        if there && !devices.iter().any(|device| device.writer == writer) {
            return Err(CheckError::MissingDevice { writer });
        }
    }
    let known = |writer| writer == DMA && params.dma || writer == DMA_DIRECT && params.dma_direct;
    match devices.iter().find(|device| !known(device.writer)) {
        Some(&DeviceWriter { writer, .. }) => Err(CheckError::UnknownDevice { writer }),
        None => Ok(()),
    }
}

fn for_each_page(
    memory: &dyn Memory,
    mut each: impl FnMut(u64, &[u8; PAGE]),
) -> Result<(), CheckError> {
    let mut buffer = vec![0; STEP_BYTES as usize];
    for &(start, len) in memory.ram() {
        let mut offset = 0;
        while offset < len {
            let gpa = start + offset;
            // Steps end where 2 MiB pages do.
            let bytes = (STEP_BYTES - gpa % STEP_BYTES).min(len - offset);
            let step = &mut buffer[..bytes as usize];
            read(memory, gpa, step)?;
            for (page, at) in step.as_chunks::<PAGE>().0.iter().zip((gpa..).step_by(PAGE)) {
                each(at, page);
            }
            offset += bytes;
        }
    }
    Ok(())
}

fn read_page(memory: &dyn Memory, gpa: u64) -> Result<[u8; PAGE], CheckError> {
    let mut ram = memory.ram().iter();
    if !ram.any(|&(start, len)| gpa >= start && gpa - start < len) {
        return Err(CheckError::NoRam { gpa });
    }
    let mut page = [0; PAGE];
    read(memory, gpa, &mut page)?;
    Ok(page)
}

fn read(memory: &dyn Memory, gpa: u64, buffer: &mut [u8]) -> Result<(), CheckError> {
    memory
        .read(gpa, buffer)
        .map_err(|source| CheckError::Read { gpa, source })
}

fn is_zero(page: &[u8; PAGE]) -> bool {
    let (lines, _) = page.as_chunks::<64>();
    lines
        .iter()
        .all(|line| line.iter().fold(0, |or, byte| or | byte) == 0)
}
