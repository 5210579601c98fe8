//! The serial line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::{VmError, config};

/// First I/O port of the line.
pub(crate) const PORT: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const IRQ: u32 = 4;

pub(crate) const SECTION: &str = "paguro/serial";
const VERSION: u32 = 1;

/// Output that could not be written is kept up to here; what comes then is lost.
const KEPT_BYTES: usize = 64 << 10;

/// The interrupt line: an eventfd that KVM listens to.
pub(crate) struct Line(pub(crate) EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 with what is behind it.
pub(crate) type Uart = Serial<Line, NoEvents, Output>;

/// Where the bytes go: written at once, whole or not at all as far as the guest is concerned.
///
/// A write that a kick interrupts is given up and tried again with the next: a vCPU must not be
/// held by a terminal that nobody reads.
pub(crate) struct Output {
    to: Destination,
    pending: VecDeque<u8>,
}

enum Destination {
    Stdout(io::Stdout),
    File(File),
    Nowhere,
}

impl Output {
    pub(crate) fn open(config: &config::Serial) -> Result<Self, VmError> {
        let to = match config {
            config::Serial::Stdio => Destination::Stdout(io::stdout()),
            config::Serial::None => Destination::Nowhere,
            config::Serial::File(path) => {
                Destination::File(File::create(path).map_err(|source| VmError::File {
                    doing: "write the serial line to",
                    path: path.clone(),
                    source,
                })?)
            }
        };
        Ok(Self {
            to,
            pending: VecDeque::new(),
        })
    }

    /// Tries to write what is pending.
    pub(crate) fn drain(&mut self) {
        let to: BorrowedFd<'_> = match &self.to {
            Destination::Stdout(stdout) => stdout.as_fd(),
            Destination::File(file) => file.as_fd(),
            Destination::Nowhere => return self.pending.clear(),
        };
        while !self.pending.is_empty() {
            match rustix::io::write(to, self.pending.as_slices().0) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return,
                Err(error) => {
                    tracing::debug!(%error, "serial output is lost");
                    self.pending.clear();
                }
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = KEPT_BYTES.saturating_sub(self.pending.len());
        self.pending.extend(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain();
        Ok(())
    }
}

pub(crate) fn save(uart: &Uart) -> Result<DeviceSection, DeviceError> {
    let state = uart.state();
    SectionWriter::new(SECTION, 0, VERSION)
        .u8("baud_divisor_low", state.baud_divisor_low)
        .u8("baud_divisor_high", state.baud_divisor_high)
        .u8("interrupt_enable", state.interrupt_enable)
        .u8("interrupt_identification", state.interrupt_identification)
        .u8("line_control", state.line_control)
        .u8("line_status", state.line_status)
        .u8("modem_control", state.modem_control)
        .u8("modem_status", state.modem_status)
        .u8("scratch", state.scratch)
        .buffer("in_buffer", &state.in_buffer)
        .finish()
}

pub(crate) fn load(section: &DeviceSection) -> Result<SerialState, DeviceError> {
    let mut reader = SectionReader::open(section, SECTION, 1..=VERSION)?;
    let state = SerialState {
        baud_divisor_low: reader.u8("baud_divisor_low")?,
        baud_divisor_high: reader.u8("baud_divisor_high")?,
        interrupt_enable: reader.u8("interrupt_enable")?,
        interrupt_identification: reader.u8("interrupt_identification")?,
        line_control: reader.u8("line_control")?,
        line_status: reader.u8("line_status")?,
        modem_control: reader.u8("modem_control")?,
        modem_status: reader.u8("modem_status")?,
        scratch: reader.u8("scratch")?,
        in_buffer: reader.buffer("in_buffer")?.to_vec(),
    };
    let bytes = state.in_buffer.len();
    if bytes > FIFO_BYTES {
        return Err(reader.bad_value("in_buffer", "at most 64 bytes", bytes));
    }
    reader.finish()?;
    Ok(state)
}

const FIFO_BYTES: usize = 64;
