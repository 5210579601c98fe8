//! What begins a command from the source to the destination: `08`, `u16` number, `u16` length. See
//! [`order`](super::order) for what follows.

use crate::DecodeError;
use crate::input::Input;

/// A command's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// The destination may now write to the return path.
    OpenReturnPath = 1,
    /// To be answered by a PONG of the same value.
    Ping = 2,
    /// Postcopy may follow.
    PostcopyAdvise = 3,
    /// The destination is to serve faults from now on.
    PostcopyListen = 4,
    /// The destination is to run.
    PostcopyRun = 5,
    /// Ranges that the destination must forget.
    PostcopyRamDiscard = 6,
    /// A nested stream follows.
    Packaged = 7,
    /// COLO, not supported here.
    EnableColo = 8,
    /// A postcopy goes on over new channels.
    PostcopyResume = 9,
    /// The received bitmap of a block is asked for.
    ReceivedBitmap = 10,
    /// The source has stopped.
    SwitchoverStart = 11,
    /// paguro's own: forget it, the source runs on. A stock QEMU refuses it and ends, which is what
    /// it is for.
    Forget = 0x5067,
}

impl Command {
    /// The command of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::OpenReturnPath,
            2 => Self::Ping,
            3 => Self::PostcopyAdvise,
            4 => Self::PostcopyListen,
            5 => Self::PostcopyRun,
            6 => Self::PostcopyRamDiscard,
            7 => Self::Packaged,
            8 => Self::EnableColo,
            9 => Self::PostcopyResume,
            10 => Self::ReceivedBitmap,
            11 => Self::SwitchoverStart,
            0x5067 => Self::Forget,
            _ => return None,
        })
    }
}

/// What stands before a command's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandHeader {
    /// What is to be done.
    pub command: Command,
    /// The bytes of the payload.
    pub payload_bytes: u16,
}

impl CommandHeader {
    /// Appends the header with its type byte.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(super::section::COMMAND);
        out.extend_from_slice(&(self.command as u16).to_be_bytes());
        out.extend_from_slice(&self.payload_bytes.to_be_bytes());
    }

    /// Decodes what follows the type byte.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for a number that no command has.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let number = input.u16("command")?;
        let payload_bytes = input.u16("command")?;
        let command = Command::from_number(number).ok_or_else(|| {
            DecodeError::unsupported("command", offset, number, "1 to 11, 0x5067")
        })?;
        Ok(Self {
            command,
            payload_bytes,
        })
    }
}
