//! Raw access to memory that other CPUs write meanwhile.
//!
//! Such memory is read as a device's is: by volatile reads, each of which happens once and is not taken for
//! a value that could be read again, or by calls that the compiler does not look into.

use wide::Wide;

/// Bytes folded before one test: enough to keep the loads in flight, little enough to leave a
/// page that is not zero early.
const FOLD_BYTES: usize = 256;

/// Whether `len` bytes from `start` are all zero.
///
/// # Safety
///
/// `start..start + len` must be mapped and readable for the whole call. The memory may change meanwhile;
/// then the answer is that of some moment for each byte.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "sse2"))]
pub(crate) unsafe fn is_zero(start: *const u8, len: usize) -> bool {
    let head = start.align_offset(align_of::<Wide>()).min(len);
    let folds = (len - head) / FOLD_BYTES;
    let tail = head + folds * FOLD_BYTES;
    // SAFETY: `at < len`; mapping by the caller.
    let is_zero = |at| unsafe { start.add(at).read_volatile() == 0 };
    if !(0..head).chain(tail..len).all(is_zero) {
        return false;
    }
    let wide = start.wrapping_add(head).cast::<Wide>();
    let per_fold = FOLD_BYTES / size_of::<Wide>();
    for fold in 0..folds {
        let mut seen = wide::none();
        for at in 0..per_fold {
            // SAFETY: it ends before `tail`, and `head` has aligned it; mapping by the caller.
            seen = wide::or(seen, unsafe {
                wide.add(fold * per_fold + at).read_volatile()
            });
        }
        if !wide::is_none(seen) {
            return false;
        }
    }
    true
}

/// Whether `len` bytes from `start` equal `other`.
///
/// # Safety
///
/// As [`is_zero`], with `other.len()` bytes.
pub(crate) unsafe fn is_equal(start: *const u8, other: &[u8]) -> bool {
    // SAFETY: memcmp reads `other.len()` bytes of each; the caller vouches for `start`, and the
    // call is opaque to the compiler, so that memory which changes meanwhile is no language matter.
    unsafe { libc::memcmp(start.cast(), other.as_ptr().cast(), other.len()) == 0 }
}

/// What is read at once: on x86-64 a vector. By words a page that is in a cache takes half as long again.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128,
    };

    pub(super) type Wide = __m128i;

    #[target_feature(enable = "sse2")]
    pub(super) fn none() -> Wide {
        _mm_setzero_si128()
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn or(one: Wide, other: Wide) -> Wide {
        _mm_or_si128(one, other)
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn is_none(seen: Wide) -> bool {
        // A bit a byte: whether it is zero.
        _mm_movemask_epi8(_mm_cmpeq_epi8(seen, none())) == 0xffff
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    pub(super) type Wide = u64;

    pub(super) fn none() -> Wide {
        0
    }

    pub(super) fn or(one: Wide, other: Wide) -> Wide {
        one | other
    }

    pub(super) fn is_none(seen: Wide) -> bool {
        seen == 0
    }
}
