//! Commands from the source to the destination: `08`, `u16` number, `u16` length, payload.
//!
//! | | | payload |
//! |---|---|---|
//! | 1 | OPEN_RETURN_PATH | |
//! | 2 | PING | `u32` |
//! | 3 | POSTCOPY_ADVISE | `u64` all host page sizes, `u64` target page size; or nothing |
//! | 4 | POSTCOPY_LISTEN | |
//! | 5 | POSTCOPY_RUN | |
//! | 6 | POSTCOPY_RAM_DISCARD | `u8` 0, `str8` block, `u8` 0, (`u64` start, `u64` length) x n |
//! | 7 | PACKAGED | `u32` length of a nested stream, which follows the command |
//! | 8 | ENABLE_COLO | |
//! | 9 | POSTCOPY_RESUME | |
//! | 10 | RECV_BITMAP | `str8` block |
//! | 11 | SWITCHOVER_START | |
//! | 0x5067 | paguro's own: forget it, the source runs on | |

use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

use super::command::{Command, CommandHeader};
use super::devices::DEVICES_MAX_BYTES;
use super::put_str8;

/// The longest nested stream of PACKAGED: the device sections and what is around them.
pub const PACKAGED_MAX_BYTES: u32 = DEVICES_MAX_BYTES as u32 + (4 << 20);

/// A command with its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// The destination may now write to the return path.
    OpenReturnPath,
    /// To be answered by a PONG of the same value.
    Ping(u32),
    /// Postcopy may follow; the sizes of pages, unless it is of dirty bitmaps only.
    PostcopyAdvise(Option<PageSizes>),
    /// The destination is to serve faults from now on.
    PostcopyListen,
    /// The destination is to run.
    PostcopyRun,
    /// Ranges of a block that the destination must forget.
    PostcopyRamDiscard {
        /// The block.
        block: String,
        /// Start and length of each range in bytes: whole pages.
        ranges: Vec<(u64, u64)>,
    },
    /// A nested stream of so many bytes follows.
    Packaged {
        /// Its length.
        bytes: u32,
    },
    /// COLO, not supported here.
    EnableColo,
    /// A postcopy goes on over new channels.
    PostcopyResume,
    /// The received bitmap of a block is asked for.
    ReceivedBitmap {
        /// The block.
        block: String,
    },
    /// The source has stopped.
    SwitchoverStart,
    /// Forget it: the source runs on.
    Forget,
}

/// The sizes of pages that both sides of a postcopy must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSizes {
    /// Those of all blocks on the host, each a bit.
    pub host_bytes: u64,
    /// That of the target.
    pub target_bytes: u64,
}

impl Order {
    /// The command.
    pub fn command(&self) -> Command {
        match self {
            Self::OpenReturnPath => Command::OpenReturnPath,
            Self::Ping(_) => Command::Ping,
            Self::PostcopyAdvise(_) => Command::PostcopyAdvise,
            Self::PostcopyListen => Command::PostcopyListen,
            Self::PostcopyRun => Command::PostcopyRun,
            Self::PostcopyRamDiscard { .. } => Command::PostcopyRamDiscard,
            Self::Packaged { .. } => Command::Packaged,
            Self::EnableColo => Command::EnableColo,
            Self::PostcopyResume => Command::PostcopyResume,
            Self::ReceivedBitmap { .. } => Command::ReceivedBitmap,
            Self::SwitchoverStart => Command::SwitchoverStart,
            Self::Forget => Command::Forget,
        }
    }

    /// Appends the command with its type byte. Names must not be longer than
    /// [`NAME_MAX_BYTES`](crate::NAME_MAX_BYTES), ranges not more than 4000.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let command = self.command();
        CommandHeader {
            command,
            payload_bytes: 0,
        }
        .encode(out);
        let payload = out.len();
        match self {
            Self::Ping(value) | Self::Packaged { bytes: value } => {
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::PostcopyAdvise(Some(sizes)) => {
                out.extend_from_slice(&sizes.host_bytes.to_be_bytes());
                out.extend_from_slice(&sizes.target_bytes.to_be_bytes());
            }
            Self::PostcopyRamDiscard { block, ranges } => {
                out.push(0);
                put_str8(out, block);
                out.push(0);
                for (start, length) in ranges {
                    out.extend_from_slice(&start.to_be_bytes());
                    out.extend_from_slice(&length.to_be_bytes());
                }
            }
            Self::ReceivedBitmap { block } => put_str8(out, block),
            _ => {}
        }
        let payload_bytes = out.len() - payload;
        debug_assert!(payload_bytes <= usize::from(u16::MAX));
        out[begin + 3..payload].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
    }

