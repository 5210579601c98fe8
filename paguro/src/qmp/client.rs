//! A QMP client, as far as `paguro snapshot` and `paguro migrate` need one.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::splitter::{Piece, Splitter};
use crate::hints::Advised;

/// The greeting comes at once, unless another client has the socket.
const GREETING_WITHIN: Duration = Duration::from_secs(30);

/// Answers come soon, unless the other side is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// An answer with `error` in it.
#[derive(Debug)]
pub struct Refused {
    /// The command.
    pub command: String,
    /// The other side's words.
    pub desc: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was refused: {}", self.command, self.desc)
    }
}

impl std::error::Error for Refused {}

/// A connection in command mode.
pub struct Client {
    stream: UnixStream,
    splitter: Splitter,
    arrived: VecDeque<Value>,
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Advised::error(
                    format!("there is no QMP socket {}", path.display()),
                    format!("start the machine with --qmp unix:{}", path.display()),
                ));
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot connect to the QMP socket {}", path.display())
                });
            }
        };
        let mut client = Self {
            stream,
            splitter: Splitter::default(),
            arrived: VecDeque::new(),
        };
        match client.receive(GREETING_WITHIN)? {
            Some(greeting) if greeting.get("QMP").is_some() => {}
            Some(other) => bail!("{} does not speak QMP: it said {other}", path.display()),
            None => {
                return Err(Advised::error(
                    format!(
                        "{} sends no greeting: another client has it",
                        path.display()
                    ),
                    "disconnect the other QMP client, or take the snapshot through it",
                ));
            }
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Does a command and gives its `return` value. Events meanwhile are kept out of the way.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments, "id": command });
        self.stream
            .write_all(request.to_string().as_bytes())
            .with_context(|| format!("cannot send {command}"))?;
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(mut answer) = self.receive(left)? else {
                bail!(
                    "no answer to {command} within {} s",
                    ANSWER_WITHIN.as_secs()
                );
            };
            if let Some(error) = answer.get("error") {
                let desc = error["desc"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned();
                return Err(Refused {
                    command: command.to_owned(),
                    desc,
                }
                .into());
            }
            // All else is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// For `x-paguro-settings`: of each capability that the machine has whether it shall be on; none
    /// where it shall be as it is set. `events` is the client's and stays out.
    pub fn own_capabilities(&mut self, wanted: impl Fn(&str) -> Option<bool>) -> Result<Value> {
        let list = self.execute("query-migrate-capabilities", json!({}))?;
        let known = list.as_array().context("capabilities are no list")?;
        let own = known.iter().filter_map(|entry| {
            let name = entry["capability"]
                .as_str()
                .filter(|name| *name != "events")?;
            Some(json!({ "capability": name, "state": wanted(name)? }))
        });
        Ok(Value::from_iter(own))
    }

    /// The next value, or `None` when `within` is over.
    fn receive(&mut self, within: Duration) -> Result<Option<Value>> {
        let until = Instant::now() + within;
        let mut bytes = [0; 4096];
        loop {
            if let Some(value) = self.arrived.pop_front() {
                return Ok(Some(value));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let count = match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the QMP connection was closed from the other side"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("cannot read from the QMP socket"),
            };
            let mut pieces = Vec::new();
            self.splitter
                .feed(&bytes[..count], |piece| pieces.push(piece));
            for piece in pieces {
                self.arrived.push_back(parse(piece)?);
            }
        }
    }
}

fn parse(piece: Piece) -> Result<Value> {
    match piece {
        Piece::Value(bytes) => serde_json::from_slice(&bytes).context("bad JSON over QMP"),
        Piece::Garbage(garbage) => Err(anyhow!("garbage over QMP: {garbage}")),
    }
}
