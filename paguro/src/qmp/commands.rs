//! The commands, in one table: what is not in it is not found, and `query-commands` lists it.

use serde_json::{Value, json};

use super::{
    Args, Monitor, QmpError, capabilities, incoming, migrate, parameters, progress, rate, state,
};

/// What a command answers.
#[derive(Debug)]
pub struct Answer {
    /// The `return` value.
    pub value: Value,
    /// What is done once the answer is on its way.
    pub after: Option<fn(&Monitor)>,
}

impl Default for Answer {
    /// `{}`
    fn default() -> Self {
        json!({}).into()
    }
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self { value, after: None }
    }
}

type Command = fn(&Monitor, Args) -> Result<Answer, QmpError>;

const COMMANDS: [(&str, Command); 28] = [
    ("calc-dirty-rate", rate::calc),
    ("cont", state::cont),
    ("migrate", migrate::migrate),
    ("migrate-continue", migrate::proceed),
    ("migrate-incoming", incoming::incoming),
    ("migrate-set-capabilities", capabilities::set),
    ("migrate-set-parameters", parameters::set),
    ("migrate_cancel", migrate::cancel),
    ("qmp_capabilities", negotiated_before),
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

/// Does a command.
pub fn run(monitor: &Monitor, command: &str, args: Args) -> Result<Answer, QmpError> {
    match COMMANDS.iter().find(|(name, _)| *name == command) {
        Some((_, run)) => run(monitor, args),
        None => Err(QmpError::not_found(format!(
            "The command {command} has not been found"
        ))),
    }
}

/// The version of the protocol's commands: that of QEMU 9.0, where `mapped-ram` came in. Which
/// program this is says `package`.
pub fn version() -> Value {
    json!({
        "qemu": { "major": 9, "minor": 0, "micro": 0 },
        "package": concat!("paguro ", env!("CARGO_PKG_VERSION")),
    })
}

fn query_version(_: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    Ok(version().into())
}

fn query_commands(_: &Monitor, args: Args) -> Result<Answer, QmpError> {
    args.finish()?;
    let names = COMMANDS.iter().map(|(name, _)| json!({ "name": name }));
    Ok(Value::from_iter(names).into())
}

/// The session answers this one itself; it stands in the table to be listed.
fn negotiated_before(_: &Monitor, _: Args) -> Result<Answer, QmpError> {
    Err(QmpError::not_found(
        "Capabilities negotiation is already complete, command ignored",
    ))
}
