//! What is at which I/O port. Elsewhere, and at every address that is no memory, reads give ones
//! and writes are lost.

use std::io;
use std::sync::Arc;

use paguro_guest::layout::{I8042_RESET, PORT_I8042, PORT_PANIC, PORT_WAIT};
use paguro_sys::Spool;
use parking_lot::{Mutex, MutexGuard};
use vm_superio::serial::{NoEvents, SerialState};

use crate::serial::{Line, Output, PORT, Uart};
use crate::state::ShutdownCause;
use crate::{VmError, config};

const SERIAL_END: u16 = PORT + 8;

/// What a vCPU does after an access.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Goes on.
    Go,
    /// Waits so long, or less.
    Wait {
        /// How long.
        us: u32,
    },
    /// The machine ends.
    End(ShutdownCause, String),
    /// The machine cannot go on.
    Fail(String),
}

pub(super) struct Bus {
    uart: Mutex<Uart>,
}

impl Bus {
    pub(super) fn new(uart: Uart) -> Self {
        Self {
            uart: Mutex::new(uart),
        }
    }

    pub(super) fn serial(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock()
    }

    pub(super) fn write(&self, port: u16, data: &[u8]) -> Next {
        match port {
            PORT..SERIAL_END => {
                let mut uart = self.serial();
                for &byte in data {
                    if let Err(error) = uart.write((port - PORT) as u8, byte) {
                        tracing::debug!(?error, "serial line");
                    }
                }
                Next::Go
            }
            PORT_I8042 if data.contains(&I8042_RESET) => Next::End(
                ShutdownCause::GuestReset,
                "the guest asked for a reset".to_owned(),
            ),
            PORT_WAIT => Next::Wait { us: number(data) },
            PORT_PANIC => Next::End(
                ShutdownCause::GuestPanic,
                format!("the guest cannot go on (code {})", number(data)),
            ),
            _ => Next::Go,
        }
    }

    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            PORT..SERIAL_END => {
                let mut uart = self.serial();
                data.iter_mut()
                    .for_each(|byte| *byte = uart.read((port - PORT) as u8));
            }
            // An i8042 that is always ready and has nothing to say.
            PORT_I8042 => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The way out of the serial line, if it has one: to be waited for without the line.
    pub(super) fn serial_spool(&self) -> Option<Arc<Spool>> {
        self.serial().writer().spool()
    }

    pub(super) fn load_serial(&self, state: &SerialState) -> Result<(), VmError> {
        let mut uart = self.serial();
        let line = uart
            .interrupt_evt()
            .0
            .try_clone()
            .map_err(VmError::host("share an eventfd"))?;
        let nowhere = Output::open(&config::Serial::None)?;
        let out = std::mem::replace(uart.writer_mut(), nowhere);
        *uart = Uart::from_state(state, Line(line), NoEvents, out).map_err(|error| {
            VmError::host("restore the serial line")(io::Error::other(format!("{error:?}")))
        })?;
        Ok(())
    }
}

/// A little-endian number of up to four bytes.
fn number(data: &[u8]) -> u32 {
    data.iter()
        .take(4)
        .rev()
        .fold(0, |number, &byte| number << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    fn bus() -> Bus {
        let line = Line(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        Bus::new(Uart::with_events(
            line,
            NoEvents,
            Output::open(&config::Serial::None).unwrap(),
        ))
    }

    #[test]
    fn ports_do_what_the_guest_expects() {
        let bus = bus();
        let wait = bus.write(0x600, &1000u32.to_le_bytes());
        assert_eq!(wait, Next::Wait { us: 1000 });
        assert!(matches!(
            bus.write(0x64, &[0xfe]),
            Next::End(ShutdownCause::GuestReset, _)
        ));
        assert_eq!(bus.write(0x64, &[0xaa]), Next::Go);
        assert!(matches!(
            bus.write(0x604, &[3, 0, 0, 0]),
            Next::End(ShutdownCause::GuestPanic, _)
        ));
        assert_eq!(bus.write(0x3ff, &[7]), Next::Go);
        let mut byte = [0];
        bus.read(0x3ff, &mut byte);
        assert_eq!(byte, [7]);
        bus.read(0x400, &mut byte);
        assert_eq!(byte, [0xff]);
        bus.read(0x3fd, &mut byte);
        assert_eq!(byte[0] & 0x60, 0x60, "the transmitter is empty");
    }
}
