//! The parameters as bytes in RAM.

use super::{Params, ParamsError, VERSION, in_range};
use crate::area::{Area, MAX_SEGMENTS, Segment};
use crate::mix::{SPREAD, mix2};
use crate::spec::{Bytes, Op, Pattern};

const MAGIC: u64 = u64::from_le_bytes(*b"paguroWL");
pub(super) const WORDS: usize = 16 + 2 * MAX_SEGMENTS + 1;

/// Size of the block.
pub const PARAMS_BYTES: usize = WORDS * 8;

const FLAG_THREADS: u64 = 1;
const FLAG_DMA: u64 = 2;
const FLAG_DMA_DIRECT: u64 = 4;

impl Params {
    /// The block as it lies in RAM.
    pub fn to_bytes(&self) -> [u8; PARAMS_BYTES] {
        let mut words = [0; WORDS];
        let flags = [
            (self.threads, FLAG_THREADS),
            (self.dma, FLAG_DMA),
            (self.dma_direct, FLAG_DMA_DIRECT),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag);
        words[..16].copy_from_slice(&[
            MAGIC,
            VERSION,
            flags.sum(),
            self.seed,
            self.vcpus,
            self.pattern.number(),
            self.rate_pages_per_s,
            self.bytes.number(),
            self.op.number(),
            self.ticks_per_s,
            self.hot_pages,
            self.gap_threshold_ticks,
            self.progress_gpa,
            self.mailbox_gpa,
            self.mapped_gib,
            self.writes,
        ]);
        for (segment, pair) in self
            .area
            .segments
            .iter()
            .zip(words[16..].chunks_exact_mut(2))
        {
            pair.copy_from_slice(&[segment.gpa, segment.pages]);
        }
        words[WORDS - 1] = check_word(&words[..WORDS - 1]);
        let mut bytes = [0; PARAMS_BYTES];
        for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks a block.
    ///
    /// # Errors
    ///
    /// `Missing`, `Version`, `Damaged`, or what [`new`](Self::new) would have refused.
    pub fn from_bytes(bytes: &[u8; PARAMS_BYTES]) -> Result<Self, ParamsError> {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if words[0] != MAGIC {
            return Err(ParamsError::Missing);
        }
        if words[1] != VERSION {
            return Err(ParamsError::Version { found: words[1] });
        }
        if words[WORDS - 1] != check_word(&words[..WORDS - 1]) {
            return Err(ParamsError::Damaged);
        }
        let mut area = Area::default();
        for (segment, pair) in area.segments.iter_mut().zip(words[16..].chunks_exact(2)) {
            *segment = Segment {
                gpa: pair[0],
                pages: pair[1],
            };
        }
        let known = FLAG_THREADS | FLAG_DMA | FLAG_DMA_DIRECT;
        in_range(
            "flags",
            words[2],
            words[2] & !known == 0,
            "the flags of version 1",
        )?;
        let params = Self {
            threads: words[2] & FLAG_THREADS != 0,
            dma: words[2] & FLAG_DMA != 0,
            dma_direct: words[2] & FLAG_DMA_DIRECT != 0,
            seed: words[3],
            vcpus: words[4],
            pattern: named("pattern", words[5], Pattern::from_number)?,
            rate_pages_per_s: words[6],
            bytes: named("bytes", words[7], Bytes::from_number)?,
            op: named("op", words[8], Op::from_number)?,
            ticks_per_s: words[9],
            hot_pages: words[10],
            gap_threshold_ticks: words[11],
            progress_gpa: words[12],
            mailbox_gpa: words[13],
            mapped_gib: words[14],
            writes: words[15],
            area,
        };
        params.check()?;
        Ok(params)
    }
}

fn named<T>(
    field: &'static str,
    value: u64,
    from_number: impl Fn(u64) -> Option<T>,
) -> Result<T, ParamsError> {
    from_number(value).ok_or(ParamsError::OutOfRange {
        field,
        value,
        allowed: "a number that version 1 names",
    })
}

pub(super) fn check_word(words: &[u64]) -> u64 {
    words.iter().fold(SPREAD[1], |sum, &word| mix2(sum, word))
}
