//! Migration capabilities: which there are, and which go together.

use serde_json::{Value, json};

use super::commands::Answer;
use super::{Args, Monitor, QmpError, with_causes};

/// The capabilities that paguro has, by QEMU's names, each with its place in [`Capabilities`].
const OFFERED: [(&str, Place); 9] = [
    (AUTO_CONVERGE, |set| &mut set.auto_converge),
    (BACKGROUND_SNAPSHOT, |set| &mut set.background_snapshot),
    (DIRTY_LIMIT, |set| &mut set.dirty_limit),
    (EVENTS, |set| &mut set.events),
    (MAPPED_RAM, |set| &mut set.mapped_ram),
    (MULTIFD, |set| &mut set.multifd),
    (PAUSE, |set| &mut set.pause_before_switchover),
    (RETURN_PATH, |set| &mut set.return_path),
    (XBZRLE, |set| &mut set.xbzrle),
];

type Place = fn(&mut Capabilities) -> &mut bool;

/// How it is said that a running machine cannot be saved here, to a client that may know what to do.
pub const NO_BACKGROUND_SNAPSHOT: &str = "Background-snapshot is not supported";

const AUTO_CONVERGE: &str = "auto-converge";
const BACKGROUND_SNAPSHOT: &str = "background-snapshot";
const DIRTY_LIMIT: &str = "dirty-limit";
const EVENTS: &str = "events";
const MAPPED_RAM: &str = "mapped-ram";
const MULTIFD: &str = "multifd";
const PAUSE: &str = "pause-before-switchover";
const RETURN_PATH: &str = "return-path";
const XBZRLE: &str = "xbzrle";

/// Those that QEMU has besides, or had (`block` and `compress`, up to 9.0). Switching one off is no
/// error: clients switch off what they know and do not want.
const OTHERS: [&str; 15] = [
    "block",
    "compress",
    "dirty-bitmaps",
    "late-block-activate",
    "postcopy-blocktime",
    "postcopy-preempt",
    "postcopy-ram",
    "rdma-pin-all",
    "release-ram",
    "switchover-ack",
    "validate-uuid",
    "x-colo",
    "x-ignore-shared",
    "zero-blocks",
    "zero-copy-send",
];

/// What can never work together, as in QEMU; and `mapped-ram`, which is always a snapshot here, with
/// what belongs to migrations only.
const REFUSED: [(&str, &[&str]); 4] = [
    (
        BACKGROUND_SNAPSHOT,
        &[
            AUTO_CONVERGE,
            "dirty-bitmaps",
            DIRTY_LIMIT,
            "late-block-activate",
            MULTIFD,
            PAUSE,
            "postcopy-preempt",
            "postcopy-ram",
            "rdma-pin-all",
            "release-ram",
            RETURN_PATH,
            "switchover-ack",
            "validate-uuid",
            "x-colo",
            "x-ignore-shared",
            XBZRLE,
            "zero-copy-send",
        ],
    ),
    (
        MAPPED_RAM,
        &[
            PAUSE,
            "postcopy-preempt",
            "postcopy-ram",
            "rdma-pin-all",
            "x-colo",
            XBZRLE,
        ],
    ),
    (MULTIFD, &[XBZRLE]),
    (DIRTY_LIMIT, &[AUTO_CONVERGE]),
];

/// What is switched on. All is off at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// A guest that writes too fast for its migration is slowed down.
    pub auto_converge: bool,
    /// The guest runs on while it is saved.
    pub background_snapshot: bool,
    /// A vCPU that writes too fast for its migration is slowed down.
    pub dirty_limit: bool,
    /// `MIGRATION` events are told.
    pub events: bool,
    /// Each page has a fixed place in the file.
    pub mapped_ram: bool,
    /// Pages travel over connections of their own; of a file with `mapped-ram` it changes nothing.
    pub multifd: bool,
    /// The guest is stopped, and `migrate-continue` waited for, before it is moved.
    pub pause_before_switchover: bool,
    /// Changes nothing: there is always a return path where the channel can have one.
    pub return_path: bool,
    /// Pages that were sent before are sent as what has changed in them.
    pub xbzrle: bool,
}

impl Capabilities {
    /// The names of those that are on.
    pub fn on(mut self) -> Vec<&'static str> {
        let on = OFFERED
            .iter()
            .filter(|(_, place)| *place(&mut self))
            .map(|(name, _)| *name);
        on.collect()
    }
}

/// `migrate-set-capabilities`
pub fn set(monitor: &Monitor, mut args: Args) -> Result<Answer, QmpError> {
    let changes = changes(&mut args)?;
    args.finish()?;
    let mut migrations = monitor.migrations.lock();
    migrations.refuse_if_busy()?;
    let new = after(monitor, migrations.capabilities, &changes)?;
    migrations.capabilities = new;
    monitor.events.tell_migrations(new.events);
    Ok(Answer::default())
}

