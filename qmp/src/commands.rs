//! What a command is, and what serves them.
//!
//! A table lists all commands: what is not in it is not found, and `query-commands` lists it. Two of
//! the commands are the protocol's own: [`negotiate`] and [`query_commands`], which stand in every
//! table.

use serde_json::{Value, json};

use super::{Args, Events, QmpError};

/// What a command answers, and leaves to be done by the service `S`.
#[derive(Debug)]
pub struct Answer<S> {
    /// The `return` value.
    pub value: Value,
    /// What is done once the answer is on its way.
    pub after: Option<fn(&S)>,
}

impl<S> Default for Answer<S> {
    /// `{}`
    fn default() -> Self {
        json!({}).into()
    }
}

impl<S> From<Value> for Answer<S> {
    fn from(value: Value) -> Self {
        Self { value, after: None }
    }
}

/// Does a command. It runs in the thread of the server, which has one client at a time.
pub type Command<S> = fn(&S, Args) -> Result<Answer<S>, QmpError>;

/// What clients are served with. All of it is called in the thread of the server.
pub trait Service: Send + Sync + 'static {
    /// The commands by their names, in the order in which they are listed.
    fn commands(&self) -> &[(&'static str, Command<Self>)]
    where
        Self: Sized;

    /// The version, as the greeting and `query-version` have it.
    fn version(&self) -> Value;

    /// Where events go.
    fn events(&self) -> &Events;

    /// Something has come from the client and will be answered.
    fn asked(&self) {}

    /// The client has gone: it hung up, or was put out because it did not read.
    fn client_gone(&self) {}
}

/// Does the command of that name.
pub(crate) fn run<S: Service>(
    service: &S,
    command: &str,
    args: Args,
) -> Result<Answer<S>, QmpError> {
    let mut commands = service.commands().iter();
    match commands.find(|(name, _)| *name == command) {
        Some((_, run)) => run(service, args),
        None => Err(QmpError::not_found(format!(
            "The command {command} has not been found"
        ))),
    }
}

/// `query-commands`
///
/// # Errors
///
/// It has no arguments.
pub fn query_commands<S: Service>(service: &S, args: Args) -> Result<Answer<S>, QmpError> {
    args.finish()?;
    let commands = service.commands().iter();
    let names = commands.map(|(name, _)| json!({ "name": name }));
    Ok(Value::from_iter(names).into())
}

/// `query-version`
///
/// # Errors
///
/// It has no arguments.
pub fn query_version<S: Service>(service: &S, args: Args) -> Result<Answer<S>, QmpError> {
    args.finish()?;
    Ok(service.version().into())
}

/// `qmp_capabilities`: the session answers it itself; it stands in the table to be listed.
///
/// # Errors
///
/// Always: it was done before.
pub fn negotiate<S>(_: &S, _: Args) -> Result<Answer<S>, QmpError> {
    Err(QmpError::not_found(
        "Capabilities negotiation is already complete, command ignored",
    ))
}
