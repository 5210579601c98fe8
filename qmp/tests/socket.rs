//! A service with a few commands, and clients of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use paguro_qmp::commands::{negotiate, query_commands};
use paguro_qmp::{
    Answer, Args, Client, ClientError, Command, Events, ListenError, QmpError, Service, Socket,
};
use serde_json::{Value, json};

/// Tells what happens to it.
struct Doubler {
    events: Events,
    told: Sender<&'static str>,
}

impl Service for Doubler {
    fn commands(&self) -> &[(&'static str, Command<Self>)] {
        &[
            ("double", double),
            ("qmp_capabilities", negotiate),
            ("query-commands", query_commands),
        ]
    }

    fn version(&self) -> Value {
        json!("7")
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn client_gone(&self) {
        self.told.send("gone").ok();
    }
}

fn double(service: &Doubler, mut args: Args) -> Result<Answer<Doubler>, QmpError> {
    let number = args.unsigned("number")?;
    let number = args.need("number", number)?;
    args.finish()?;
    service.events.emit("DOUBLING", None);
    Ok(Answer {
        after: Some(|service| service.told.send("after").unwrap()),
        ..json!(2 * number).into()
    })
}

fn serve(path: &Path) -> (Socket, Receiver<&'static str>) {
    let socket = Socket::bind(path).unwrap();
    let (told, tells) = channel();
    let events = Events::default();
    socket.serve(Arc::new(Doubler { events, told })).unwrap();
    (socket, tells)
}

#[test]
fn a_client_finds_the_commands_of_the_table_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (socket, tells) = serve(&path);
    let mut client = Client::connect(&path).unwrap();
    let doubled = client.execute("double", json!({ "number": 21 })).unwrap();
    assert_eq!((doubled, tells.recv()), (json!(42), Ok("after")));
    let refused = |client: &mut Client, command: &str, arguments| match client
        .execute(command, arguments)
        .unwrap_err()
    {
        ClientError::Refused { command, desc, .. } => (command, desc),
        other => panic!("{other}"),
    };
    for (command, arguments, expected) in [
        ("double", json!({}), "Parameter 'number' is missing"),
        ("triple", json!({}), "The command triple has not been found"),
    ] {
        let found = refused(&mut client, command, arguments);
        assert_eq!(found, (command.to_owned(), expected.to_owned()));
    }
    let listed = client.execute("query-commands", json!({})).unwrap();
    assert_eq!(listed[0], json!({ "name": "double" }));
    assert_eq!(listed.as_array().map(Vec::len), Some(3));
    drop(client);
    assert_eq!(tells.recv(), Ok("gone"));
    drop(socket);
    let none = Client::connect(&path).unwrap_err();
    assert!(matches!(none, ClientError::NoSocket { .. }), "{none}");
}

#[test]
fn events_come_to_whoever_has_negotiated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (_socket, _tells) = serve(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let greeting = json!({ "QMP": { "version": "7", "capabilities": [] } });
    assert_eq!(lines.next(), Some(greeting));
    stream
        .write_all(br#"{"execute":"double","arguments":{"number":1},"id":5}"#)
        .unwrap();
    let early = lines.next().unwrap();
    assert_eq!(
        (&early["error"]["class"], &early["id"]),
        (&json!("CommandNotFound"), &json!(5))
    );
    stream
        .write_all(
            br#"{"execute":"qmp_capabilities"}{"execute":"double","arguments":{"number":1}}"#,
        )
        .unwrap();
    assert_eq!(lines.next(), Some(json!({ "return": {} })));
    assert_eq!(lines.next().unwrap()["event"], "DOUBLING");
    assert_eq!(lines.next(), Some(json!({ "return": 2 })));
}

#[test]
fn a_client_shows_events_in_their_order_and_keeps_no_more_than_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (_socket, _tells) = serve(&path);
    let mut client = Client::connect(&path).unwrap();
    let mut double = |times: usize| {
        for number in 0..times {
            let doubled = client.execute("double", json!({ "number": number }));
            assert_eq!(doubled.unwrap(), json!(2 * number));
        }
        client.events()
    };
    let events = double(3);
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event["event"] == "DOUBLING"));
    assert_eq!(double(1100).len(), 1024);
    let nobody = client.event(Duration::from_millis(1)).unwrap();
    assert_eq!(nobody, None);
    client.execute("double", json!({ "number": 1 })).unwrap();
    let event = client.event(Duration::ZERO).unwrap().unwrap();
    assert_eq!(event["event"], "DOUBLING");
    match client.execute("double", json!({})).unwrap_err() {
        ClientError::Refused { class, .. } => assert_eq!(class, "GenericError"),
        other => panic!("{other}"),
    }
}

#[test]
fn only_a_socket_that_nobody_listens_on_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (first, _tells) = serve(&path);
    let taken = Socket::bind(&path).unwrap_err();
    assert!(matches!(taken, ListenError::Taken { .. }), "{taken}");
    drop(first);
    drop(UnixListener::bind(&path).unwrap());
    drop(Socket::bind(&path).unwrap());
    std::fs::write(&path, "mine").unwrap();
    let other = Socket::bind(&path).unwrap_err();
    assert!(matches!(other, ListenError::NoSocket { .. }), "{other}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}
