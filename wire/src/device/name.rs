//! What a device section may be called.

use crate::NAME_MAX_BYTES;

/// What the names of a VMM's sections begin with in a stream.
pub(crate) const OF: &str = "paguro/of/";
/// QEMU's section with the state of the run.
pub(crate) const GLOBAL_STATE: &str = "globalstate";

/// The longest name of a device section, in bytes: a stream has [`NAME_MAX_BYTES`] for it, of which
/// `paguro/of/` needs some.
pub const SECTION_NAME_MAX_BYTES: usize = NAME_MAX_BYTES - OF.len();

/// Whether a section may be called so: not empty, not too long, no control characters.
pub(crate) fn is_fit(name: &str) -> bool {
    let length = 1..=SECTION_NAME_MAX_BYTES;
    length.contains(&name.len()) && !name.chars().any(char::is_control)
}
