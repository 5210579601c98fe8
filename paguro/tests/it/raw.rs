//! A connection to a control socket as bytes and lines: for what no client would say, and for how the
//! answers of the program look, of which a client shows less.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use paguro_testkit::IN_VAIN;
use serde_json::{Value, json};

pub struct Raw {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    pub greeting: Value,
}

impl Raw {
    /// Before its negotiation.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(IN_VAIN)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut raw = Self {
            stream,
            lines,
            greeting: Value::Null,
        };
        raw.greeting = raw.line().unwrap();
        raw
    }

    /// After it.
    pub fn negotiated(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        assert_eq!(
            raw.ask("qmp_capabilities", json!({})),
            json!({ "return": {} })
        );
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next line, event or answer; nothing at the end.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line).unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    /// The next line that is no event.
    pub fn answer(&mut self) -> Value {
        loop {
            let line = self.line().expect("the connection was closed");
            if line.get("event").is_none() {
                return line;
            }
        }
    }

    /// All of the answer to a command.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(request.to_string().as_bytes());
        self.answer()
    }
}