    /// Decodes what follows the type byte.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for a number that no command has; [`DecodeError::Corrupt`]
    /// for a length that is not the command's and for ranges that are not whole pages;
    /// [`DecodeError::Limit`] for a nested stream above [`PACKAGED_MAX_BYTES`].
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let header = CommandHeader::decode(input)?;
        let length = usize::from(header.payload_bytes);
        let exactly = |expected: usize| {
            if length == expected {
                Ok(())
            } else {
                Err(wrong_length(offset, header, format!("{expected} bytes")))
            }
        };
        let empty = |order: Self| exactly(0).map(|()| order);
        match header.command {
            Command::OpenReturnPath => empty(Self::OpenReturnPath),
            Command::PostcopyListen => empty(Self::PostcopyListen),
            Command::PostcopyRun => empty(Self::PostcopyRun),
            Command::EnableColo => empty(Self::EnableColo),
            Command::PostcopyResume => empty(Self::PostcopyResume),
            Command::SwitchoverStart => empty(Self::SwitchoverStart),
            Command::Forget => empty(Self::Forget),
            Command::Ping => {
                exactly(4)?;
                Ok(Self::Ping(input.u32("PING")?))
            }
            Command::Packaged => {
                exactly(4)?;
                let offset = input.offset();
                let bytes = input.u32("PACKAGED")?;
                let limit = u64::from(PACKAGED_MAX_BYTES);
                DecodeError::check_limit("length of PACKAGED", offset, u64::from(bytes), limit)?;
                Ok(Self::Packaged { bytes })
            }
            Command::PostcopyAdvise if length == 0 => Ok(Self::PostcopyAdvise(None)),
            Command::PostcopyAdvise => {
                exactly(16)?;
                Ok(Self::PostcopyAdvise(Some(PageSizes {
                    host_bytes: input.u64("POSTCOPY_ADVISE")?,
                    target_bytes: input.u64("POSTCOPY_ADVISE")?,
                })))
            }
            Command::ReceivedBitmap => {
                let block = block_name(input)?;
                exactly(1 + block.len())?;
                Ok(Self::ReceivedBitmap { block })
            }
            Command::PostcopyRamDiscard => discard(input, offset, header),
        }
    }
}

fn wrong_length(offset: u64, header: CommandHeader, expected: String) -> DecodeError {
    let found = format!("{} bytes for {:?}", header.payload_bytes, header.command);
    DecodeError::corrupt("length of a command", offset, expected, found)
}

fn block_name<I: Input>(input: &mut I) -> Result<String, DecodeError> {
    const WHAT: &str = "RAM block's name";
    let offset = input.offset();
    let name = input.str8(WHAT)?;
    if name.is_empty() {
        Err(DecodeError::corrupt(WHAT, offset, "a name", "none"))
    } else {
        Ok(name)
    }
}

fn discard<I: Input>(
    input: &mut I,
    offset: u64,
    header: CommandHeader,
) -> Result<Order, DecodeError> {
    const WHAT: &str = "POSTCOPY_RAM_DISCARD";
    let length = usize::from(header.payload_bytes);
    let version = input.u8(WHAT)?;
    let block = block_name(input)?;
    let zero = input.u8(WHAT)?;
    if version != 0 || zero != 0 {
        let found = format!("version {version}, {zero} behind the name");
        return Err(DecodeError::unsupported(
            WHAT,
            offset,
            found,
            "version 0, 0 behind the name",
        ));
    }
    let before = 1 + 1 + block.len() + 1;
    let Some(ranges_bytes) = length.checked_sub(before).filter(|bytes| bytes % 16 == 0) else {
        let expected = format!("{before} bytes and 16 for each range");
        return Err(wrong_length(offset, header, expected));
    };
    let mut ranges = Vec::with_capacity(ranges_bytes / 16);
    for _ in 0..ranges_bytes / 16 {
        let at = input.offset();
        let (start, bytes) = (input.u64(WHAT)?, input.u64(WHAT)?);
        let pages = (start | bytes).is_multiple_of(PAGE_BYTES);
        if !pages || bytes == 0 || start.checked_add(bytes).is_none() {
            let found = format!("{bytes:#x} bytes at {start:#x}");
            return Err(DecodeError::corrupt(
                "range to discard",
                at,
                "whole pages",
                found,
            ));
        }
        ranges.push((start, bytes));
    }
    Ok(Order::PostcopyRamDiscard { block, ranges })
}
