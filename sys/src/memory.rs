//! Raw access to memory that other CPUs write meanwhile.

/// Bytes folded before one test: enough to keep the loads in flight, little enough to leave a
/// page that is not zero early.
const FOLD_BYTES: usize = 256;

/// Whether `len` bytes from `start` are all zero.
///
/// # Safety
///
/// `start..start + len` must be mapped and readable for the whole call, and `start` aligned to 8.
/// The memory may change meanwhile; then the answer is that of some moment for each word.
pub(crate) unsafe fn is_zero(start: *const u8, len: usize) -> bool {
    let words = start.cast::<u64>();
    let per_fold = FOLD_BYTES / 8;
    let folds = len / FOLD_BYTES;
    for fold in 0..folds {
        let mut seen = 0u64;
        for word in 0..per_fold {
            // SAFETY: inside `len` by the loop bounds; alignment and mapping by the caller.
            seen |= unsafe { words.add(fold * per_fold + word).read() };
        }
        if seen != 0 {
            return false;
        }
    }
    (folds * FOLD_BYTES..len).all(|at| {
        // SAFETY: `at < len`; mapping by the caller.
        unsafe { start.add(at).read_volatile() == 0 }
    })
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
