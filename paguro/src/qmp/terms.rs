//! What counts for one snapshot or migration: what is set, and what its `migrate` brings with it.
//!
//! A client that sets capabilities and parameters for what it begins, and puts them back afterwards,
//! leaves them set if it dies between, and cannot know which of the others stand in its way. So
//! `migrate` takes them along, in `x-paguro-settings`. They count for what it begins, and nothing of
//! them is ever set:
//!
//! | member | | |
//! |---|---|---|
//! | `capabilities` | as of `migrate-set-capabilities`, without `events`, which is the client's | what is not named is as set |
//! | `parameters` | as of `migrate-set-parameters` | what is not named is as set |
//! | `on-disconnect` | `continue` (the default, as without this), `cancel` | what becomes of it when the client is gone |
//!
//! All are optional. A client is gone when its connection is: it hung up, it was killed, or it was put
//! out because it did not read. With `cancel` that means as much as `migrate_cancel`, as long as the
//! outcome is not in doubt: what an operator alone may decide is left to one.

use anyhow::{Context, Result};
use clap::ValueEnum;
use paguro_qmp::Client;
use serde_json::{Value, json};

use super::capabilities::{self, Capabilities};
use super::jobs::State;
use super::settings::Settings;
use super::{Args, Monitor, QmpError, parameters};
use crate::cli::OnDisconnect;

/// What counts for one of them.
pub struct Terms {
    /// What is on.
    pub capabilities: Capabilities,
    /// What is set.
    pub settings: Settings,
    /// What becomes of it when the client is gone.
    pub on_disconnect: OnDisconnect,
}

impl Terms {
    /// What is set, and over it what the command brings.
    pub fn take(monitor: &Monitor, set: &State, own: Option<Args>) -> Result<Self, QmpError> {
        let mut terms = Self {
            capabilities: set.capabilities,
            settings: set.settings.clone(),
            on_disconnect: OnDisconnect::Continue,
        };
        let Some(mut own) = own else {
            return Ok(terms);
        };
        if own.has("capabilities") {
            let changes = capabilities::changes(&mut own)?;
            if changes.iter().any(|(name, _)| name == "events") {
                return Err(QmpError::generic(
                    "Capability 'events' is the client's, not that of one migration: \
                     'migrate-set-capabilities' sets it",
                ));
            }
            terms.capabilities = capabilities::after(monitor, set.capabilities, &changes)?;
        }
        if let Some(mut all) = own.object("parameters")? {
            terms.settings = parameters::after(&set.settings, &mut all)?;
            all.finish()?;
        }
        if let Some(name) = own.string("on-disconnect")? {
            terms.on_disconnect = OnDisconnect::from_str(&name, false).map_err(|_| {
                QmpError::generic(format!(
                    "Parameter 'on-disconnect' does not accept value '{name}'"
                ))
            })?;
        }
        own.finish()?;
        Ok(terms)
    }
}

/// For a client that brings them along: of each capability that the machine has whether it shall be on,
/// none where it shall be as it is set. `events` is the client's and stays out.
pub fn own_capabilities(
    client: &mut Client,
    wanted: impl Fn(&str) -> Option<bool>,
) -> Result<Value> {
    let list = client.execute("query-migrate-capabilities", json!({}))?;
    let known = list.as_array().context("capabilities are no list")?;
    let own = known.iter().filter_map(|entry| {
        let name = entry["capability"]
            .as_str()
            .filter(|name| *name != "events")?;
        Some(json!({ "capability": name, "state": wanted(name)? }))
    });
    Ok(Value::from_iter(own))
}
