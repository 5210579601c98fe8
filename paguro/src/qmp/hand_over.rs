//! `migrate` with `mode` set to `cpr-transfer`: to another process on this host, which gets RAM by
//! descriptor; only devices move.
//!
//! As in QEMU, `channels` has a second entry of the type `cpr`, a unix socket on which descriptors are
//! handed over before the stream is begun on the main one. With one address only, a unix socket, it
//! is both: the first connection is for descriptors.

use paguro_migration::channel::Address;
use paguro_migration::source;
use paguro_ram::Backing;

use super::settings::Mode;
use super::terms::Terms;
use super::{Monitor, QmpError};

/// What sends or saves pages, or sets other rules for RAM that is left behind.
const UNFIT: [&str; 7] = [
    "background-snapshot",
    "mapped-ram",
    "multifd",
    "postcopy-ram",
    "release-ram",
    "xbzrle",
    "zero-copy-send",
];

/// Whether RAM is handed over, at `cpr` if there is such a channel, or sent. What can be known beforehand
/// to be in the way of the former is refused; addresses and TLS are the engine's to look at.
pub fn mode(
    monitor: &Monitor,
    terms: &Terms,
    cpr: Option<Address>,
) -> Result<source::Mode, QmpError> {
    match terms.settings.mode {
        Mode::Normal if cpr.is_some() => {
            return Err(QmpError::generic(
                "Channel list has an entry of type 'cpr', for which the parameter 'mode' must be \
                 'cpr-transfer'",
            ));
        }
        Mode::Normal => return Ok(terms.settings.precopy(terms.capabilities)),
        Mode::CprTransfer => {}
    }
    let on = terms.capabilities.on();
    if let Some(name) = on.iter().find(|name| UNFIT.contains(name)) {
        return Err(QmpError::generic(format!(
            "mode 'cpr-transfer' is not compatible with {name}"
        )));
    }
    let mut blocks = monitor.guest.ram().blocks().iter();
    if let Some(block) = blocks.find(|block| block.backing() != Backing::Memfd) {
        return Err(QmpError::generic(format!(
            "mode 'cpr-transfer' hands RAM over by descriptor, and RAM block {} has none: only a \
             machine with '--backing memfd' can be moved so",
            block.id()
        )));
    }
    Ok(source::Mode::HandOver { address: cpr })
}