/// Names of capabilities and whether they shall be on.
pub type Changes = Vec<(String, bool)>;

/// Takes the member `capabilities` out of arguments.
pub fn changes(args: &mut Args) -> Result<Changes, QmpError> {
    let list = args.objects("capabilities")?;
    let mut changes = Vec::new();
    for mut change in args.need("capabilities", list)? {
        let name = change.string("capability")?;
        let name = change.need("capability", name)?;
        let state = change.boolean("state")?;
        let state = change.need("state", state)?;
        change.finish()?;
        changes.push((name, state));
    }
    Ok(changes)
}

/// What is on after `changes`: all of them or, where they do not go together or this machine cannot
/// do something, none.
pub fn after(
    monitor: &Monitor,
    before: Capabilities,
    changes: &Changes,
) -> Result<Capabilities, QmpError> {
    let new = changed(before, changes)?;
    if new.background_snapshot && !before.background_snapshot {
        monitor.guest.check_can_freeze().map_err(|why| {
            QmpError::generic(format!(
                "{NO_BACKGROUND_SNAPSHOT} by this host: {}",
                with_causes(&why)
            ))
        })?;
    }
    if new.dirty_limit && monitor.guest.config().dirty_ring_entries.is_none() {
        return Err(QmpError::generic(
            "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set",
        ));
    }
    Ok(new)
}

/// `query-migrate-capabilities`
pub fn query(monitor: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let mut set = monitor.migrations.lock().capabilities;
    let list = OFFERED
        .iter()
        .map(|(name, place)| json!({ "capability": name, "state": *place(&mut set) }));
    Ok(Value::from_iter(list).into())
}

/// The capabilities after `changes`; all of them or none.
fn changed(mut set: Capabilities, changes: &[(String, bool)]) -> Result<Capabilities, QmpError> {
    let mut foreign: Vec<&str> = Vec::new();
    for (name, state) in changes {
        if let Some((_, place)) = OFFERED.iter().find(|(known, _)| known == name) {
            *place(&mut set) = *state;
        } else if !OTHERS.contains(&name.as_str()) {
            return Err(QmpError::generic(format!(
                "Parameter 'capability' does not accept value '{name}'"
            )));
        } else {
            foreign.retain(|other| other != name);
            foreign.extend(state.then_some(name.as_str()));
        }
    }
    let mut on = foreign.clone();
    for (name, place) in OFFERED {
        on.extend(place(&mut set).then_some(name));
    }
    for (one, others) in REFUSED {
        if on.contains(&one)
            && let Some(other) = others.iter().find(|other| on.contains(other))
        {
            return Err(QmpError::generic(format!(
                "{one} is not compatible with {other}"
            )));
        }
    }
    match foreign.first() {
        Some(name) => Err(QmpError::generic(format!(
            "Capability '{name}' is not supported by paguro"
        ))),
        None => Ok(set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(changes: &[(&str, bool)]) -> Result<Capabilities, String> {
        let changes: Vec<_> = changes
            .iter()
            .map(|(name, state)| ((*name).to_owned(), *state))
            .collect();
        changed(Capabilities::default(), &changes).map_err(|error| error.desc)
    }

    #[test]
    fn those_that_exist_can_be_set_together() {
        let set = change(&[
            (BACKGROUND_SNAPSHOT, true),
            (MAPPED_RAM, true),
            (EVENTS, true),
        ]);
        let all = Capabilities {
            background_snapshot: true,
            events: true,
            mapped_ram: true,
            ..Capabilities::default()
        };
        assert_eq!(set, Ok(all));
    }

    #[test]
    fn what_cannot_work_together_is_refused_by_both_names() {
        for (one, others) in REFUSED {
            for other in others {
                let error = change(&[(other, true), (one, true)]).unwrap_err();
                assert_eq!(error, format!("{one} is not compatible with {other}"));
            }
        }
    }

    #[test]
    fn what_paguro_does_not_have_may_only_be_switched_off() {
        assert_eq!(
            change(&[("dirty-bitmaps", false)]),
            Ok(Capabilities::default())
        );
        assert_eq!(
            change(&[("dirty-bitmaps", true), ("dirty-bitmaps", false)]),
            Ok(Capabilities::default())
        );
        assert!(
            change(&[("dirty-bitmaps", true)])
                .unwrap_err()
                .contains("'dirty-bitmaps'")
        );
        assert!(
            change(&[("nonsense", false)])
                .unwrap_err()
                .contains("'nonsense'")
        );
    }
}
