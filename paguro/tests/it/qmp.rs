//! A client of a machine's control socket, for tests: what goes wrong with it is their failure.

use std::path::Path;

use paguro_qmp::{Client, ClientError};
use paguro_testkit::{IN_VAIN, wait};
use serde_json::{Value, json};

/// A connection after its negotiation.
pub struct Qmp(Client);

/// How migrations end.
const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];

impl Qmp {
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        Self(Client::connect(socket).unwrap())
    }

    /// Its answer, or class and text of its error.
    #[track_caller]
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, (String, String)> {
        match self.0.execute(command, arguments) {
            Ok(answer) => Ok(answer),
            Err(ClientError::Refused { class, desc, .. }) => Err((class, desc)),
            Err(error) => panic!("{command}: {error}"),
        }
    }

    /// The `return` value of a command.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.ask(command, arguments);
        answer.unwrap_or_else(|(class, desc)| panic!("{command}: {class}: {desc}"))
    }

    /// Class and text of the error that a command must meet.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> (String, String) {
        let answer = self.ask(command, arguments);
        answer.expect_err(command)
    }

    #[track_caller]
    pub fn set(&mut self, capabilities: &[(&str, bool)]) {
        self.execute("migrate-set-capabilities", list(capabilities));
    }

    /// False, and the reason printed, where the host does not let them be set.
    #[track_caller]
    pub fn try_set(&mut self, capabilities: &[(&str, bool)]) -> bool {
        let set = self.ask("migrate-set-capabilities", list(capabilities));
        if let Err((_, desc)) = &set {
            println!("skipped: {desc}");
        }
        set.is_ok()
    }

    /// The events that came before answers, and were not asked for.
    pub fn events(&mut self) -> Vec<Value> {
        self.0.events()
    }

    /// The next event, one that came before an answer first.
    #[track_caller]
    pub fn event(&mut self) -> Value {
        self.event_or_end().expect("the connection was closed")
    }

    /// The next event; nothing at the end.
    #[track_caller]
    pub fn event_or_end(&mut self) -> Option<Value> {
        match self.0.event(IN_VAIN) {
            Ok(event) => Some(event.expect("there is no event, and no end")),
            Err(ClientError::Closed) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The events so far and up to the next of that name.
    #[track_caller]
    pub fn events_until(&mut self, name: &str) -> Vec<Value> {
        let mut events = self.events();
        while !events.iter().any(|event| event["event"] == name) {
            events.push(self.event());
        }
        events
    }

    /// Waits for a state of `query-status`.
    #[track_caller]
    pub fn wait_status(&mut self, status: &str) {
        self.wait_for("query-status", status);
    }

    /// Waits for a status of `query-migrate`.
    #[track_caller]
    pub fn wait_migration(&mut self, status: &str) -> Value {
        self.wait_for("query-migrate", status)
    }

    #[track_caller]
    fn wait_for(&mut self, command: &str, status: &str) -> Value {
        let now = self.wait_any(command, |now| now == status || ENDS.contains(&now));
        assert_eq!(now["status"], status, "it is over: {now}");
        now
    }

    /// Waits until the migration has ended.
    #[track_caller]
    pub fn migration_end(&mut self) -> Value {
        self.wait_any("query-migrate", |now| ENDS.contains(&now))
    }

    #[track_caller]
    fn wait_any(&mut self, command: &str, wanted: impl Fn(&str) -> bool) -> Value {
        let mut now = Value::Null;
        let found = wait(|| {
            now = self.execute(command, json!({}));
            now["status"].as_str().is_some_and(&wanted).then_some(())
        });
        assert!(found.is_some(), "waited in vain: {now}");
        now
    }
}

fn list(capabilities: &[(&str, bool)]) -> Value {
    let list = capabilities
        .iter()
        .map(|(name, state)| json!({ "capability": name, "state": state }));
    json!({ "capabilities": Value::from_iter(list) })
}
