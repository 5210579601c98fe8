//! What this host can do, asked again.

use paguro_sys::{Fallbacks, Features, Host, Userfault};
use paguro_testkit::skipped;

/// As if there had been no descriptor to ask with.
fn asked_in_vain(host: Host) -> Host {
    Host {
        userfault: Userfault::None,
        features: Features::empty(),
        pagemap_scan: false,
        populate_read: false,
        marker: None,
        ..host
    }
}

fn known(host: &Host) -> (Userfault, bool, bool, Option<u64>, bool) {
    let Host {
        userfault,
        pagemap_scan,
        populate_read,
        marker,
        ..
    } = *host;
    (
        userfault,
        pagemap_scan,
        populate_read,
        marker,
        host.can_freeze_shared(),
    )
}

#[test]
fn what_was_not_to_be_had_is_asked_for_again() {
    let host = Host::probe(&Fallbacks::default());
    if !host.pagemap_scan && !host.populate_read && host.marker.is_none() {
        return skipped("this host can do nothing of it");
    }
    assert_eq!(known(&asked_in_vain(host).asked_again()), known(&host));
    // What is denied stays denied.
    let forced = Fallbacks {
        no_pagemap_scan: true,
        no_populate_read: true,
        no_marker_entries: true,
        ..Fallbacks::default()
    };
    let denied = asked_in_vain(Host::probe(&forced)).asked_again();
    assert!(!denied.pagemap_scan && !denied.populate_read && denied.marker.is_none());
    assert_eq!(denied.userfault, host.userfault);
}
