//! Names of device sections in a stream.
//!
//! A section whose end can be found is called `paguro/...` in a stream. One of a VMM, whatever it calls
//! it, goes as `paguro/of/` and its name, and gets that back when it is read. So none is taken for one of
//! QEMU's, whose end nobody knows, and none of QEMU's for it. Each section has one name in a stream, and
//! each name stands for one section.

use crate::NAME_MAX_BYTES;
use crate::globalstate;

/// What the names of sections begin with whose length stands before them.
const OWN: &str = "paguro/";
/// What the names of a VMM's sections begin with.
const OF: &str = "paguro/of/";

/// The longest name of a device section, in bytes: a stream has [`NAME_MAX_BYTES`] for it, of which
/// `paguro/of/` needs some.
pub const SECTION_NAME_MAX_BYTES: usize = NAME_MAX_BYTES - OF.len();

/// Whether a section may be called so: not empty, not too long, no control characters.
pub(crate) fn is_fit(name: &str) -> bool {
    let length = 1..=SECTION_NAME_MAX_BYTES;
    length.contains(&name.len()) && !name.chars().any(char::is_control)
}

/// What a section is called in a stream.
pub(super) fn on_the_way(name: &str) -> String {
    if name == globalstate::NAME || is_ours(name) {
        name.to_owned()
    } else {
        format!("{OF}{name}")
    }
}

/// Whether the length of a section of this name in a stream stands before it.
pub(super) fn has_length(name: &str) -> bool {
    name.starts_with(OWN)
}

/// What a section is called that has this name in a stream; nothing if no section has.
pub(super) fn arrived(name: &str) -> Option<&str> {
    match name.strip_prefix(OF) {
        Some(name) if name.is_empty() || name == globalstate::NAME || is_ours(name) => None,
        Some(name) => Some(name),
        None => Some(name),
    }
}

/// Whether it is a section that nothing needs to be put before.
fn is_ours(name: &str) -> bool {
    name.starts_with(OWN) && !name.starts_with(OF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_and_has_one_form() {
        for name in ["paguro/cpu", "firecracker/microvm", "x", "paguro", OF] {
            let way = on_the_way(name);
            assert!(has_length(&way), "{way}");
            assert_eq!(arrived(&way), Some(name));
        }
        assert_eq!(on_the_way("paguro/cpu"), "paguro/cpu");
        assert_eq!(on_the_way("x"), "paguro/of/x");
        assert_eq!(on_the_way("paguro/of/x"), "paguro/of/paguro/of/x");
        assert_eq!(on_the_way(globalstate::NAME), globalstate::NAME);
    }

    #[test]
    fn what_has_another_form_is_no_name() {
        for name in [
            "paguro/of/",
            "paguro/of/globalstate",
            "paguro/of/paguro/cpu",
        ] {
            assert_eq!(arrived(name), None, "{name}");
        }
    }

    #[test]
    fn the_longest_name_fits() {
        let longest = "n".repeat(SECTION_NAME_MAX_BYTES);
        assert!(is_fit(&longest) && on_the_way(&longest).len() == NAME_MAX_BYTES);
        assert!(!is_fit(&format!("{longest}n")) && !is_fit("") && !is_fit("a\0b"));
    }
}
