//! One client: greeting, negotiation, commands.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::commands::{self, Answer};
use super::queue::{Gone, Queue};
use super::splitter::{Piece, Splitter};
use super::{Args, QmpError, Service};

/// A client that reads nothing for so long, while its socket is full, is put out.
const PATIENCE: Duration = Duration::from_secs(10);

const READ_BYTES: usize = 4096;

/// The thread that writes to clients, one after the other. It is there before any of them: a process
/// that may have no more threads goes on serving.
#[derive(Debug)]
pub(crate) struct Writer {
    clients: SyncSender<(Arc<UnixStream>, Arc<Queue>)>,
    done: Receiver<()>,
}

impl Writer {
    /// Starts it; it ends with this value.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (clients, next) = sync_channel::<(Arc<UnixStream>, Arc<Queue>)>(0);
        let (end, done) = sync_channel(0);
        paguro_sys::NewThread::named("qmp-out".to_owned()).spawn(move || {
            for (stream, queue) in next {
                queue.write_to(&stream);
                drop(stream);
                if end.send(()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { clients, done })
    }
}

/// Serves a client until it hangs up, or is put out.
pub(crate) fn run(stream: &Arc<UnixStream>, service: &impl Service, writer: &Writer) {
    if let Err(error) = serve(stream, service, writer) {
        tracing::debug!(%error, "QMP session ended");
    }
    service.client_gone();
}

fn serve(stream: &Arc<UnixStream>, service: &impl Service, writer: &Writer) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let out = Arc::new(Queue::default());
    let to = (stream.clone(), out.clone());
    if writer.clients.send(to).is_err() {
        return Err(std::io::Error::other("the QMP writer is gone"));
    }
    let mut session = Session {
        service,
        out: out.clone(),
        negotiated: false,
    };
    let result = session.read_from(stream);
    service.events().detach();
    // The rest is written, and the connection shut down.
    out.close();
    if writer.done.recv().is_err() {
        tracing::error!("the QMP writer panicked");
    }
    result
}

struct Session<'a, S> {
    service: &'a S,
    out: Arc<Queue>,
    negotiated: bool,
}

impl<S: Service> Session<'_, S> {
    fn read_from(&mut self, mut stream: &UnixStream) -> std::io::Result<()> {
        let greeting = json!({ "QMP": { "version": self.service.version(), "capabilities": [] } });
        if self.send(&greeting).is_err() {
            return Ok(());
        }
        let mut splitter = Splitter::default();
        let mut bytes = [0; READ_BYTES];
        loop {
            let count = match stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut pieces = Vec::new();
            splitter.feed(&bytes[..count], |piece| pieces.push(piece));
            for piece in pieces {
                if self.answer(piece).is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn answer(&mut self, piece: Piece) -> Result<(), Gone> {
        self.service.asked();
        let mut id = None;
        let before = self.negotiated;
        let result = self.execute(piece, &mut id);
        let (mut reply, after) = match result {
            Ok(answer) => (json!({ "return": answer.value }), answer.after),
            Err(error) => (json!({ "error": error.to_json() }), None),
        };
        if let Some(id) = id {
            reply["id"] = id;
        }
        self.send(&reply)?;
        if self.negotiated && !before {
            // Not earlier: the first line after the greeting is the answer, not an event.
            self.service.events().attach(self.out.clone());
        }
        if let Some(after) = after {
            after(self.service);
        }
        Ok(())
    }

    /// Does what a value asks for. Its id is known even where the rest makes no sense.
    fn execute(&mut self, piece: Piece, id: &mut Option<Value>) -> Result<Answer<S>, QmpError> {
        let syntax = |why: String| QmpError::generic(format!("JSON parse error, {why}"));
        let bytes = match piece {
            Piece::Value(bytes) => bytes,
            Piece::Garbage(garbage) => return Err(syntax(garbage.to_string())),
        };
        let value = serde_json::from_slice(&bytes).map_err(|error| syntax(error.to_string()))?;
        let Value::Object(mut members) = value else {
            return Err(QmpError::generic("QMP input must be a JSON object"));
        };
        *id = members.remove("id");
        let (command, args) = request(members)?;
        if command == "qmp_capabilities" {
            self.negotiate(args)?;
            return Ok(Answer::default());
        }
        if !self.negotiated {
            return Err(QmpError::not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            ));
        }
        commands::run(self.service, &command, args)
    }

    fn negotiate(&mut self, mut args: Args) -> Result<(), QmpError> {
        if self.negotiated {
            return Err(QmpError::not_found(
                "Capabilities negotiation is already complete, command ignored",
            ));
        }
        let enable = args.strings("enable")?.unwrap_or_default();
        args.finish()?;
        if let Some(name) = enable.first() {
            return Err(QmpError::generic(format!(
                "Capability '{name}' is not offered"
            )));
        }
        self.negotiated = true;
        Ok(())
    }

    fn send(&self, value: &Value) -> Result<(), Gone> {
        self.out.answer(value.to_string())
    }
}

/// The command and the arguments in a request.
fn request(mut members: Map<String, Value>) -> Result<(String, Args), QmpError> {
    let wrong = |text: &str| QmpError::generic(format!("QMP input {text}"));
    let command = match members.remove("execute") {
        Some(Value::String(command)) => command,
        Some(_) => return Err(wrong("member 'execute' must be a string")),
        None => return Err(wrong("lacks member 'execute'")),
    };
    let args = match members.remove("arguments") {
        Some(Value::Object(args)) => Args::new(args),
        Some(_) => return Err(wrong("member 'arguments' must be an object")),
        None => Args::default(),
    };
    match members.keys().next() {
        Some(name) => Err(wrong(&format!("member '{name}' is unexpected"))),
        None => Ok((command, args)),
    }
}
