//! A client: commands and their answers, one after the other, and events.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::splitter::{Garbage, Piece, Splitter};

/// The greeting comes at once, unless another client has the socket.
const GREETING_WITHIN: Duration = Duration::from_secs(30);

/// Events that are kept for whoever asks for them; older ones are dropped for newer ones, because most
/// clients never ask.
const EVENTS_KEPT: usize = 1024;

/// Answers come soon, unless the other side is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why a command was not done, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing stands at the path.
    #[error("there is no QMP socket {}", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The host refuses the connection.
    #[error("cannot connect to the QMP socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other side is no QMP server.
    #[error("{} does not speak QMP: it said {said}", path.display())]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// What came instead of a greeting.
        said: Value,
    },
    /// Another client is being served.
    #[error("{} sends no greeting: another client has it", path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
    /// The command did not reach the other side.
    #[error("cannot send {command}")]
    Send {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The other side is stuck.
    #[error("no answer to {command} within {} s", within.as_secs())]
    NoAnswer {
        /// The command.
        command: String,
        /// How long was waited.
        within: Duration,
    },
    /// The answer has `error` in it.
    #[error("{command} was refused: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error, as `GenericError`.
        class: String,
        /// The other side's words.
        desc: String,
    },
    /// The other side has gone.
    #[error("the QMP connection was closed from the other side")]
    Closed,
    /// The connection broke.
    #[error("cannot read from the QMP socket")]
    Read(#[source] io::Error),
    /// What the other side sends is no JSON.
    #[error("bad JSON over QMP")]
    BadJson(#[source] serde_json::Error),
    /// What the other side sends is not even bracketed as JSON is.
    #[error("garbage over QMP: {0}")]
    Garbage(Garbage),
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    splitter: Splitter,
    arrived: VecDeque<Value>,
    events: VecDeque<Value>,
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    ///
    /// There is no server, it does not speak QMP, or it is at another client's service.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let to = || path.to_owned();
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => ClientError::NoSocket { path: to() },
            _ => ClientError::Connect { path: to(), source },
        })?;
        let mut client = Self {
            stream,
            splitter: Splitter::default(),
            arrived: VecDeque::new(),
            events: VecDeque::new(),
        };
        match client.receive(GREETING_WITHIN)? {
            Some(greeting) if greeting.get("QMP").is_some() => {}
            Some(said) => return Err(ClientError::NotQmp { path: to(), said }),
            None => return Err(ClientError::Occupied { path: to() }),
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Does a command and gives its `return` value. Events meanwhile are kept for [`Self::event`].
    ///
    /// # Errors
    ///
    /// It was refused; or the connection broke, and it may have been done all the same.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let request = json!({ "execute": command, "arguments": arguments, "id": command });
        let sent = self.stream.write_all(request.to_string().as_bytes());
        let command = || command.to_owned();
        sent.map_err(|source| ClientError::Send {
            command: command(),
            source,
        })?;
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(mut answer) = self.receive(left)? else {
                return Err(ClientError::NoAnswer {
                    command: command(),
                    within: ANSWER_WITHIN,
                });
            };
            if let Some(error) = answer.get("error") {
                let part = |name: &str, none: &str| {
                    let text = error[name].as_str();
                    text.unwrap_or(none).to_owned()
                };
                return Err(ClientError::Refused {
                    command: command(),
                    class: part("class", ""),
                    desc: part("desc", "no reason given"),
                });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            self.keep(answer);
        }
    }

    /// All else is an event.
    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The events that came while answers were waited for, and were not asked for yet.
    pub fn events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// The next event, those first that came while answers were waited for; `None` when `within` is over.
    ///
    /// # Errors
    ///
    /// The connection was closed, or broke.
    pub fn event(&mut self, within: Duration) -> Result<Option<Value>, ClientError> {
        match self.events.pop_front() {
            None => self.receive(within),
            event => Ok(event),
        }
    }

    /// The next value, or `None` when `within` is over.
    fn receive(&mut self, within: Duration) -> Result<Option<Value>, ClientError> {
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
            self.stream
                .set_read_timeout(Some(left))
                .map_err(ClientError::Read)?;
            let count = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(ClientError::Read(error)),
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

fn parse(piece: Piece) -> Result<Value, ClientError> {
    match piece {
        Piece::Value(bytes) => serde_json::from_slice(&bytes).map_err(ClientError::BadJson),
        Piece::Garbage(garbage) => Err(ClientError::Garbage(garbage)),
    }
}
