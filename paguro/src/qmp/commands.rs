//! The commands, in one table: what is not in it is not found, and `query-commands` lists it.

use paguro_qmp::Command;
use paguro_qmp::commands::{negotiate, query_commands, query_version};
use serde_json::{Value, json};

use super::{Monitor, capabilities, incoming, migrate, parameters, progress, rate, state};

/// What a command answers.
pub type Answer = paguro_qmp::Answer<Monitor>;

/// All of them, in alphabetical order.
pub const COMMANDS: [(&str, Command<Monitor>); 28] = [
    ("calc-dirty-rate", rate::calc),
    ("cont", state::cont),
    ("migrate", migrate::migrate),
    ("migrate-continue", migrate::proceed),
    ("migrate-incoming", incoming::incoming),
    ("migrate-set-capabilities", capabilities::set),
    ("migrate-set-parameters", parameters::set),
    ("migrate_cancel", migrate::cancel),
    ("qmp_capabilities", negotiate),
    ("query-commands", query_commands),
    ("query-dirty-rate", rate::query),
    ("query-kvm", state::query_kvm),
    ("query-migrate", progress::query),
    ("query-migrate-capabilities", capabilities::query),
    ("query-migrate-parameters", parameters::query),
    ("query-name", state::query_name),
    ("query-status", state::query_status),
    ("query-version", query_version),
    ("quit", state::quit),
    ("stop", state::stop),
    ("x-paguro-collapse", state::collapse),
    ("x-paguro-query-device-writers", state::query_device_writers),
    ("x-paguro-query-machine", state::query_machine),
    ("x-paguro-query-ram", state::query_ram),
    ("x-paguro-query-report", progress::query_report),
    ("x-paguro-query-restore", state::query_restore),
    ("x-paguro-query-writers", state::query_writers),
    ("x-paguro-touch", state::touch),
];

/// The version of the protocol's commands: that of QEMU 10.0, whose schema they are compared with
/// (`QMP.md`). Which program this is says `package`.
pub fn version() -> Value {
    json!({
        "qemu": { "major": 10, "minor": 0, "micro": 0 },
        "package": concat!("paguro ", env!("CARGO_PKG_VERSION")),
    })
}
