//! The serial line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_sys::Spool;
use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};
use rustix::fs::OFlags;
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

/// Output that is not written yet is kept up to here; what comes then is lost.
const KEPT_BYTES: usize = 64 << 10;

/// Between two warnings of lost output.
const QUIET: Duration = Duration::from_secs(10);

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

/// Where the bytes go, by way of a thread that waits where there is to be waited: a guest must not
/// stand still because nobody reads its console, or because the disk under it is slow.
///
/// The line is always ready for more, so a guest never waits for it either; of one that says more
/// than is taken, something is lost. Lost bytes are counted, and warned of by whoever loses them, now
/// and then.
pub(crate) struct Output {
    spool: Option<Arc<Spool>>,
    /// Lost bytes that were warned of, and when.
    told: (u64, Option<Instant>),
}

impl Output {
    pub(crate) fn open(config: &config::Serial) -> Result<Self, VmError> {
        let to = match config {
            config::Serial::Stdio => Some(
                io::stdout()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(VmError::host("use standard output"))?,
            ),
            config::Serial::None => None,
            config::Serial::File(path) => {
                let file = open_at_end(path).map_err(|source| VmError::File {
                    doing: "write the serial line to",
                    path: path.clone(),
                    source,
                })?;
                Some(OwnedFd::from(file))
            }
        };
        let spool = to
            .map(|to| Spool::start("serial", to, KEPT_BYTES))
            .transpose()
            .map_err(VmError::host("start the serial line's thread"))?;
        Ok(Self {
            spool: spool.map(Arc::new),
            told: (0, None),
        })
    }

    /// The way out, if they go anywhere.
    pub(crate) fn spool(&self) -> Option<Arc<Spool>> {
        self.spool.clone()
    }

    fn warn(&mut self, lost: u64) {
        let (told, at) = self.told;
        if lost == told || at.is_some_and(|at| at.elapsed() < QUIET) {
            return;
        }
        self.told = (lost, Some(Instant::now()));
        tracing::warn!(
            lost_bytes = lost,
            "serial output is lost: nobody takes it, or it cannot be written"
        );
    }
}

/// Opens a file to write at its end, wherever that is when something is written: what it has stays,
/// also if it is another process's, and one that is cut back meanwhile, as by a rotation of logs,
/// gets no hole.
///
/// A pipe need not have a reader yet, and may lose it and get another; a terminal does not become
/// that of the process.
fn open_at_end(path: &Path) -> io::Result<File> {
    let is_pipe = path.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options
        .read(is_pipe)
        .append(true)
        .create(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(spool) = &self.spool {
            spool.put(bytes);
            let lost = spool.counts().lost_bytes;
            self.warn(lost);
        }
        Ok(bytes.len())
    }

    /// What is put is on its way.
    fn flush(&mut self) -> io::Result<()> {
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
