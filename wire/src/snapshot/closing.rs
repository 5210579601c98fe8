//! Finding the end of the stream from the end of the file.
//!
//! Device bodies carry no length; the description gives it, and stands behind them. So it must
//! be found first: from paguro's trailer, or, in a file without one, by searching back from the
//! end for a VMDESCRIPTION that ends exactly there.

use std::ops::Range;

use crate::input::read;
use crate::stream::description::{DESCRIPTION_MAX_BYTES, Description};
use crate::stream::section::VMDESCRIPTION;
use crate::{DecodeError, ReadAt};

use super::extension::Trailer;

/// Type byte and length.
const FRAME_BYTES: u64 = 5;
const STEP_BYTES: u64 = 64 << 10;
/// Places that look like a description but hold none are few in any honest file.
const CANDIDATES_MAX: u32 = 16;

/// What closes a file.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) description: Description,
    /// The whole VMDESCRIPTION element.
    pub(super) range: Range<u64>,
    pub(super) trailer: Option<Trailer>,
}

impl Closing {
    /// Finds it. Nothing before `start` is looked at.
    pub(super) fn find<R: ReadAt + ?Sized>(
        reader: &R,
        start: u64,
        file_bytes: u64,
    ) -> Result<Self, DecodeError> {
        let trailer = Trailer::find(reader, file_bytes)?;
        let end = trailer.map_or(file_bytes, |trailer| trailer.extension_offset);
        let (description, range) = search(reader, start, end)?;
        Ok(Self {
            description,
            range,
            trailer,
        })
    }
}

fn search<R: ReadAt + ?Sized>(
    reader: &R,
    start: u64,
    end: u64,
) -> Result<(Description, Range<u64>), DecodeError> {
    let lowest = start.max(end.saturating_sub(DESCRIPTION_MAX_BYTES + FRAME_BYTES));
    let mut failure = DecodeError::NoDescription { end };
    let mut candidates = 0;
    let mut upper = end;
    let mut window = Vec::new();
    while upper > lowest {
        // A frame may begin in this step and end in the one before.
        let lower = lowest.max(upper.saturating_sub(STEP_BYTES));
        let window_end = end.min(upper + FRAME_BYTES);
        window.resize((window_end - lower) as usize, 0);
        read(reader, "end of the file", lower, &mut window)?;
        for at in (0..(upper - lower) as usize).rev() {
            let offset = lower + at as u64;
            let Some(json_bytes) = frame_length(&window[at..], end - offset) else {
                continue;
            };
            match decode(reader, offset, json_bytes) {
                Ok(description) => return Ok((description, offset..end)),
                // An error of the host will not go away by searching on.
                Err(error @ DecodeError::Read { .. }) => return Err(error),
                Err(error) => failure = error,
            }
            candidates += 1;
            if candidates == CANDIDATES_MAX {
                return Err(failure);
            }
        }
        upper = lower;
    }
    Err(failure)
}

/// The length of the JSON if `bytes` begin with a description's frame that reaches just
/// `bytes_to_end` far.
fn frame_length(bytes: &[u8], bytes_to_end: u64) -> Option<usize> {
    let [VMDESCRIPTION, a, b, c, d, ..] = *bytes else {
        return None;
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    (u64::from(length) + FRAME_BYTES == bytes_to_end).then_some(length as usize)
}

fn decode<R: ReadAt + ?Sized>(
    reader: &R,
    offset: u64,
    json_bytes: usize,
) -> Result<Description, DecodeError> {
    let mut json = vec![0; json_bytes];
    let offset = offset + FRAME_BYTES;
    read(reader, "VMDESCRIPTION", offset, &mut json)?;
    Description::decode(&json, offset)
}
