//! Names of device sections in a stream.
//!
//! A section whose end can be found is called `paguro/...` in a stream. One of a VMM, whatever it calls
//! it, goes as `paguro/of/` and its name, and gets that back when it is read. So none is taken for one of
//! QEMU's, whose end nobody knows, and none of QEMU's for it. Each section has one name in a stream, and
//! each name stands for one section.

use crate::device::name::{GLOBAL_STATE, OF};

/// What the names of sections begin with whose length stands before them.
const OWN: &str = "paguro/";
/// What a section is called in a stream.
pub(super) fn on_the_way(name: &str) -> String {
    if name == GLOBAL_STATE || is_ours(name) {
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
        Some(name) if name.is_empty() || name == GLOBAL_STATE || is_ours(name) => None,
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
    use crate::NAME_MAX_BYTES;
    use crate::device::name::{SECTION_NAME_MAX_BYTES, is_fit};

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
        assert_eq!(on_the_way(GLOBAL_STATE), GLOBAL_STATE);
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
